"""What to keep of the edges of many graphs at once, each graph by itself: no statistic crosses from one to another.

Edges have a number of the group that they are compared in, and nothing depends on the order of edges: of equal edges
all stay. So a network keeps the same edges alone and in any batch, and its neurons may be numbered in any way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsl.sparsity.edges import EdgeScores


def compared_within(value: Tensor, basis: Tensor, group: Tensor, groups: int, counted: Tensor) -> EdgeScores:
    """Each edge against the mean of ``basis`` in its group.

    Args:
        value, basis: ``[E]``. group: ``[E]`` int64 below ``groups``. counted: ``[E]`` bool, the edges in the mean.
    """
    number = counted.to(basis)
    sums = basis.new_zeros(2, groups).index_add(1, group, torch.stack([basis * number, number]))
    return EdgeScores(value, (sums[0] / sums[1].clamp_min(1.0))[group])


def relative(scores: EdgeScores) -> Tensor:
    """value / reference ``[E]``; where all of a group is silent, 1: no edge of it is less than another."""
    silent = scores.reference == 0
    return torch.where(silent, 1.0, scores.value / scores.reference.masked_fill(silent, 1.0))


def strongest_of_each(
    value: Tensor, owner: Tensor, count: Tensor, among: Tensor, first: Tensor | None = None
) -> Tensor:
    """Of each owner's edges among some the ``count`` of greatest value ``[E]`` bool, and those equal to the last one.

    Args:
        value, owner: ``[E]``, owner int64 below G. count: ``[G]`` int64. among: ``[E]`` bool.
        first: ``[E]`` bool, edges that come before all others.
    """
    level = torch.zeros_like(owner) if first is None else (first & among).long()
    order = torch.argsort(torch.where(among, value, -torch.inf), descending=True, stable=True)
    for key, descending in ((level, True), (owner, False)):
        order = order[torch.argsort(key[order], descending=descending, stable=True)]
    sizes = torch.bincount(owner, minlength=len(count))
    place = torch.arange(len(owner), device=owner.device) - (sizes.cumsum(0) - sizes)[owner[order]]
    keep = torch.zeros_like(among)
    keep[order] = place < count[owner[order]]
    keep &= among
    # the last one kept: of the least level that is there, the least value
    none = torch.full_like(count, 2)
    last_level = none.scatter_reduce(0, owner, torch.where(keep, level, 2), "amin")
    is_last = keep & (level == last_level[owner])
    last = value.new_full((len(count),), torch.inf)
    last = last.scatter_reduce(0, owner, torch.where(is_last, value, torch.inf), "amin")
    return keep | (among & (level == last_level[owner]) & (value >= last[owner]))
