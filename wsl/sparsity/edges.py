"""Which messages of a layer to keep: scores that need no messages, and three ways to cut.

A message is its source's features times a weight, so its norm is |w_e| ‖h_src‖: n row norms and one product per edge
give the decision that the E × C messages would give.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EdgeScores:
    """How much each edge says ``value [E]``, in units of ``reference``, one for all or ``[E]``: an edge goes when
    value < δ · reference.
    """

    value: Tensor
    reference: Tensor


def message_scores(weight: Tensor, source: Tensor, features: Tensor) -> EdgeScores:
    """GCN and GCNII: ‖w_e h_src‖ against its mean over the edges.

    Args:
        weight: ``[E]``. source: ``[E]``. features: ``[N, C]``, what is propagated.
    """
    value = weight.abs() * features.norm(dim=1)[source]
    return EdgeScores(value, value.mean())


def source_scores(source: Tensor, norms: Tensor) -> EdgeScores:
    """GraphSAGE and GIN: ‖h_src‖ against its mean over the edges. It depends on the source only: whole nodes fall
    silent.

    Args:
        source: ``[E]``. norms: ‖h_i‖ ``[N]``.
    """
    value = norms[source]
    return EdgeScores(value, value.mean())


def attention_scores(alpha: Tensor, source: Tensor, features: Tensor) -> EdgeScores:
    """GATv2: ‖α_e‖ / H against δ mean_e ‖x_src‖ / ‖x_src‖, multiplied out so that a silent source needs no division.

    Args:
        alpha: ``[E, H]`` after the softmax, without dropout. features: ``[N, H·C]``, transformed sources.
    """
    norms = features.norm(dim=1)[source]
    return EdgeScores(alpha.norm(dim=1) / alpha.shape[1] * norms, norms.mean())


def above(scores: EdgeScores, threshold: float, absolute: bool = False) -> Tensor:
    """Edges ``[E]`` bool that stay under a threshold δ.

    Relative (the official code): value ≥ δ · reference. Absolute (the paper's text): value > δ. 0 keeps all.
    """
    if threshold == 0:
        return torch.ones_like(scores.value, dtype=torch.bool)
    return scores.value > threshold if absolute else scores.value >= threshold * scores.reference


def best_in_edges(value: Tensor, target: Tensor, among: Tensor, nodes: int) -> Tensor:
    """Of each receiver the edge ``[E]`` bool with the greatest value (the first of equals).

    Args:
        value: ``[E]``. target: ``[E]``. among: ``[E]`` bool, the edges that count.
    """
    tied = greatest_into(value, target, among, nodes)
    position = torch.arange(len(value), device=value.device)
    first = position.new_full((nodes,), len(value)).scatter_reduce(
        0, target, torch.where(tied, position, len(value)), "amin"
    )
    return tied & (position == first[target])


def greatest_into(value: Tensor, target: Tensor, among: Tensor, nodes: int) -> Tensor:
    """Of each receiver the edges ``[E]`` bool with the greatest value, all of them where several are equal."""
    counted = torch.where(among, value, -torch.inf)
    most = value.new_full((nodes,), -torch.inf).scatter_reduce(0, target, counted, "amax")
    return among & (counted == most[target])


def strongest(value: Tensor, count: int, among: Tensor, first: Tensor | None = None) -> Tensor:
    """The ``count`` edges ``[E]`` bool of greatest value among some; those of ``first`` before all others.

    Equal to a threshold at the quantile, but exact where values are equal: the earlier edge stays.
    """
    order = torch.argsort(torch.where(among, value, -torch.inf), descending=True, stable=True)
    if first is not None:
        order = order[torch.argsort((first & among)[order].to(torch.uint8), descending=True, stable=True)]
    keep = torch.zeros_like(among)
    keep[order[:count]] = True
    return keep & among


def sparsity(kept: int, all_edges: int) -> float:
    """Share of the edges removed."""
    return 1.0 - kept / all_edges if all_edges else 0.0
