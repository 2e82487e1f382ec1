"""Diagnostics that any model has: D1 to D4, D13 and D14. NaN stands for "not applicable"."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TINY = 1e-12


def gradient_rms(gradient: Tensor) -> float:
    """D1: ‖dp‖ / √numel."""
    return float(gradient.norm()) / math.sqrt(max(1, gradient.numel()))


def relative_gradient(gradient: Tensor, parameter: Tensor) -> float:
    """D2: ‖dp‖ / ‖p‖; NaN for a parameter that is zero, as biases are at the start."""
    size = float(parameter.norm())
    return float(gradient.norm()) / size if size > TINY else math.nan


def relative_update(before: Tensor, after: Tensor) -> float:
    """D3: ‖p_new − p_old‖ / ‖p_old‖, the step really taken; NaN for a parameter that was zero."""
    size = float(before.norm())
    return float((after - before).norm()) / size if size > TINY else math.nan


def depth_factor(norms: Sequence[float]) -> float:
    """D4: κ = (g_1 / g_L)^(1 / (L − 1)), by how much the gradient grows per layer on its way to the input.

    Args:
        norms: of one parameter of each layer, the first layer's first.

    Returns:
        κ; NaN with fewer than two layers or a last layer without gradient.
    """
    if len(norms) < 2 or norms[-1] <= 0.0:
        return math.nan
    return (norms[0] / norms[-1]) ** (1.0 / (len(norms) - 1))


def jacobian_gain(output: Tensor, source: Tensor, generator: torch.Generator, samples: int = 4) -> float:
    """D13: √(E ‖J^T v‖² / ‖v‖²) with J = d output / d source, over random signs v.

    By how much a layer scales a gradient that passes through it, on average over directions. The graph is kept.

    Returns:
        NaN if ``output`` does not depend on ``source`` through the graph.
    """
    if not (output.requires_grad and source.requires_grad):
        return math.nan
    total = 0.0
    for _ in range(samples):
        signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
        (pulled,) = torch.autograd.grad(output, source, signs, retain_graph=True, allow_unused=True)
        if pulled is None:
            return math.nan
        total += float(pulled.double().square().sum()) / output.numel()
    return math.sqrt(total / samples)


def direction(gradients: Sequence[Tensor], previous: Sequence[Tensor]) -> float:
    """D14: cosine between the gradients of two steps, all parameters as one vector; NaN if one of them is zero."""
    inner = sum(float((g * h).sum()) for g, h in zip(gradients, previous, strict=True))
    sizes = [math.sqrt(sum(float(g.square().sum()) for g in given)) for given in (gradients, previous)]
    return inner / (sizes[0] * sizes[1]) if min(sizes) > 0.0 else math.nan
