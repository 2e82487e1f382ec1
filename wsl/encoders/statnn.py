"""Baseline: a multi-layer perceptron on simple statistics of each tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from wsl.batch import WeightBatch
from wsl.encoders.base import Encoder
from wsl.nn.mlp import mlp
from wsl.ranges import PositiveInt, Rate
from wsl.spec import WeightSpec

STATISTICS = 7


class StatNN(Encoder):
    """f(w) = MLP of (mean, variance, and quantiles 0, ¼, ½, ¾, 1) of every tensor's entries.

    Unterthiner et al., "Predicting Neural Network Accuracy from Weights", section 4; 7 numbers for each weight and each
    bias. Invariant to every permutation of entries within a tensor, so it also forgets which neuron is which.

    Args:
        hidden: widths of the hidden layers.
        dropout: after each hidden layer.

    Shapes: batch ``[B, P, 1]`` → ``[B, out_features]``.
    """

    symmetries = frozenset({"permutation"})
    mean: Tensor
    std: Tensor

    def __init__(
        self, spec: WeightSpec, out_features: int, *, hidden: tuple[PositiveInt, ...] = (256, 256), dropout: Rate = 0.0
    ) -> None:
        super().__init__(spec, out_features)
        features = STATISTICS * len(spec.tensors)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.net = mlp((features, *hidden, out_features), dropout)

    def fit_statistics(self, batch: WeightBatch) -> None:
        features = statistics(batch)
        self.mean.copy_(features.mean(0))
        spread = features.std(0, correction=0)
        self.std.copy_(torch.where(spread > 0, spread, 1.0))  # what never varied is left as it is

    def forward(self, batch: WeightBatch) -> Tensor:
        return self.net((statistics(batch) - self.mean) / self.std)


def statistics(batch: WeightBatch) -> Tensor:
    """Seven numbers for every virtual tensor, ``[B, 7 · tensors]``."""
    out = []
    for tensor in batch.tensors().values():
        entries = tensor.flatten(1).sort(dim=1).values  # sorted once: quantiles are look-ups, sums have one order
        at = torch.linspace(0, entries.shape[1] - 1, 5, dtype=torch.float64, device=entries.device)
        low, weight = at.floor().long(), at.frac().to(entries.dtype)
        quantiles = torch.lerp(entries[:, low], entries[:, (low + 1).clamp_max(entries.shape[1] - 1)], weight)
        moments = torch.stack([entries.mean(1), entries.var(1, correction=0)], dim=1)
        out.append(torch.cat([moments, quantiles], dim=1))
    return torch.cat(out, dim=1)
