"""Dense-block form: networks of one architecture, whose every connection is an all-to-all block of edges.

Nothing is gathered or scattered. The three sums over neighbours are batched matrix products per head; only the score
and its derivative need a pass over ``[b, O, I, H, C]``, taken for a few networks at a time so that it stays in cache.

    o = α xl      gα = G xl^T      M = α^T G      dxr, dxl += sums of gu over one axis
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from wsl.graphs.blocks import Block, BlockGraph
from wsl.nn.gatv2.edge_list import floats_per_chunk
from wsl.nn.gatv2.graph import EdgeGraph
from wsl.nn.gatv2.kernels import fused, logits, score_gradients
from wsl.nn.gatv2.problem import Gradients, Problem, Wanted

NETWORKS = 2
"""Times larger chunks of networks than of edges: a block's few operations pay more for each call than for the cache."""


@dataclass(frozen=True)
class DenseBlocksForm:
    """Attention over ``batch`` networks that share ``graph``.

    Nodes are ``[B·N]``, network after network; edges ``[B·E]`` in the order of the graph's blocks, each ``[O, I]``.
    ``chunk``: networks at a time (None: as many as fit the cache).
    """

    graph: BlockGraph
    batch: int
    chunk: int | None = None
    compiled: bool = False

    @property
    def num_edges(self) -> int:
        return self.batch * self.graph.num_edges

    def to_caller(self, per_edge: Tensor) -> Tensor:
        return per_edge

    def sorted_edges(self, device: torch.device) -> EdgeGraph:
        source, target = (end.to(device) for end in self.graph.ends(self.batch))
        return EdgeGraph.from_edge_index(torch.stack([source, target]), self.batch * self.graph.num_nodes)

    def forward(self, problem: Problem) -> tuple[Tensor, Tensor]:
        out = torch.zeros_like(problem.xr)
        alpha = problem.xl.new_empty(self.num_edges, problem.heads)
        score_of = fused(logits, self.compiled)
        for graphs in self._graph_chunks(problem):
            part = self._part(problem, graphs)
            scores, sums = self._nodes(alpha, graphs), self._nodes(out, graphs)
            for block, rows in self._pieces(part):
                u = _scores(part, block, rows)
                block.of(scores)[:, rows] = score_of(problem.score, problem.att, u.flatten(0, 2)).view(u.shape[:-1])
            for nodes, blocks in zip(self.graph.node_sets, self.graph.incoming, strict=True):
                weights = _softmax_([_target_first(block, scores) for block in blocks])
                for block, weight in zip(blocks, weights, strict=True):
                    kept = weight if part.keep is None else weight * _target_first(block, part.keep)
                    nodes.of(sums).add_(torch.einsum("btsh,bshc->bthc", kept, block.source.of(part.xl)))
        return out, alpha

    def backward(
        self, problem: Problem, alpha: Tensor, out: Tensor, grad: Tensor, grad_alpha: Tensor | None, wanted: Wanted
    ) -> Gradients:
        grads = Gradients(torch.zeros_like(problem.xl), torch.zeros_like(problem.xr), torch.zeros_like(problem.att))
        if wanted.edge_attr and problem.edge_attr is not None:
            grads.edge_attr = torch.empty_like(problem.edge_attr)
        if wanted.weight_edge and problem.weight_edge is not None:
            grads.weight_edge = torch.zeros_like(problem.weight_edge)
        gradients_of = fused(score_gradients, self.compiled)
        for graphs in self._graph_chunks(problem):
            part = self._part(problem, graphs)
            upstream_alpha = None if grad_alpha is None else self._nodes(grad_alpha, graphs)
            into = Gradients(self._nodes(grads.xl, graphs), self._nodes(grads.xr, graphs), grads.att)
            into.weight_edge = grads.weight_edge
            into.edge_attr = None if grads.edge_attr is None else self._nodes(grads.edge_attr, graphs)
            grad_logit = self._softmax_backward(
                part,
                self._nodes(alpha, graphs),
                self._nodes(out, graphs),
                self._nodes(grad, graphs),
                upstream_alpha,
                into,
            )
            for block, rows in self._pieces(part):
                _score_backward(part, block, rows, block.of(grad_logit)[:, rows], into, gradients_of)
        return grads

    def _softmax_backward(
        self, part: Problem, alpha: Tensor, out: Tensor, grad: Tensor, grad_alpha: Tensor | None, into: Gradients
    ) -> Tensor:
        """gl ``[b, E, H]``; adds the messages' share M to ``into.xl``."""
        grad_logit = torch.empty_like(alpha)
        for nodes, blocks in zip(self.graph.node_sets, self.graph.incoming, strict=True):
            upstream = nodes.of(grad)
            mean = (upstream * nodes.of(out)).sum(-1).unsqueeze(2)  # D [b, T, 1, H]
            if grad_alpha is not None:
                for block in blocks:
                    products = _target_first(block, alpha) * _target_first(block, grad_alpha)
                    mean = mean + products.sum(2, keepdim=True)
            for block in blocks:
                weight = _target_first(block, alpha)
                gain = torch.einsum("bthc,bshc->btsh", upstream, block.source.of(part.xl))
                kept = weight
                if part.keep is not None:
                    keep = _target_first(block, part.keep)
                    gain, kept = gain * keep, weight * keep
                if grad_alpha is not None:
                    gain = gain + _target_first(block, grad_alpha)
                torch.mul(gain - mean, weight, out=_target_first(block, grad_logit))
                block.source.of(into.xl).add_(torch.einsum("btsh,bthc->bshc", kept, upstream))
        return grad_logit

    def _nodes(self, rows: Tensor, graphs: slice) -> Tensor:
        """``[B·n, …]`` → ``[b, n, …]`` of a chunk of networks."""
        return rows.unflatten(0, (self.batch, -1))[graphs]

    def _part(self, problem: Problem, graphs: slice) -> Problem:
        def cut(rows: Tensor | None) -> Tensor | None:
            return None if rows is None else self._nodes(rows, graphs)

        xl, xr = self._nodes(problem.xl, graphs), self._nodes(problem.xr, graphs)
        return replace(problem, xl=xl, xr=xr, edge_attr=cut(problem.edge_attr), keep=cut(problem.keep))

    def _graph_chunks(self, problem: Problem) -> Iterator[slice]:
        largest = max((block.numel for block in self.graph.blocks), default=1) * problem.att.numel()
        size = self.chunk or max(1, NETWORKS * floats_per_chunk(problem.xl) // max(1, largest))
        for start in range(0, self.batch, size):
            yield slice(start, min(start + size, self.batch))

    def _pieces(self, part: Problem) -> Iterator[tuple[Block, slice]]:
        """Blocks, those too large for the cache in pieces of rows."""
        for block in self.graph.blocks:
            rows, columns = block.shape
            size = max(1, NETWORKS * floats_per_chunk(part.xl) // max(1, columns * part.att.numel() * len(part.xl)))
            for start in range(0, rows, size):
                yield block, slice(start, min(start + size, rows))


def _target_first(block: Block, per_edge: Tensor) -> Tensor:
    """``[b, E, H]`` → the block's part as ``[b, T, S, H]``, a view."""
    part = block.of(per_edge)
    return part.transpose(1, 2) if block.reverse else part


def _softmax_(logits: list[Tensor]) -> list[Tensor]:
    """Softmax in place over axis 2 of all blocks ``[b, T, S_k, H]`` together."""
    if not logits:
        return logits
    largest = torch.stack([block.amax(2, keepdim=True) for block in logits]).amax(0)
    total = sum(block.sub_(largest).exp_().sum(2, keepdim=True) for block in logits)
    return [block.div_(total) for block in logits]


def _scores(part: Problem, block: Block, rows: slice) -> Tensor:
    """u ``[b, o, I, H, C]`` of some rows of a block."""
    source, target = _ends(block, part.xl, part.xr, rows)
    u = target + source
    if part.edge_attr is not None and part.weight_edge is not None:
        features = block.of(part.edge_attr)[:, rows].flatten(0, 2)
        u.view(len(features), -1).addmm_(features, part.weight_edge.t())
    return u


def _ends(block: Block, at_sources: Tensor, at_targets: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """States of both ends of some rows, broadcasting to ``[b, o, I, …]``."""
    if block.reverse:  # rows are sources
        return block.source.of(at_sources)[:, rows].unsqueeze(2), block.target.of(at_targets).unsqueeze(1)
    return block.source.of(at_sources).unsqueeze(1), block.target.of(at_targets)[:, rows].unsqueeze(2)


def _score_backward(
    part: Problem, block: Block, rows: slice, grad_logit: Tensor, into: Gradients, gradients_of: Callable[..., Any]
) -> None:
    u = _scores(part, block, rows)
    flat, grad_att = gradients_of(part.score, part.att, grad_logit.flatten(0, 2), u.flatten(0, 2))
    into.att += grad_att
    grad_u = flat.view(u.shape)
    source_axis = 1 if block.reverse else 2
    source, target = _ends(block, into.xl, into.xr, rows)
    target += grad_u.sum(source_axis, keepdim=True)
    source += grad_u.sum(3 - source_axis, keepdim=True)
    if part.edge_attr is None or part.weight_edge is None:
        return
    flat = flat.flatten(1)
    if into.weight_edge is not None:
        into.weight_edge.addmm_(flat.t(), block.of(part.edge_attr)[:, rows].flatten(0, 2))
    if into.edge_attr is not None:
        block.of(into.edge_attr)[:, rows] = (flat @ part.weight_edge).view(*grad_u.shape[:3], -1)
