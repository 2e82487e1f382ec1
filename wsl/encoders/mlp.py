"""Baseline: a multi-layer perceptron on the flat weights. It respects no symmetry."""

from __future__ import annotations

import torch
from torch import Tensor

from wsl.batch import WeightBatch
from wsl.encoders.base import Encoder, UnsupportedSpecError
from wsl.nn.mlp import mlp
from wsl.ranges import PositiveInt, Rate
from wsl.spec import WeightSpec


class FlatMLP(Encoder):
    """f(w) = MLP((w − mean) / std), on all P weights as one vector.

    The flat baseline of Navon et al., "Equivariant Architectures for Learning in Deep Weight Spaces". Statistics are
    per parameter, which an encoder that claims no symmetry may use.

    Args:
        hidden: widths of the hidden layers.
        dropout: after each hidden layer.

    Shapes: batch ``[B, P, 1]`` → ``[B, out_features]``.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, spec: WeightSpec, out_features: int, *, hidden: tuple[PositiveInt, ...] = (512, 512), dropout: Rate = 0.0
    ) -> None:
        super().__init__(spec, out_features)
        self.register_buffer("mean", torch.zeros(spec.numel))
        self.register_buffer("std", torch.ones(spec.numel))
        self.net = mlp((spec.numel, *hidden, out_features), dropout)

    def fit_statistics(self, batch: WeightBatch) -> None:
        rows = batch.values.squeeze(-1)
        self.mean.copy_(rows.mean(0))
        spread = rows.std(0, correction=0)
        self.std.copy_(torch.where(spread > 0, spread, 1.0))  # what never varied is left as it is

    def forward(self, batch: WeightBatch) -> Tensor:
        if batch.spec != self.spec:
            raise UnsupportedSpecError("a flat MLP reads one architecture only: its input is the row itself")
        return self.net((batch.values.squeeze(-1) - self.mean) / self.std)
