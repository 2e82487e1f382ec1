"""The passes over ``[K, H, C]`` that edge-list and block form share; as they are, or fused by ``torch.compile``."""

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
    """``gu = gl · a ⊙ σ'(u)``, and ``gl σ(u)``, whose sum is da; both ``[K, H, C]``."""
    gl = grad_logit.unsqueeze(-1)
    grad_u = score.backward(gl * att, u)
    return grad_u, score.value(u).mul_(gl)


def edge_gradients(
    score: Score,
    att: Tensor,
    alpha: Tensor,
    keep: Tensor | None,
    grad_alpha: Tensor | None,
    mean: Tensor,
    upstream: Tensor,
    key: Tensor,
    u: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward pass of K edges.

    Args:
        alpha, keep, grad_alpha: ``[K, H]``. mean: D of the targets ``[K, H]``. upstream: G of the targets,
            key: xl of the sources, ``[K, H, C]``.

    Returns:
        gu, what the edge gives to dxl of its source, and ``gl σ(u)``, whose sum is da; each ``[K, H, C]``.
    """
    gain = (key * upstream).sum(-1)
    gain = gain if keep is None else gain.mul_(keep)
    gain = gain if grad_alpha is None else gain.add_(grad_alpha)
    grad_u, grad_att = score_gradients(score, att, gain.sub_(mean).mul_(alpha), u)
    message = alpha if keep is None else alpha * keep
    return grad_u, (upstream * message.unsqueeze(-1)).add_(grad_u), grad_att


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


def fused(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    """``function``, compiled for any K but for each H, C and score anew if ``compiled`` (needs a C++ compiler)."""
    if not compiled:
        return function

    def call(*args: Any) -> Any:
        for tensor in args:
            if isinstance(tensor, Tensor) and tensor is not args[1]:  # args[1] is att, the only one without K
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return _compiled(function)(*args)

    return call
