"""Batches of network weights: one contiguous tensor for one spec, one flat vector for many.

Axis letters: B networks, P parameters, C feature channels (C = 1 for the weights of a zoo).
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from wsl.spec import VirtualTensor, WeightSpec


@dataclass(frozen=True)
class _Slice:
    """Where a virtual tensor lies in a row: a run of consecutive values and the order of its axes, or scattered."""

    start: int
    length: int
    shape: tuple[int, ...]  # of the run, slowest axis first
    order: tuple[int, ...]  # permutation from the run's axes to the tensor's axes
    index: Tensor | None  # positions in the row when they are not consecutive


@lru_cache(maxsize=4096)
def _slice(tensor: VirtualTensor) -> _Slice:
    by_stride = sorted(range(len(tensor.shape)), key=lambda axis: (-tensor.strides[axis], axis))
    expected, consecutive = 1, True
    for axis in reversed(by_stride):
        consecutive &= tensor.shape[axis] == 1 or tensor.strides[axis] == expected
        expected *= tensor.shape[axis]
    shape = tuple(tensor.shape[axis] for axis in by_stride)
    order = tuple(by_stride.index(axis) for axis in range(len(by_stride)))
    index = None if consecutive else torch.from_numpy(tensor.index().ravel())
    return _Slice(tensor.offset, tensor.numel, shape, order, index)


@dataclass(frozen=True)
class WeightBatch:
    """Networks of one spec.

    Attributes:
        spec: what the networks share.
        values: ``[B, P, C]``, the rows.
        target: ``[B, …]`` labels of the networks, or None.
        row_ids: ``[B]`` int64, the rows' positions in their zoo, or None.
    """

    spec: WeightSpec
    values: Tensor
    target: Tensor | None = None
    row_ids: Tensor | None = None

    def __post_init__(self) -> None:
        if self.values.dim() != 3 or self.values.shape[1] != self.spec.numel:
            raise ValueError(
                f"values must be [B, {self.spec.numel}, C] for {self.spec!r}, got {tuple(self.values.shape)}"
            )

    def __len__(self) -> int:
        return self.values.shape[0]

    def __getitem__(self, name: str) -> Tensor:
        """The virtual tensor ``name`` of every network: ``[B, *shape, C]``, a view where the spec allows one."""
        return _view(self.values, self.spec.tensor[name])

    def tensors(self) -> dict[str, Tensor]:
        """All virtual tensors by name, each ``[B, *shape, C]``.

        Cheaper under autograd than one look-up at a time: consecutive tensors are split off in one operation.
        """
        tensors = self.spec.tensors
        slices = [_slice(t) for t in tensors]
        in_a_row = all(s.index is None for s in slices) and all(
            a.start + a.length == b.start for a, b in pairwise(slices)
        )
        if not in_a_row or not tensors:
            return {t.name: self[t.name] for t in tensors}
        parts = self.values.split([s.length for s in slices], dim=1)
        return {t.name: _arrange(part, s) for t, s, part in zip(tensors, slices, parts, strict=True)}

    def flat(self) -> MixedWeightBatch:
        """The same networks as one flat vector, for what is written once for networks of one spec and of many."""
        count, device = len(self), self.values.device
        offsets = torch.arange(count + 1, device=device) * self.spec.numel
        spec_ids = torch.zeros(count, dtype=torch.int64, device=device)
        return MixedWeightBatch((self.spec,), spec_ids, self.values.flatten(0, 1), offsets, self.target, self.row_ids)

    def with_values(self, values: Tensor) -> WeightBatch:
        """The same networks with other values (an equivariant encoder's output, an augmented batch)."""
        return replace(self, values=values)

    def select(self, networks: Tensor) -> WeightBatch:
        """The networks at these positions ``[b]`` int64, in this order."""

        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[networks]

        return WeightBatch(self.spec, self.values[networks], pick(self.target), pick(self.row_ids))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> WeightBatch:
        return _each(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> WeightBatch:
        return _each(self, lambda tensor: tensor.pin_memory())

    @classmethod
    def from_state_dicts(cls, spec: WeightSpec, state_dicts: Sequence[Mapping[str, Tensor]]) -> WeightBatch:
        """Stack state dicts into rows.

        Raises:
            ValueError: if a state dict lacks a tensor of the spec, or holds it in another shape.
        """
        rows = []
        for number, state in enumerate(state_dicts):
            for stored in spec.stored:
                if stored.name not in state or tuple(state[stored.name].shape) != stored.shape:
                    found = tuple(state[stored.name].shape) if stored.name in state else "missing"
                    raise ValueError(f"network {number}: {stored.name!r} should be {stored.shape}, is {found}")
            rows.append(torch.cat([state[stored.name].reshape(-1) for stored in spec.stored]))
        return cls(spec, torch.stack(rows).unsqueeze(-1))

    def state_dict(self, row: int) -> dict[str, Tensor]:
        """The stored tensors of one network, by state-dict name (C = 1 only)."""
        if self.values.shape[-1] != 1:
            raise ValueError(f"a state dict holds one channel, this batch has {self.values.shape[-1]}")
        flat = self.values[row, :, 0]
        return {s.name: flat[s.offset : s.offset + int(np.prod(s.shape))].reshape(s.shape) for s in self.spec.stored}


@dataclass(frozen=True)
class MixedWeightBatch:
    """Networks of many specs as one flat vector.

    Whatever is known of a spec (where its edges lie in a row, which neurons they join) is a table, computed once per
    spec; :meth:`tables` strings the tables of all networks together without looking at networks one by one.

    Attributes:
        specs: the distinct specs of the batch, or of the zoo that it is from.
        spec_ids: ``[B]`` int64, index into ``specs``.
        values: ``[ΣP, C]``, the rows one after the other.
        offsets: ``[B + 1]`` int64; network b owns ``values[offsets[b]:offsets[b + 1]]``.
        target, row_ids: as in :class:`WeightBatch`.
    """

    specs: tuple[WeightSpec, ...]
    spec_ids: Tensor
    values: Tensor
    offsets: Tensor
    target: Tensor | None = None
    row_ids: Tensor | None = None

    def __post_init__(self) -> None:
        sizes = torch.tensor([spec.numel for spec in self.specs], dtype=torch.int64)
        expected = sizes[self.spec_ids.cpu()] if len(self.specs) else sizes
        if not torch.equal(self.offsets.cpu().diff(), expected) or self.offsets[-1] != self.values.shape[0]:
            raise ValueError("offsets do not agree with the sizes of the specs that spec_ids names")

    def __len__(self) -> int:
        return self.spec_ids.shape[0]

    def with_values(self, values: Tensor) -> MixedWeightBatch:
        """The same networks with other values ``[ΣP, C']``."""
        return replace(self, values=values)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MixedWeightBatch:
        return _each(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> MixedWeightBatch:
        return _each(self, lambda tensor: tensor.pin_memory())

    @classmethod
    def collate(cls, batches: Sequence[WeightBatch]) -> MixedWeightBatch:
        """Concatenate batches of (possibly) different specs, in order."""
        specs = tuple(dict.fromkeys(batch.spec for batch in batches))
        number = {spec: i for i, spec in enumerate(specs)}
        counts = torch.tensor([len(batch) for batch in batches], dtype=torch.int64)
        ids = torch.tensor([number[batch.spec] for batch in batches], dtype=torch.int64)
        spec_ids = ids.repeat_interleave(counts)

        def joined(name: str) -> Tensor | None:
            parts = [getattr(batch, name) for batch in batches]
            return None if any(part is None for part in parts) else torch.cat(parts)

        values = torch.cat([batch.values.flatten(0, 1) for batch in batches])
        return cls(specs, spec_ids, values, row_offsets(specs, spec_ids), joined("target"), joined("row_ids"))

    # -- parts --------------------------------------------------------------------------------------------------------

    def select(self, networks: Tensor) -> MixedWeightBatch:
        """The networks at these positions ``[b]`` int64, in this order; specs that none of them has are left out."""
        used, spec_ids = self.spec_ids[networks].unique(return_inverse=True)
        index, _, offsets = ragged(self.offsets[networks], self.offsets.diff()[networks])

        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[networks]

        specs = tuple(self.specs[number] for number in used.tolist())
        values = self.values.index_select(0, index)
        return MixedWeightBatch(specs, spec_ids, values, offsets, pick(self.target), pick(self.row_ids))

    def split(self) -> list[tuple[Tensor, WeightBatch]]:
        """Per spec that occurs: positions of its networks here ``[b]``, and the networks as one :class:`WeightBatch`.

        For analysis and for models of one spec each; a training step on many specs works on the flat vector.
        """
        order = self.spec_ids.argsort(stable=True)
        counts = self.spec_ids.bincount(minlength=len(self.specs)).tolist()
        out = []
        for spec, positions in zip(self.specs, order.split(counts), strict=True):
            if not len(positions):
                continue
            index = self.offsets[positions].unsqueeze(-1) + torch.arange(spec.numel, device=self.offsets.device)
            target = None if self.target is None else self.target[positions]
            row_ids = None if self.row_ids is None else self.row_ids[positions]
            out.append((positions, WeightBatch(spec, self.values[index], target, row_ids)))
        return out

    def merge(self, parts: Sequence[tuple[Tensor, Tensor]]) -> MixedWeightBatch:
        """Inverse of :meth:`split`: positions ``[b]`` and values ``[b, P, C']`` of every spec, as one batch."""
        starts = torch.cat([self.offsets[positions] for positions, _ in parts])
        lengths = torch.cat([positions.new_full((len(positions),), values.shape[1]) for positions, values in parts])
        index, _, _ = ragged(starts, lengths)
        flat = torch.cat([values.flatten(0, 1) for _, values in parts])
        return self.with_values(torch.empty_like(flat).index_copy(0, index, flat))

    # -- forms that encoders read -------------------------------------------------------------------------------------

    def tables(self, table_of: Callable[[WeightSpec], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The table of every network's spec, one after the other.

        Args:
            table_of: spec → ``[M, …]``, a function that is called once per spec (by digest) and then remembered; pass
                the same function object each time.

        Returns:
            rows ``[ΣM, …]``; the network that each row belongs to, ``[ΣM]`` int64; offsets ``[B + 1]`` of the networks.
            Positions in a row become positions in ``values`` by adding ``self.offsets[owner]``.
        """
        device = self.values.device
        used, ids = self.spec_ids.unique(return_inverse=True)
        found = [_TABLES.get(table_of, self.specs[number]) for number in used.tolist()]
        lengths = torch.tensor([len(table) for table in found], dtype=torch.int64, device=device)
        index, owner, offsets = ragged((lengths.cumsum(0) - lengths)[ids], lengths[ids])
        rows = torch.cat(found).to(device)
        in_order = torch.equal(ids, torch.arange(len(used), device=ids.device))  # each spec once: nothing to repeat
        return rows if in_order else rows.index_select(0, index), owner, offsets

    def stacked(self) -> Tensor:
        """The rows as ``[B, P, C]``, for specs that all have P parameters.

        Raises:
            ValueError: if the networks differ in their number of parameters.
        """
        lengths = self.offsets.diff()
        if len(self) and bool((lengths != lengths[0]).any()):
            raise ValueError(f"networks of {int(lengths.min())} to {int(lengths.max())} parameters cannot be stacked")
        return self.values.reshape(len(self), -1, self.values.shape[1])

    def padded(self) -> tuple[Tensor, Tensor]:
        """Rows filled up with zeros, ``[B, P_max, C]``, and where they hold values, ``[B, P_max]`` bool."""
        lengths = self.offsets.diff()
        width = int(lengths.max()) if len(self) else 0
        mask = torch.arange(width, device=self.values.device) < lengths.unsqueeze(-1)
        out = self.values.new_zeros(len(self), width, self.values.shape[1])
        return out.masked_scatter(mask.unsqueeze(-1), self.values), mask


def row_offsets(specs: Sequence[WeightSpec], spec_ids: Tensor) -> Tensor:
    """``[B + 1]``: where the rows of these networks begin and end in a flat vector."""
    sizes = torch.tensor([spec.numel for spec in specs], dtype=torch.int64, device=spec_ids.device)[spec_ids]
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


def ragged(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Runs of consecutive numbers: ``starts[b], …, starts[b] + lengths[b] − 1`` for every b.

    Returns:
        the numbers ``[Σ lengths]``; the run b that each belongs to; offsets ``[B + 1]`` of the runs.
    """
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    owner = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    return torch.arange(len(owner), device=lengths.device) + (starts - offsets[:-1])[owner], owner, offsets


class _Tables:
    """Tables of specs, computed once; the ones not used for longest go when they take more than a budget of bytes."""

    def __init__(self, budget: int) -> None:
        self.budget, self.held = budget, 0
        self.found: OrderedDict[tuple[Callable[[WeightSpec], Tensor], WeightSpec], Tensor] = OrderedDict()

    def get(self, table_of: Callable[[WeightSpec], Tensor], spec: WeightSpec) -> Tensor:
        key = (table_of, spec)
        if key in self.found:
            self.found.move_to_end(key)
            return self.found[key]
        table = self.found[key] = table_of(spec)
        self.held += table.nbytes
        while self.held > self.budget and len(self.found) > 1:
            self.held -= self.found.popitem(last=False)[1].nbytes
        return table


_TABLES = _Tables(budget=2**30)


_Batch = TypeVar("_Batch", WeightBatch, MixedWeightBatch)


def _each(batch: _Batch, change: Callable[[Tensor], Tensor]) -> _Batch:
    """The batch with every tensor changed."""
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    changed: dict[str, Any] = {name: change(value) for name, value in fields.items() if isinstance(value, Tensor)}
    return replace(batch, **changed)


def _view(values: Tensor, tensor: VirtualTensor) -> Tensor:
    where = _slice(tensor)
    if where.index is not None:
        picked = values.index_select(1, where.index.to(values.device))
        return picked.reshape(values.shape[0], *tensor.shape, values.shape[2])
    return _arrange(values.narrow(1, where.start, where.length), where)


def _arrange(run: Tensor, where: _Slice) -> Tensor:
    shaped = run.reshape(run.shape[0], *where.shape, run.shape[2])
    return shaped.permute(0, *(1 + axis for axis in where.order), shaped.dim() - 1)
