"""Baseline: Deep Sets, equivariant to every permutation of the entries of a tensor."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from wsl.batch import WeightBatch
from wsl.encoders.base import StandardizingEncoder
from wsl.nn.deep_set import DeepSetLinear
from wsl.nn.mlp import mlp
from wsl.nn.standardize import Standardize
from wsl.ranges import PositiveInt, Rate
from wsl.spec import WeightSpec


class DeepSet(StandardizingEncoder):
    """f(w) = MLP(means over tensors of ReLU layers y = bias + x Λ + mean(x) Γ).

    Baseline of Zhou, Finn and Harrison, "Universal Neural Functionals": like statistics of tensors, it cannot tell
    which entries share a neuron.

    Args:
        spec: what the networks share.
        out_features: number of features returned.
        channels: features of every layer.
        layers: number of layers.
        head: widths of the hidden layers of the MLP; unused when equivariant.
        dropout: in the MLP.
        reduced: layers y = bias + (x − mean(x)) Λ.
        standardize: subtract mean and divide by deviation of each tensor (see :meth:`fit_statistics`).
        equivariant: return a field over the parameters.

    Shapes: batch of ``[B, P, C_0]`` → ``[B, out_features]``, or ``[B, P, out_features]``.
    """

    symmetries: ClassVar[frozenset[str]] = frozenset({"permutation"})

    def __init__(
        self,
        spec: WeightSpec,
        out_features: int,
        *,
        channels: PositiveInt = 32,
        layers: PositiveInt = 3,
        head: tuple[PositiveInt, ...] = (512, 512),
        dropout: Rate = 0.0,
        reduced: bool = False,
        standardize: bool = True,
        equivariant: bool = False,
        in_channels: PositiveInt = 1,
    ) -> None:
        super().__init__(spec, out_features)
        self.equivariant = equivariant
        self.standardize = Standardize(spec) if standardize else None
        widths = (in_channels, *(channels,) * layers)
        self.layers = nn.ModuleList(DeepSetLinear(spec, widths[n], widths[n + 1], reduced) for n in range(layers))
        if equivariant:
            self.last: nn.Module = DeepSetLinear(spec, channels, out_features, reduced)
        else:
            self.last = mlp((len(spec.tensors) * channels, *head, out_features), dropout)

    def forward(self, batch: WeightBatch) -> Tensor:
        x = self.standardized(batch)
        for layer in self.layers:
            x = F.relu(layer(x))
        if self.equivariant:
            return self.last(x)
        layer = self.layers[-1]
        assert isinstance(layer, DeepSetLinear)
        return self.last(layer.means(x).flatten(1))
