"""CSR form: whole-graph passes and sums over the segments of a sorted edge list.

Every row of a result is owned by one reduction, so results do not depend on the order of atomic additions: the
deterministic form on accelerators, and with few calls the fast one for small graphs once compiled. Its temporaries are
E×H×C (nothing of that size is saved).
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

    def sorted_edges(self, device: torch.device) -> EdgeGraph:
        return self.graph

    def to_caller(self, per_edge: Tensor) -> Tensor:
        return self.graph.to_caller(per_edge)

    def forward(self, problem: Problem) -> tuple[Tensor, Tensor]:
        graph = self.graph
        key, logit = fused(edge_logits, self.compiled)(*self._arguments(problem))
        largest = torch.segment_reduce(logit, "max", offsets=graph.row_pointer, initial=-torch.inf, axis=0)
        share = logit.sub_(largest.index_select(0, graph.target)).exp_()
        alpha = share.div_(self._sums_by_target(share).index_select(0, graph.target))
        weight = alpha if problem.keep is None else alpha * graph.to_sorted(problem.keep)
        return self._sums_by_target(key.mul_(weight.unsqueeze(-1))), alpha

    def backward(
        self, problem: Problem, alpha: Tensor, out: Tensor, grad: Tensor, grad_alpha: Tensor | None, wanted: Wanted
    ) -> Gradients:
        graph = self.graph
        keep = None if problem.keep is None else graph.to_sorted(problem.keep)
        mean = (grad * out).sum(-1)
        if grad_alpha is not None:
            mean = mean + self._sums_by_target(alpha * grad_alpha)
        grad_u, grad_source, grad_att = fused(edge_gradients, self.compiled)(
            *self._arguments(problem), grad, mean, alpha, keep, grad_alpha
        )
        by_source, columns = graph.by_source
        grads = Gradients(
            _segment_sums(grad_source, columns, by_source),
            self._sums_by_target(grad_u),
            grad_att,
        )
        if problem.edge_attr is not None and problem.weight_edge is not None:
            flat = grad_u.flatten(1)
            if wanted.weight_edge:
                grads.weight_edge = flat.t() @ graph.to_sorted(problem.edge_attr)
            if wanted.edge_attr:
                grads.edge_attr = graph.to_caller(flat @ problem.weight_edge)
        return grads

    def _sums_by_target(self, per_edge: Tensor) -> Tensor:
        return _segment_sums(per_edge, self.graph.row_pointer, self.graph.positions)

    def _arguments(self, problem: Problem) -> tuple[Any, ...]:
        """What :func:`edge_logits` and :func:`edge_gradients` begin with, for all edges."""
        edge = None
        if problem.edge_attr is not None and problem.weight_edge is not None:
            edge = (self.graph.to_sorted(problem.edge_attr) @ problem.weight_edge.t()).view(-1, *problem.att.shape)
        return problem.score, problem.att, problem.xl, problem.xr, self.graph.source, self.graph.target, edge


def _segment_sums(per_edge: Tensor, pointer: Tensor, positions: Tensor) -> Tensor:
    """Sums of the rows ``positions`` of ``per_edge [E, …]`` over the segments that ``pointer`` bounds: ``[n, …]``."""
    if not len(per_edge):
        return per_edge.new_zeros(len(pointer) - 1, *per_edge.shape[1:])
    sums = F.embedding_bag(positions, per_edge.flatten(1), pointer, mode="sum", include_last_offset=True)
    return sums.unflatten(1, per_edge.shape[1:])
