"""Read every reduction of a bundle once; write every port of a bundle once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsl.nn.unf.layout import Bundle, Layout
from wsl.nn.unf.partitions import Blocks, Reduction, valid_partitions


class Arrival(NamedTuple):
    """What arrives at a port, ``[B, *sizes of its blocks, slots·C]``; if ``owned``, it may be added to in place."""

    value: Tensor
    owned: bool


#: what arrives at (blocks, connected blocks) of one bundle
Received = dict[tuple[Blocks, tuple[int, ...]], Arrival]


class PoolBank:
    """The reductions of all bundles, and the way back from ports.

    Args:
        layout: the weight space.
        aggregation: ``mean`` or ``sum`` over averaged blocks.
    """

    def __init__(self, layout: Layout, aggregation: str = "mean") -> None:
        self.layout = layout
        self.mean = aggregation == "mean"
        self._diagonals: dict[tuple, Tensor] = {}

    def read(self, features: list[Tensor]) -> list[Callable[[Reduction], Tensor]]:
        """Per bundle a function from a reduction to its value, which is computed when first asked for."""
        return [self._reader(bundle, x) for bundle, x in zip(self.layout.bundles, features, strict=True)]

    def _reader(self, bundle: Bundle, x: Tensor) -> Callable[[Reduction], Tensor]:
        found: dict[tuple[Blocks, tuple[int, ...]], Tensor] = {}

        def value(blocks: Blocks, kept: tuple[int, ...]) -> Tensor:
            if (blocks, kept) not in found:
                if len(kept) == len(blocks):
                    found[blocks, kept] = self._diagonal(bundle, blocks, x)
                else:
                    block = next(b for b in range(len(blocks)) if b not in kept)
                    more = tuple(sorted((*kept, block)))
                    total = value(blocks, more).sum(dim=1 + more.index(block))
                    # scaling after the sum: its gradient is a broadcast that takes no memory, that of a mean is not
                    size = bundle.sizes[blocks[block][0]]
                    found[blocks, kept] = total * (1 / size) if self.mean else total
            return found[blocks, kept]

        def reduction(wanted: Reduction) -> Tensor:
            ascending = tuple(sorted(wanted.kept))
            result = value(wanted.blocks, ascending)
            if wanted.kept == ascending:
                return result
            return result.permute(0, *(1 + ascending.index(k) for k in wanted.kept), result.dim() - 1)

        return reduction

    def _diagonal(self, bundle: Bundle, blocks: Blocks, x: Tensor) -> Tensor:
        if len(blocks) == len(bundle.labels):
            return x
        sizes = [bundle.sizes[block[0]] for block in blocks]
        where = self._positions(bundle, blocks, x.device)
        return x.flatten(1, -2).index_select(1, where).unflatten(1, sizes)

    def write(self, received: list[Received]) -> list[Tensor]:
        """Sum of all ports of every bundle, ``[B, *sizes, slots·C]``."""
        return [self._written(bundle, got) for bundle, got in zip(self.layout.bundles, received, strict=True)]

    def _written(self, bundle: Bundle, received: Received) -> Tensor:
        finest, *coarser = valid_partitions(bundle.labels)
        full = _spread(finest, bundle.sizes, received)
        for blocks in coarser:
            if any(b == blocks for b, _ in received):
                sizes = tuple(bundle.sizes[block[0]] for block in blocks)
                diagonal = _spread(blocks, sizes, received).flatten(1, -2)
                flat = full.flatten(1, -2).index_add(1, self._positions(bundle, blocks, full.device), diagonal)
                full = flat.unflatten(1, bundle.sizes)
        return full

    def _positions(self, bundle: Bundle, blocks: Blocks, device: torch.device) -> Tensor:
        """Positions of a generalised diagonal among the flattened entries of a bundle."""
        if (bundle.labels, blocks, device) not in self._diagonals:
            strides = np.cumprod((1, *bundle.sizes[:0:-1]))[::-1]
            index = np.zeros((), dtype=np.int64)
            for block in blocks:
                steps = np.arange(bundle.sizes[block[0]]) * sum(strides[axis] for axis in block)
                index = index[..., None] + steps
            self._diagonals[bundle.labels, blocks, device] = torch.from_numpy(index.ravel()).to(device)
        return self._diagonals[bundle.labels, blocks, device]


def _spread(blocks: Blocks, sizes: tuple[int, ...], received: Received) -> Tensor:
    """Sum of what arrives at the ports of one partition; small values are added to larger ones first."""
    waiting = {connected: arrival for (b, connected), arrival in received.items() if b == blocks}
    everything = tuple(range(len(blocks)))
    for connected in sorted(waiting, key=len):
        if connected == everything:
            break
        value = waiting.pop(connected).value
        larger = [c for c in waiting if set(connected) < set(c)]
        goal = min(larger, key=len) if larger else everything
        for block in goal:
            if block not in connected:
                value = value.unsqueeze(1 + goal.index(block))
        if goal not in waiting:
            shape = (value.shape[0], *(sizes[b] for b in everything), value.shape[-1])
            waiting[goal] = Arrival(value.expand(shape), owned=False)
        elif waiting[goal].owned:
            waiting[goal].value.add_(value)
        else:
            waiting[goal] = Arrival(waiting[goal].value + value, owned=True)
    return waiting[everything].value
