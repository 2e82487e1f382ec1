"""Batches of network weights: one contiguous tensor for one spec, one flat vector for many.

Axis letters: B networks, P parameters, C feature channels (C = 1 for the weights of a zoo).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

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

    def with_values(self, values: Tensor) -> WeightBatch:
        """The same networks with other values (an equivariant encoder's output, an augmented batch)."""
        return replace(self, values=values)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> WeightBatch:
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        return replace(self, values=move(self.values), target=move(self.target), row_ids=move(self.row_ids))

    def pin_memory(self) -> WeightBatch:
        def pin(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.pin_memory()

        return replace(self, values=pin(self.values), target=pin(self.target), row_ids=pin(self.row_ids))

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

    Attributes:
        specs: the distinct specs of the batch.
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

    @classmethod
    def collate(cls, batches: Sequence[WeightBatch]) -> MixedWeightBatch:
        """Concatenate batches of (possibly) different specs, in order."""
        specs = tuple(dict.fromkeys(batch.spec for batch in batches))
        number = {spec: i for i, spec in enumerate(specs)}
        spec_ids = torch.cat([torch.full((len(b),), number[b.spec], dtype=torch.int64) for b in batches])
        sizes = torch.tensor([spec.numel for spec in specs], dtype=torch.int64)[spec_ids]
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])

        def joined(name: str) -> Tensor | None:
            parts = [getattr(batch, name) for batch in batches]
            return None if any(part is None for part in parts) else torch.cat(parts)

        values = torch.cat([batch.values.flatten(0, 1) for batch in batches])
        return cls(specs, spec_ids, values, offsets, joined("target"), joined("row_ids"))

    def split(self) -> list[tuple[Tensor, WeightBatch]]:
        """Per spec: positions of its networks in this batch ``[b]``, and the networks as one :class:`WeightBatch`."""
        out = []
        for number, spec in enumerate(self.specs):
            positions = (self.spec_ids == number).nonzero().squeeze(-1)
            index = self.offsets[positions].unsqueeze(-1) + torch.arange(spec.numel, device=self.offsets.device)

            def pick(tensor: Tensor | None, positions: Tensor = positions) -> Tensor | None:
                return None if tensor is None else tensor[positions]

            out.append((positions, WeightBatch(spec, self.values[index], pick(self.target), pick(self.row_ids))))
        return out


def _view(values: Tensor, tensor: VirtualTensor) -> Tensor:
    where = _slice(tensor)
    if where.index is not None:
        picked = values.index_select(1, where.index.to(values.device))
        return picked.reshape(values.shape[0], *tensor.shape, values.shape[2])
    return _arrange(values.narrow(1, where.start, where.length), where)


def _arrange(run: Tensor, where: _Slice) -> Tensor:
    shaped = run.reshape(run.shape[0], *where.shape, run.shape[2])
    return shaped.permute(0, *(1 + axis for axis in where.order), shaped.dim() - 1)
