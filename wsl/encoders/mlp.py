"""Baseline: a multi-layer perceptron on the flat weights. It respects no symmetry."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.encoders.base import Encoder, UnsupportedSpecError
from wsl.nn.mlp import mlp
from wsl.ranges import PositiveInt, Rate
from wsl.spec import WeightSpec
from wsl.spec.family import SpecFamily, specs_of


class FlatMLP(Encoder):
    """f(w) = MLP((w − mean) / std), on all P weights as one vector.

    The flat baseline of Navon et al., "Equivariant Architectures for Learning in Deep Weight Spaces". Statistics are
    per parameter, which an encoder that claims no symmetry may use. Of a mixed zoo it reads architectures that store
    the same tensors, such as networks of ReLU and of tanh; which of the two a network has is not told to it.

    Args:
        hidden: widths of the hidden layers.
        dropout: after each hidden layer.

    Shapes: batch ``[B, P, 1]`` → ``[B, out_features]``.

    Raises:
        UnsupportedSpecError: if the architectures of a family do not store the same tensors.
    """

    reads: ClassVar[tuple[type[Any], ...]] = (WeightSpec, SpecFamily)
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        spec: WeightSpec | SpecFamily,
        out_features: int,
        *,
        hidden: tuple[PositiveInt, ...] = (512, 512),
        dropout: Rate = 0.0,
    ) -> None:
        super().__init__(spec, out_features)
        if len({member.stored for member in specs_of(spec)}) != 1:
            raise UnsupportedSpecError(
                "a flat MLP reads rows that store the same tensors, and this zoo's architectures differ in theirs; "
                "choose them with data.where"
            )
        numel = specs_of(spec)[0].numel
        self.register_buffer("mean", torch.zeros(numel))
        self.register_buffer("std", torch.ones(numel))
        self.net = mlp((numel, *hidden, out_features), dropout)

    def fit_statistics(self, batch: WeightBatch | MixedWeightBatch) -> None:
        rows = self._rows(batch)
        self.mean.copy_(rows.mean(0))
        spread = rows.std(0, correction=0)
        self.std.copy_(torch.where(spread > 0, spread, 1.0))  # what never varied is left as it is

    def forward(self, batch: WeightBatch | MixedWeightBatch) -> Tensor:
        return self.net((self._rows(batch) - self.mean) / self.std)

    def _rows(self, batch: WeightBatch | MixedWeightBatch) -> Tensor:
        self.check_spec(batch)
        return (batch.values if isinstance(batch, WeightBatch) else batch.stacked()).squeeze(-1)
