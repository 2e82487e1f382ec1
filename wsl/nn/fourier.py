"""Gaussian Fourier features: from a scalar that a linear map can hardly resolve to many waves of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    r"""Fixed random waves of the input.

    .. math:: v ↦ [\cos 2πBv,\ \sin 2πBv], \qquad B_{fk} ∼ N(0, σ²)

    Source: Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains";
    B is a buffer: it does not learn.

    Args:
        in_features: size D of v.
        features: F, rows of B.
        std: σ.

    Shapes: ``[…, D]`` → ``[…, 2F]``.
    """

    frequencies: Tensor

    def __init__(self, in_features: int, features: int, std: float) -> None:
        super().__init__()
        self.out_features = 2 * features
        self.register_buffer("frequencies", torch.randn(features, in_features) * std)

    def forward(self, v: Tensor) -> Tensor:
        phase = (2 * math.pi) * (v @ self.frequencies.T)
        return torch.cat([phase.cos(), phase.sin()], dim=-1)
