"""Normalisation in evaluation mode, on values ``[B, N, *positions, C]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wsl.execute.linear import aligned
from wsl.spec import SpecError


def norm(x: Tensor, weights: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> Tensor:
    """γ·(x − mean)/√(var + eps) + β; RMS: γ·x/√(mean x² + eps).

    Batch norm takes the stored mean and variance of a channel; layer and RMS norm those over the channels of one
    position, group norm over a group of channels and all positions, instance norm over the positions of one channel.
    """
    kind, eps = attributes["norm"], float(attributes.get("eps", 1e-5))
    if kind == "batch":
        mean, var = (aligned(weights[part].flatten(1).unsqueeze(1), x.dim()) for part in ("mean", "var"))
        y = (x - mean) * torch.rsqrt(var + eps)
    elif kind == "layer":
        y = _standard(x, (-1,), eps)
    elif kind == "rms":
        y = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    elif kind == "group":
        grouped = x.unflatten(-1, (int(attributes["groups"]), -1))
        y = _standard(grouped, (*range(2, x.dim() - 1), x.dim()), eps).flatten(-2)
    elif kind == "instance":
        y = _standard(x, tuple(range(2, x.dim() - 1)), eps)
    else:
        raise SpecError(f"norm of kind {kind!r} cannot be executed; known: batch, layer, rms, group, instance")
    if "gamma" in weights:
        y = y * aligned(weights["gamma"].flatten(1).unsqueeze(1), y.dim())
    if "beta" in weights:
        y = y + aligned(weights["beta"].flatten(1).unsqueeze(1), y.dim())
    return y


def _standard(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dim=dims, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim=dims, keepdim=True) + eps)
