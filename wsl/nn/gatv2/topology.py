"""The edges that a layer uses, worked out once per graph: self loops replaced or removed, direction, order.

Self loops as PyTorch Geometric has them: existing ones leave, one per node follows at the end of the list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from wsl.nn.gatv2.graph import EdgeGraph

Loops = Literal["keep", "remove", "replace"]

_REDUCTIONS = {"add": "sum", "sum": "sum", "mean": "mean", "min": "amin", "max": "amax", "mul": "prod"}


@dataclass(frozen=True, eq=False)
class Topology:
    """The edges used, as a list and sorted.

    Attributes:
        edge_index: ``[2, E']``: the given edges (without loops unless kept), then ``num_loops`` added loops.
        graph: the same edges, sorted, in the direction of the messages.
        kept: ``[E]`` bool, the given edges that are used; None for all.
        num_loops: loops added at the end.
    """

    edge_index: Tensor
    graph: EdgeGraph
    kept: Tensor | None
    num_loops: int

    def edge_features(self, edge_attr: Tensor, fill_value: float | Tensor | str) -> Tensor:
        """``[E, D]`` of the given edges → ``[E', D]`` of those used; see :func:`loop_features`.

        Raises:
            ValueError: if the number of rows is not that of the edges given.
        """
        given = self.edge_index.shape[1] - self.num_loops if self.kept is None else len(self.kept)
        if len(edge_attr) != given:
            raise ValueError(f"edge_attr has {len(edge_attr)} rows, edge_index names {given} edges")
        edge_attr = edge_attr if self.kept is None else edge_attr[self.kept]
        if not self.num_loops:
            return edge_attr
        target = self.edge_index[1, : len(edge_attr)]
        return torch.cat([edge_attr, loop_features(target, edge_attr, self.num_loops, fill_value)])


_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def topology(edge_index: Tensor, num_sources: int, num_targets: int, loops: Loops, reverse: bool = False) -> Topology:
    """The topology of ``edge_index [2, E]``, remembered while that tensor lives and is not written to.

    Args:
        loops: "replace" gives node i of the sources a loop to node i of the targets, as far as both exist.
        reverse: messages run from ``edge_index[1]`` to ``edge_index[0]``.
    """
    if edge_index.is_inference():  # has no version counter, so a write would go unnoticed
        return _build(edge_index, num_sources, num_targets, loops, reverse)
    key = (num_sources, num_targets, loops, reverse)
    version, known = _known.get(edge_index, (None, None))
    if known is None or version != edge_index._version:
        known = {}
        _known[edge_index] = (edge_index._version, known)
    if key not in known:
        known[key] = _build(edge_index.detach().clone(), *key)  # the key must not be held by its own value
    return known[key]


def _build(edge_index: Tensor, num_sources: int, num_targets: int, loops: Loops, reverse: bool) -> Topology:
    kept, num_loops = None, 0
    if loops != "keep":
        kept = edge_index[0] != edge_index[1]
        edge_index = edge_index[:, kept]
    if loops == "replace":
        num_loops = min(num_sources, num_targets)
        nodes = torch.arange(num_loops, device=edge_index.device, dtype=edge_index.dtype)
        edge_index = torch.cat([edge_index, nodes.expand(2, -1)], dim=1)
    directed = edge_index.flip(0) if reverse else edge_index
    return Topology(edge_index, EdgeGraph.from_edge_index(directed, num_sources, num_targets), kept, num_loops)


def loop_features(target: Tensor, edge_attr: Tensor, num_loops: int, fill_value: float | Tensor | str) -> Tensor:
    """Edge features ``[num_loops, D]`` of added loops.

    Args:
        target: ``[E]``, the second row of the edges without loops. edge_attr: ``[E, D]``.
        fill_value: a number, a tensor ``[D]``, or how to reduce the features of the edges into a node ("add", "mean",
            "min", "max", "mul"); differentiable in them.

    Raises:
        ValueError: for an unknown reduction.
    """
    shape = (num_loops, edge_attr.shape[1])
    if isinstance(fill_value, Tensor):
        return fill_value.to(edge_attr).expand(shape)
    if not isinstance(fill_value, str):
        return edge_attr.new_full(shape, fill_value)
    if fill_value not in _REDUCTIONS:
        raise ValueError(f"fill_value {fill_value!r} is no reduction; known: {sorted(_REDUCTIONS)}")
    inside = target < num_loops  # a bipartite graph may have more targets than loops
    target, edge_attr = target[inside], edge_attr[inside]
    neutral = edge_attr.new_full(shape, 1.0 if fill_value == "mul" else 0.0)
    index = target.long().unsqueeze(-1).expand_as(edge_attr)
    return neutral.scatter_reduce(0, index, edge_attr, _REDUCTIONS[fill_value], include_self=False)
