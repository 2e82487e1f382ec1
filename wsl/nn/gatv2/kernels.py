"""The passes over ``[K, H, C]`` that the forms share; as they are, or fused by ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from wsl.nn.gatv2.scores import Score


def logits(score: Score, att: Tensor, u: Tensor) -> Tensor:
    """``a · σ(u)``, ``[K, H]``."""
    return score.value(u).mul_(att).sum(-1)


def score_gradients(score: Score, att: Tensor, grad_logit: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """``gu = gl · a ⊙ σ'(u)`` ``[K, H, C]`` and ``da = Σ gl σ(u)`` ``[H, C]``."""
    gl = grad_logit.unsqueeze(-1)
    grad_u = score.backward(gl * att, u)
    return grad_u, score.value(u).mul_(gl).sum(0)


def edge_scores(xl: Tensor, xr: Tensor, source: Tensor, target: Tensor, edge: Tensor | None) -> tuple[Tensor, Tensor]:
    """xl of the sources and u of K edges, ``[K, H, C]``; ``edge``: v or None."""
    key = xl.index_select(0, source)
    u = xr.index_select(0, target).add_(key)
    return key, u if edge is None else u.add_(edge)


def edge_logits(
    score: Score, att: Tensor, xl: Tensor, xr: Tensor, source: Tensor, target: Tensor, edge: Tensor | None
) -> tuple[Tensor, Tensor]:
    """xl of the sources ``[K, H, C]`` and the logits ``[K, H]`` of K edges."""
    key, u = edge_scores(xl, xr, source, target, edge)
    return key, logits(score, att, u)


def edge_gradients(
    score: Score,
    att: Tensor,
    xl: Tensor,
    xr: Tensor,
    source: Tensor,
    target: Tensor,
    edge: Tensor | None,
    grad: Tensor,
    mean: Tensor,
    alpha: Tensor,
    keep: Tensor | None,
    grad_alpha: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward pass of K edges.

    Args:
        grad, mean: G ``[N, H, C]`` and D ``[N, H]`` of all targets. alpha, keep, grad_alpha: ``[K, H]``.

    Returns:
        gu and what each edge gives to dxl of its source, ``[K, H, C]``; the edges' da ``[H, C]``.
    """
    key, u = edge_scores(xl, xr, source, target, edge)
    upstream = grad.index_select(0, target)
    gain = key.mul_(upstream).sum(-1)
    gain = gain if keep is None else gain.mul_(keep)
    gain = gain if grad_alpha is None else gain.add_(grad_alpha)
    grad_u, grad_att = score_gradients(score, att, gain.sub_(mean.index_select(0, target)).mul_(alpha), u)
    message = alpha if keep is None else alpha * keep
    return grad_u, upstream.mul_(message.unsqueeze(-1)).add_(grad_u), grad_att


@cache
def _compiled(function: Callable[..., Any], narrow: bool) -> Callable[..., Any]:
    halve = narrow and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return torch.compile(function, options={"cpp.simdlen": 256} if halve else None)


def fused(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    """``function``, if ``compiled`` for any number of nodes and edges but anew for each H, C and score.

    Needs a C++ compiler. With H and C fixed the innermost loops have known lengths, which is what makes them fast;
    where C is shorter than a wide vector register, half of one is used.
    """
    if not compiled:
        return function

    def call(score: Score, att: Tensor, *args: Tensor | None) -> Any:
        for tensor in args:
            if tensor is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return _compiled(function, att.shape[1] * att.element_size() < 64)(score, att, *args)

    return call
