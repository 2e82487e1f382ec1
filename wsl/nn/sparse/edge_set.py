"""The edges of one graph as layers pass them on: sorted by receiver once, a subset after each pruning."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from wsl.nn.gatv2.topology import Loops, topology

Normalization = Literal["symmetric", "mean", "none"]


@dataclass(frozen=True, eq=False)
class EdgeSet:
    """Edges source → target in the order of their targets, all of a graph's or some.

    Attributes:
        source, target: ``[E]`` int64, ``target`` ascends.
        weight: ``[E]`` of the normalisation; "symmetric" 1/√(d_i d_j), "mean" 1/d_i, "none" 1; d counts edges into a
            node.
        ids: ``[E]`` int64, positions among all ``total`` edges of the graph.
        is_loop: ``[E]`` bool.
        origin: the edges that these are a subset of; None: these are all.
    """

    source: Tensor
    target: Tensor
    weight: Tensor
    ids: Tensor
    is_loop: Tensor
    num_nodes: int
    total: int
    normalization: Normalization
    origin: EdgeSet | None = None

    @property
    def whole(self) -> EdgeSet:
        """All edges of the graph."""
        return self if self.origin is None else self.origin

    def __len__(self) -> int:
        return self.source.shape[0]

    @property
    def edge_index(self) -> Tensor:
        """``[2, E]``."""
        return torch.stack([self.source, self.target])

    @cached_property
    def num_loops(self) -> int:
        return int(self.is_loop.sum())

    def subset(self, mask: Tensor, renormalized: bool = False) -> EdgeSet:
        """The edges of ``mask [E]`` bool. Their weights stay, or are those of a graph that has no other edges."""
        kept = replace(
            self,
            source=self.source[mask],
            target=self.target[mask],
            weight=self.weight[mask],
            ids=self.ids[mask],
            is_loop=self.is_loop[mask],
            origin=self.whole,
        )
        if not renormalized:
            return kept
        weight = edge_weights(kept.source, kept.target, self.num_nodes, self.normalization).to(self.weight)
        return replace(kept, weight=weight)

    def propagate(self, x: Tensor) -> Tensor:
        """Σ_e weight_e x_source(e) for each receiver: ``[N, C]`` → ``[N, C]``, one CSR product each way."""
        return product(x, *self.matrices(torch.promote_types(x.dtype, torch.float32)))

    def matrices(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The weighted adjacency ``[N, N]`` (rows are receivers) and its transpose, CSR; made once."""
        if dtype not in self._matrices:
            back = torch.argsort(self.source, stable=True)
            weight = self.weight.to(dtype)
            self._matrices[dtype] = (
                csr(self.target, self.source, weight, (self.num_nodes, self.num_nodes)),
                csr(self.source[back], self.target[back], weight[back], (self.num_nodes, self.num_nodes)),
            )
        return self._matrices[dtype]

    @cached_property
    def _matrices(self) -> dict[torch.dtype, tuple[Tensor, Tensor]]:
        return {}


class _Product(torch.autograd.Function):
    """A x; the backward pass is Aᵀ g with a transpose made once, not in every step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        return ctx.transposed @ grad.contiguous(), None, None


def product(x: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
    """A x ``[M, C]`` of a CSR matrix ``[M, N]`` and its transpose, differentiable in x ``[N, C]``.

    In the precision of the matrix also where autocast asks for another: sparse products of bfloat16 do not run on CPUs.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _Product.apply(x.to(matrix.dtype), matrix, transposed)


def csr(row: Tensor, column: Tensor, value: Tensor, shape: tuple[int, int]) -> Tensor:
    """Sparse matrix of entries whose rows ascend."""
    pointer = torch.zeros(shape[0] + 1, dtype=torch.int64, device=row.device)
    pointer[1:] = torch.bincount(row, minlength=shape[0]).cumsum(0)
    with warnings.catch_warnings():  # torch calls the layout a beta once per process
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(pointer, column, value, size=shape, check_invariants=False)


def edge_weights(source: Tensor, target: Tensor, num_nodes: int, normalization: Normalization) -> Tensor:
    """Weights ``[E]`` float64 of a normalisation, degrees counted over these edges (1 where there is none)."""
    degree = torch.bincount(target, minlength=num_nodes).double().clamp_min(1.0)
    if normalization == "symmetric":
        return (degree[source] * degree[target]).rsqrt()
    return degree.reciprocal()[target] if normalization == "mean" else degree.new_ones(len(target))


_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def edge_set(edge_index: Tensor, num_nodes: int, loops: Loops, normalization: Normalization) -> EdgeSet:
    """All edges of ``edge_index [2, E]``, remembered while that tensor lives.

    Args:
        loops: "replace" gives every node one self loop, "keep" takes the graph as it is.
    """
    version = None if edge_index.is_inference() else edge_index._version
    known = _known.setdefault(edge_index, {})
    key = (num_nodes, loops, normalization, version)
    if key not in known:
        graph = topology(edge_index, num_nodes, num_nodes, loops).graph
        source, target = graph.source, graph.target
        known[key] = EdgeSet(
            source=source,
            target=target,
            weight=edge_weights(source, target, num_nodes, normalization),
            ids=torch.arange(len(graph), device=source.device),
            is_loop=source == target,
            num_nodes=num_nodes,
            total=len(graph),
            normalization=normalization,
        )
    return known[key]
