"""Networks with normal weights, and how far two results are apart."""

from __future__ import annotations

import torch
from torch import Tensor

from wsl.batch import WeightBatch
from wsl.spec import WeightSpec


def networks(spec: WeightSpec, size: int = 5, scale: float = 0.5) -> WeightBatch:
    return WeightBatch(spec, torch.randn(size, spec.numel, 1, dtype=torch.float64) * scale)


def difference(after: Tensor, before: Tensor) -> float:
    """Largest difference, relative to the largest value before."""
    return float((after - before).detach().abs().max() / before.detach().abs().max())
