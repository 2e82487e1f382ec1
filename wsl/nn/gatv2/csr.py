"""CSR form: whole-graph products with the attention as a sparse matrix, one per head.

Every row of a result is owned by one reduction, so results do not depend on the order of atomic additions: the
deterministic form on accelerators. Its temporaries are E×H×C (nothing of that size is saved).

    o = A xl  with A_h = α[:, h] as a sparse matrix;   dxr, dxl: sums of the edges' gradients by target and by source
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsl.nn.gatv2.graph import EdgeGraph
from wsl.nn.gatv2.kernels import edge_gradients, edge_logits, fused
from wsl.nn.gatv2.problem import Gradients, Problem, Wanted


@dataclass(frozen=True)
class CsrForm:
    """Attention over ``graph``; sorts the edges by source too, once."""

    graph: EdgeGraph
    compiled: bool = False

    @property
    def num_edges(self) -> int:
        return len(self.graph)

    def sorted_edges(self) -> EdgeGraph:
        return self.graph

    def to_caller(self, per_edge: Tensor) -> Tensor:
        return self.graph.to_caller(per_edge)

    def forward(self, problem: Problem) -> tuple[Tensor, Tensor]:
        graph = self.graph
        _, logit = fused(edge_logits, self.compiled)(*self._arguments(problem))
        rows = graph.row_pointer
        largest = torch.segment_reduce(logit, "max", offsets=rows, initial=-torch.inf, axis=0)
        share = logit.sub_(largest.index_select(0, graph.target)).exp_()
        total = torch.segment_reduce(share, "sum", offsets=rows, initial=0.0, axis=0)
        alpha = share.div_(total.index_select(0, graph.target))
        weight = alpha if problem.keep is None else alpha * graph.to_sorted(problem.keep)
        return _weighted_sums(problem.xl, graph.source, rows, weight), alpha

    def backward(
        self, problem: Problem, alpha: Tensor, out: Tensor, grad: Tensor, grad_alpha: Tensor | None, wanted: Wanted
    ) -> Gradients:
        graph = self.graph
        keep = None if problem.keep is None else graph.to_sorted(problem.keep)
        mean = (grad * out).sum(-1)
        if grad_alpha is not None:
            mean = mean + _segment_sums(alpha * grad_alpha, None, graph.row_pointer)
        grad_u, grad_source, grad_att = fused(edge_gradients, self.compiled)(
            *self._arguments(problem), grad, mean, alpha, keep, grad_alpha
        )
        by_source, columns = graph.by_source
        grads = Gradients(
            _segment_sums(grad_source, by_source, columns),
            _segment_sums(grad_u, None, graph.row_pointer),
            grad_att,
        )
        if problem.edge_attr is not None and problem.weight_edge is not None:
            flat = grad_u.flatten(1)
            if wanted.weight_edge:
                grads.weight_edge = flat.t() @ graph.to_sorted(problem.edge_attr)
            if wanted.edge_attr:
                grads.edge_attr = graph.to_caller(flat @ problem.weight_edge)
        return grads

    def _arguments(self, problem: Problem) -> tuple[Any, ...]:
        """What :func:`edge_logits` and :func:`edge_gradients` begin with, for all edges."""
        edge = None
        if problem.edge_attr is not None and problem.weight_edge is not None:
            edge = (self.graph.to_sorted(problem.edge_attr) @ problem.weight_edge.t()).view(-1, *problem.att.shape)
        return problem.score, problem.att, problem.xl, problem.xr, self.graph.source, self.graph.target, edge


def _weighted_sums(states: Tensor, neighbours: Tensor, pointer: Tensor, weight: Tensor) -> Tensor:
    """``out_i = Σ_k weight_k states[neighbours_k]`` over the segment k of i, per head: ``[n, H, C]``."""
    heads = [_bags(states[:, h], neighbours, pointer, weight[:, h]) for h in range(weight.shape[1])]
    return torch.stack(heads, dim=1)


def _segment_sums(per_edge: Tensor, positions: Tensor | None, pointer: Tensor) -> Tensor:
    """Sum of the rows ``positions`` (None: all, in order) of ``per_edge [E, …]`` over each segment."""
    if positions is None:
        positions = torch.arange(len(per_edge), device=per_edge.device)
    return _bags(per_edge.flatten(1), positions, pointer, None).unflatten(1, per_edge.shape[1:])


def _bags(table: Tensor, positions: Tensor, pointer: Tensor, weight: Tensor | None) -> Tensor:
    if not len(positions):
        return table.new_zeros(len(pointer) - 1, table.shape[1])
    weight = None if weight is None else weight.contiguous()
    return F.embedding_bag(
        positions, table.contiguous(), pointer, mode="sum", per_sample_weights=weight, include_last_offset=True
    )
