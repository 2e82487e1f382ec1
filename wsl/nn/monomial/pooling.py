"""Pooling of invariants over neurons: means, or also spread, extremes and quantiles."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from wsl.nn.moments import VARIANCE_FLOOR
from wsl.nn.unf.layout import Layout

Pooling = Literal["mean", "rich"]
QUANTILES = (0.25, 0.5, 0.75)
#: mean, deviation, largest, and the quantiles
RICH = 3 + len(QUANTILES)


def pool(features: list[Tensor], pooling: Pooling) -> Tensor:
    """Per bundle ``[B, *sizes, F]`` → ``[B, outputs]``; a bundle without neurons is passed on as it is."""
    return torch.cat([x if x.dim() == 2 else summary(x.flatten(1, -2), pooling) for x in features], dim=1)


def outputs(layout: Layout, channels: int, pooling: Pooling) -> int:
    """The number of pooled values."""
    per_value = [RICH if bundle.labels and pooling == "rich" else 1 for bundle in layout.bundles]
    return channels * sum(n * bundle.slots for n, bundle in zip(per_value, layout.bundles, strict=True))


def summary(x: Tensor, pooling: Pooling) -> Tensor:
    """``[B, n, F]`` → ``[B, F]`` or ``[B, RICH · F]``."""
    mean = x.mean(1)
    if pooling == "mean":
        return mean
    std = (x - mean.unsqueeze(1)).square().mean(1).clamp(min=VARIANCE_FLOOR).sqrt()
    ordered = x.sort(dim=1).values
    at = torch.tensor(QUANTILES, dtype=torch.float64) * (x.shape[1] - 1)
    low, weight = at.floor().long().to(x.device), at.frac().to(x).view(1, -1, 1)
    quantiles = torch.lerp(ordered[:, low], ordered[:, (low + 1).clamp_max(x.shape[1] - 1)], weight)
    return torch.cat([mean, std, ordered[:, -1], quantiles.flatten(1)], dim=1)
