"""Invariant pooling: from the features of a weight space to one vector per network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsl.nn.unf.layout import Bundle, Layout
from wsl.nn.unf.partitions import Blocks, Reduction, is_redundant, key_of, valid_partitions
from wsl.nn.unf.pool_bank import PoolBank


class InvariantPool(nn.Module):
    """Means over all permuted axes of every tensor; fixed cells stay apart.

    Args:
        layout: the weight space. With fixed inputs and outputs this is the pool of NFN-HNP.
        complete: one mean for each partition of a tensor's axes, Π_a Bell(c_a) of them: the mean of a recurrent matrix
            and the mean of its diagonal, which together are all linear invariants. Otherwise only the total mean, as
            in the papers.
        aggregation: ``mean`` or ``sum``.

    Attributes:
        outputs: number of pooled values per feature channel.

    Shapes: one tensor ``[B, *sizes, slots·C]`` per bundle → ``[B, outputs · C]``.
    """

    def __init__(self, layout: Layout, complete: bool = True, aggregation: str = "mean") -> None:
        super().__init__()
        self.layout = layout
        self.pools = PoolBank(layout, aggregation)
        self.wanted: list[list[Reduction]] = []
        for bundle in layout.bundles:
            finest, *coarser = valid_partitions(bundle.labels)
            kept = [blocks for blocks in (finest, *coarser) if not self._redundant(bundle, blocks)]
            self.wanted.append([Reduction(blocks, ()) for blocks in (kept if complete else [finest])])
        self.outputs = sum(b.slots * len(w) for b, w in zip(layout.bundles, self.wanted, strict=True))

    def _redundant(self, bundle: Bundle, blocks: Blocks) -> bool:
        labels = key_of(bundle.labels, blocks, tuple(range(len(blocks))))
        return is_redundant(labels, (), (), self.layout.sizes)

    def forward(self, features: list[Tensor]) -> Tensor:
        readers = self.pools.read(features)
        return torch.cat([read(r) for read, wanted in zip(readers, self.wanted, strict=True) for r in wanted], dim=-1)
