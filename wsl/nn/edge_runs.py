"""An edge list as a graph on which steps run: nodes of equal degree are a run, whose edges are a dense block.

Edges are put in the order (degree of the node that they reach, that node). The edges into n nodes of degree d then are
n·d neighbours in memory, ``[n, d, C]``, and aggregating them reduces one axis: no scatter, no loop over nodes.
There are as many runs as there are degrees, few even among many architectures.

All networks are one here: node states are ``[1, ΣN, C]``, edge states ``[1, ΣD, C]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from wsl.batch import ragged
from wsl.nn.edge_step import nothing_aggregated
from wsl.nn.moments import moments, moments_backward


@dataclass(frozen=True, eq=False)
class EdgeRuns:
    """Directed edges in runs.

    Attributes:
        order: ``[D]`` int64, where each edge stands in the caller's list.
        source, target: ``[D]`` nodes of each edge, in the order of the runs.
        nodes: ``[n]`` the nodes that edges reach, by degree.
        runs: for each degree: it, the number of its nodes, its first node (in ``nodes``) and its first edge.
        num_nodes: N.
        degree: ``[N]`` of every node.
    """

    order: Tensor
    source: Tensor
    target: Tensor
    nodes: Tensor
    runs: tuple[tuple[int, int, int, int], ...]
    num_nodes: int
    degree: Tensor

    def pieces(self, e: Tensor, values: int) -> Iterator[RunPiece]:
        """Nodes of one degree, as many as make that many values of edge states."""
        for degree, count, node, edge in self.runs:
            step = max(1, values // max(1, degree * e.shape[2]))
            for start in range(0, count, step):
                size = min(step, count - start)
                first = edge + start * degree
                yield RunPiece(
                    self.nodes[node + start : node + start + size],
                    self.source[first : first + size * degree],
                    slice(first, first + size * degree),
                    degree,
                )

    def subset(self, kept: Tensor) -> tuple[EdgeRuns, Tensor]:
        """The edges of ``kept [D]`` bool alone, in runs of their own, and their positions ``[D']`` among these."""
        rows = kept.nonzero().squeeze(-1)
        rows = rows[torch.argsort(self.target[rows], stable=True)]
        part = edge_runs(self.source[rows], self.target[rows], self.num_nodes)
        return part, rows[part.order]

    def on_edges(self, source: Tensor, target: Tensor) -> Tensor:
        """source_j + target_i on the edge from j to i: two ``[1, N, C]`` → ``[1, D, C]``."""
        return source.index_select(1, self.source) + target.index_select(1, self.target)

    def aggregate(self, messages: Tensor) -> Tensor:
        """Mean, minimum, maximum, deviation of what reaches each node: ``[1, D, C]`` → ``[1, N, 4C]``."""
        nodes = (1, self.num_nodes, messages.shape[2])
        if not self.runs:
            return nothing_aggregated(messages.new_empty(nodes))
        lengths = [degree * count for degree, count, _, _ in self.runs]
        blocks = zip(messages.split(lengths, dim=1), self.runs, strict=True)
        parts = [moments(block.unflatten(1, (count, degree))) for block, (degree, count, _, _) in blocks]
        found = torch.cat(parts, dim=1)  # of another type than the messages under autocast on a GPU
        return nothing_aggregated(found.new_empty(nodes)).index_copy(1, self.nodes, found)


@dataclass(frozen=True, eq=False)
class RunPiece:
    """Nodes ``[n]`` of one degree and the edges that reach them, as a :class:`~wsl.nn.edge_step.Piece`."""

    nodes: Tensor
    source: Tensor
    part: slice
    degree: int

    def edges(self, e: Tensor) -> Tensor:
        return e[:, self.part]

    def sum_on_edges(self, source: Tensor, target: Tensor) -> Tensor:
        out = source[0].index_select(0, self.source)
        self._dense(out).add_(target[0].index_select(0, self.nodes).unsqueeze(1))
        return out.unsqueeze(0)

    def add_node_grads(self, grad: Tensor, source: Tensor, target: Tensor) -> None:
        target[0].index_add_(0, self.nodes, self._dense(grad[0]).sum(1))
        source[0].index_add_(0, self.source, grad[0])

    def aggregate(self, messages: Tensor, h: Tensor) -> None:
        h[0].index_copy_(0, self.nodes, moments(self._dense(messages[0]).unsqueeze(0))[0])

    def aggregate_backward(self, messages: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        here, grad = (v[0].index_select(0, self.nodes).unsqueeze(0) for v in (h, grad_h))
        return moments_backward(self._dense(messages[0]).unsqueeze(0), here, grad).flatten(1, 2)

    def _dense(self, edges: Tensor) -> Tensor:
        """``[n·degree, C]`` as ``[n, degree, C]``."""
        return edges.unflatten(0, (len(self.nodes), self.degree))


def edge_runs(source: Tensor, target: Tensor, num_nodes: int) -> EdgeRuns:
    """Sort edges source → target, ``[D]`` int64 each, into runs; ``target`` must ascend."""
    degree = target.bincount(minlength=num_nodes)
    first = degree.cumsum(0) - degree
    by_degree, nodes = degree.sort(stable=True)
    reached = int((degree == 0).sum())
    by_degree, nodes = by_degree[reached:], nodes[reached:]
    order, _, starts = ragged(first[nodes], by_degree)
    degrees, counts = by_degree.unique_consecutive(return_counts=True)
    node = counts.cumsum(0) - counts
    columns = (degrees, counts, node, starts[node] if len(node) else node)
    runs = tuple(zip(*(c.tolist() for c in columns), strict=True))
    return EdgeRuns(order, source[order], target[order], nodes, runs, num_nodes, degree)
