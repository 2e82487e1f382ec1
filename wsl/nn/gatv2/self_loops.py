"""Self loops as PyTorch Geometric appends them: existing ones leave, one per node follows at the end of the list."""

from __future__ import annotations

import torch
from torch import Tensor

_REDUCTIONS = {"add": "sum", "sum": "sum", "mean": "mean", "min": "amin", "max": "amax", "mul": "prod"}


def with_self_loops(
    edge_index: Tensor, edge_attr: Tensor | None, num_nodes: int, fill_value: float | Tensor | str = "mean"
) -> tuple[Tensor, Tensor | None]:
    """``edge_index [2, E']`` with exactly one loop per node, and its edge features.

    Args:
        edge_index: ``[2, E]``. edge_attr: ``[E, D]`` or None.
        fill_value: features of the loops: a number, a tensor of shape ``[D]``, or how to reduce the features of a
            node's incoming edges ("add", "mean", "min", "max", "mul"); differentiable in them.

    Raises:
        ValueError: for an unknown reduction.
    """
    edge_index, edge_attr = without_self_loops(edge_index, edge_attr)
    nodes = torch.arange(num_nodes, device=edge_index.device, dtype=edge_index.dtype)
    looped = torch.cat([edge_index, nodes.expand(2, -1)], dim=1)
    if edge_attr is None:
        return looped, None
    return looped, torch.cat([edge_attr, _fill(edge_index[1], edge_attr, num_nodes, fill_value)])


def without_self_loops(edge_index: Tensor, edge_attr: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The edges between different nodes, and their features."""
    kept = edge_index[0] != edge_index[1]
    return edge_index[:, kept], None if edge_attr is None else edge_attr[kept]


def _fill(target: Tensor, edge_attr: Tensor, num_nodes: int, fill_value: float | Tensor | str) -> Tensor:
    shape = (num_nodes, edge_attr.shape[1])
    if isinstance(fill_value, Tensor):
        return fill_value.to(edge_attr).expand(shape)
    if not isinstance(fill_value, str):
        return edge_attr.new_full(shape, fill_value)
    if fill_value not in _REDUCTIONS:
        raise ValueError(f"fill_value {fill_value!r} is no reduction; known: {sorted(_REDUCTIONS)}")
    neutral = edge_attr.new_full(shape, 1.0 if fill_value == "mul" else 0.0)
    index = target.long().unsqueeze(-1).expand_as(edge_attr)
    return neutral.scatter_reduce(0, index, edge_attr, _REDUCTIONS[fill_value], include_self=False)
