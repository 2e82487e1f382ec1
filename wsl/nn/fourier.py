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
        return self.waves(v, self.frequencies)

    def waves(self, v: Tensor, frequencies: Tensor) -> Tensor:
        """The waves of these frequencies ``[F, D]``, which sums of columns of B may be.

        One cosine gives both halves, since sin 2πt = cos 2π(t − ¼). Whole turns are dropped first: the remainder is
        exact, and small arguments are faster and lose no digits to the factor 2π."""
        with torch.autocast(v.device.type, enabled=False):  # a phase of many turns has no digits left in 16 bits
            turns = v @ torch.cat([frequencies, frequencies]).T
            turns[..., len(frequencies) :] -= 0.25
            phase = turns.frac_().mul_(2 * math.pi)
            return phase.cos() if phase.requires_grad else phase.cos_()
