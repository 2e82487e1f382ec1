"""Baseline: a multi-layer perceptron on simple statistics of each tensor."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.encoders.base import Encoder
from wsl.nn.mlp import mlp
from wsl.nn.tensor_statistics import STATISTICS, TensorStatistics, statistics
from wsl.ranges import PositiveInt, Rate
from wsl.spec import WeightSpec
from wsl.spec.family import SpecFamily, specs_of

__all__ = ["STATISTICS", "StatNN", "statistics"]


class StatNN(Encoder):
    """f(w) = MLP of (mean, variance, and quantiles 0, ¼, ½, ¾, 1) of every tensor's entries.

    Unterthiner et al., "Predicting Neural Network Accuracy from Weights", section 4; 7 numbers for each weight and each
    bias. Invariant to every permutation of entries within a tensor, so it also forgets which neuron is which.

    Of a mixed zoo whose architectures have tensors of the same names (networks of ReLU and of tanh) it reads the same
    7 numbers. Where they have not, it reads for the first layer, the last one and the hidden ones between (weights and
    biases apart, as :func:`wsl.nn.places.slot_names` says) the mean of the 7 numbers over their tensors and the number
    of tensors, so that networks of any depth give the same features.

    Args:
        hidden: widths of the hidden layers.
        dropout: after each hidden layer.

    Shapes: batch of B networks, C = 1 → ``[B, out_features]``.
    """

    symmetries = frozenset({"permutation"})
    reads: ClassVar[tuple[type[Any], ...]] = (WeightSpec, SpecFamily)
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        spec: WeightSpec | SpecFamily,
        out_features: int,
        *,
        hidden: tuple[PositiveInt, ...] = (256, 256),
        dropout: Rate = 0.0,
    ) -> None:
        super().__init__(spec, out_features)
        self.statistics = TensorStatistics(specs_of(spec))
        features = self.statistics.features
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.net = mlp((features, *hidden, out_features), dropout)

    def fit_statistics(self, batch: WeightBatch | MixedWeightBatch) -> None:
        features = self.statistics(batch)
        self.mean.copy_(features.mean(0))
        spread = features.std(0, correction=0)
        self.std.copy_(torch.where(spread > 0, spread, 1.0))  # what never varied is left as it is

    def forward(self, batch: WeightBatch | MixedWeightBatch) -> Tensor:
        self.check_spec(batch)
        return self.net((self.statistics(batch) - self.mean) / self.std)
