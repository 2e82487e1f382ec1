"""A graph as the kernels want it: edges sorted by destination once, shared by all layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class EdgeGraph:
    """Directed edges source → target in the order of their targets.

    Attributes:
        source, target: ``[E]`` int64; ``target`` ascends.
        order: ``[E]`` int64, the position of each edge in the caller's list; None if that was sorted already.
        num_sources, num_targets: N of either side (equal numbers do not make a graph homogeneous, nor need they).
    """

    source: Tensor
    target: Tensor
    order: Tensor | None
    num_sources: int
    num_targets: int

    @classmethod
    def from_edge_index(cls, edge_index: Tensor, num_sources: int, num_targets: int | None = None) -> EdgeGraph:
        """Sort ``edge_index [2, E]`` (row 0 sources, row 1 targets). Multi-edges and self loops are ordinary edges.

        Raises:
            ValueError: if the shape is not ``[2, E]`` or an end is not a node.
        """
        num_targets = num_sources if num_targets is None else num_targets
        if edge_index.dim() != 2 or edge_index.shape[0] != 2 or edge_index.is_floating_point():
            raise ValueError(
                f"edge_index must be [2, E] of integers, got {tuple(edge_index.shape)} of {edge_index.dtype}"
            )
        source, target = edge_index.detach().long().unbind(0)
        for name, ends, size in (("source", source, num_sources), ("target", target, num_targets)):
            if ends.numel() and (int(ends.min()) < 0 or int(ends.max()) >= size):
                raise ValueError(
                    f"edge_index names {name} nodes {int(ends.min())} to {int(ends.max())}, there are {size}; "
                    "give every node a row of features"
                )
        if bool((target[1:] >= target[:-1]).all()):
            return cls(source.clone(), target.clone(), None, num_sources, num_targets)  # not the caller's to write to
        target, order = torch.sort(target, stable=True)
        return cls(source[order], target, order, num_sources, num_targets)

    def __len__(self) -> int:
        return self.source.shape[0]

    @cached_property
    def row_pointer(self) -> Tensor:
        """``[num_targets + 1]``: the edges into target i are ``row_pointer[i] … row_pointer[i + 1]``."""
        return _pointer(self.target, self.num_targets)

    @cached_property
    def degree(self) -> Tensor:
        """``[num_targets]``: edges into each target."""
        return self.row_pointer.diff()

    @cached_property
    def positions(self) -> Tensor:
        """``[E]``: 0, 1, …"""
        return torch.arange(len(self), device=self.source.device)

    @cached_property
    def by_source(self) -> tuple[Tensor, Tensor]:
        """The same edges in the order of their sources: positions ``[E]`` and pointer ``[num_sources + 1]``."""
        source, positions = torch.sort(self.source, stable=True)
        return positions, _pointer(source, self.num_sources)

    def edge_index(self) -> Tensor:
        """``[2, E]`` in the caller's order."""
        return self.to_caller(torch.stack([self.source, self.target], dim=1)).t()

    def to_sorted(self, per_edge: Tensor) -> Tensor:
        """Rows ``[E, …]`` in the caller's order → in the order of ``target``."""
        return per_edge if self.order is None else per_edge.index_select(0, self.order)

    def to_caller(self, per_edge: Tensor) -> Tensor:
        """Rows ``[E, …]`` in the order of ``target`` → in the caller's order."""
        return per_edge if self.order is None else torch.empty_like(per_edge).index_copy(0, self.order, per_edge)


def _pointer(ascending: Tensor, size: int) -> Tensor:
    counts = torch.bincount(ascending, minlength=size)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
