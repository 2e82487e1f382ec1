"""Edge-list form: chunks of destination-sorted edges, so that nothing of size E×H×C exists and a chunk stays in cache.

The forward pass reads every source row once: the softmax is accumulated *online*. A destination whose edges straddle
two chunks keeps a running maximum m, and what was summed under the old maximum is scaled by exp(m_old − m_new).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from wsl.nn.gatv2.graph import EdgeGraph
from wsl.nn.gatv2.kernels import edge_gradients, edge_logits, fused
from wsl.nn.gatv2.problem import Gradients, Problem, Wanted

CHUNK_FLOATS = 4096 * 64
"""Floats per temporary on a CPU: 1 MiB in float32, about the L2 cache of one core."""

CHUNK_FLOATS_ACCELERATOR = 2**26
"""Floats per temporary elsewhere: large enough to fill the device, small enough to bound the memory."""

FUSED = 4
"""Times larger chunks of a compiled layer, which makes fewer temporaries and pays more for each call."""


def floats_per_chunk(like: Tensor) -> int:
    """Floats that a temporary may hold on the device of ``like``."""
    return CHUNK_FLOATS if like.device.type == "cpu" else CHUNK_FLOATS_ACCELERATOR


@dataclass(frozen=True)
class EdgeListForm:
    """Attention over ``graph`` in chunks of ``chunk`` edges (None: chosen from H·C and the device)."""

    graph: EdgeGraph
    chunk: int | None = None
    compiled: bool = False

    @property
    def num_edges(self) -> int:
        return len(self.graph)

    def sorted_edges(self, device: torch.device) -> EdgeGraph:
        return self.graph

    def to_caller(self, per_edge: Tensor) -> Tensor:
        return self.graph.to_caller(per_edge)

    def forward(self, problem: Problem) -> tuple[Tensor, Tensor]:
        graph, xl = self.graph, problem.xl
        out = xl.new_zeros(graph.num_targets, *xl.shape[1:])
        total = xl.new_zeros(graph.num_targets, problem.heads)
        largest = torch.full_like(total, -torch.inf)
        alpha = xl.new_empty(len(graph), problem.heads)  # holds the logits until the maxima are final
        keep = None if problem.keep is None else graph.to_sorted(problem.keep)
        logits_of = fused(edge_logits, self.compiled)
        for edges, source, target in self.chunks(problem):
            edge = self.edge_term(problem, edges)
            key, logit = logits_of(problem.score, problem.att, xl, problem.xr, source, target, edge)
            alpha[edges] = logit
            first = target[0]
            before = largest[first].clone()
            largest.scatter_reduce_(0, target.unsqueeze(-1).expand_as(logit), logit, "amax")
            shrink = torch.exp(before - largest[first])
            total[first] *= shrink
            out[first] *= shrink.unsqueeze(-1)
            share = logit.sub_(largest.index_select(0, target)).exp_()
            total.index_add_(0, target, share)
            if keep is not None:
                share = share.mul_(keep[edges])
            out.index_add_(0, target, key.mul_(share.unsqueeze(-1)))
        total.clamp_min_(torch.finfo(total.dtype).tiny)  # a node without edges: o = 0
        out /= total.unsqueeze(-1)
        largest += total.log_()
        for edges, _, target in self.chunks(problem):
            alpha[edges].sub_(largest.index_select(0, target)).exp_()
        return out, alpha

    def backward(
        self, problem: Problem, alpha: Tensor, out: Tensor, grad: Tensor, grad_alpha: Tensor | None, wanted: Wanted
    ) -> Gradients:
        graph = self.graph
        grads = Gradients(torch.zeros_like(problem.xl), torch.zeros_like(problem.xr), torch.zeros_like(problem.att))
        if wanted.edge_attr and problem.edge_attr is not None:
            grads.edge_attr = torch.empty_like(problem.edge_attr)
        if wanted.weight_edge and problem.weight_edge is not None:
            grads.weight_edge = torch.zeros_like(problem.weight_edge)
        keep = None if problem.keep is None else graph.to_sorted(problem.keep)
        mean = (grad * out).sum(-1)  # D
        if grad_alpha is not None:
            mean.index_add_(0, graph.target, alpha * grad_alpha)
        gradients_of = fused(edge_gradients, self.compiled)
        for edges, source, target in self.chunks(problem):
            grad_u, grad_source, grad_att = gradients_of(
                problem.score,
                problem.att,
                problem.xl,
                problem.xr,
                source,
                target,
                self.edge_term(problem, edges),
                grad,
                mean,
                alpha[edges],
                None if keep is None else keep[edges],
                None if grad_alpha is None else grad_alpha[edges],
            )
            grads.att += grad_att
            grads.xr.index_add_(0, target, grad_u)
            grads.xl.index_add_(0, source, grad_source)
            self._edge_gradients(problem, grads, grad_u, edges)
        return grads

    def chunks(self, problem: Problem) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Positions, sources and targets of one chunk of sorted edges after the other."""
        floats = floats_per_chunk(problem.xl) * (FUSED if self.compiled else 1)
        size = self.chunk or max(1, floats // max(1, problem.att.numel()))
        for start in range(0, len(self.graph), size):
            edges = slice(start, start + size)
            yield edges, self.graph.source[edges], self.graph.target[edges]

    def _edge_rows(self, edge_attr: Tensor, edges: slice) -> Tensor:
        order = self.graph.order
        return edge_attr[edges] if order is None else edge_attr.index_select(0, order[edges])

    def edge_term(self, problem: Problem, edges: slice) -> Tensor | None:
        """v of a chunk, ``[K, H, C]``; None without edge features."""
        if problem.edge_attr is None or problem.weight_edge is None:
            return None
        return (self._edge_rows(problem.edge_attr, edges) @ problem.weight_edge.t()).view(-1, *problem.att.shape)

    def _edge_gradients(self, problem: Problem, grads: Gradients, grad_u: Tensor, edges: slice) -> None:
        if problem.edge_attr is None or problem.weight_edge is None:
            return
        flat = grad_u.view(len(grad_u), -1)
        if grads.weight_edge is not None:
            grads.weight_edge.addmm_(flat.t(), self._edge_rows(problem.edge_attr, edges))
        if grads.edge_attr is not None:
            rows = flat @ problem.weight_edge
            if self.graph.order is None:
                grads.edge_attr[edges] = rows
            else:
                grads.edge_attr.index_copy_(0, self.graph.order[edges], rows)
