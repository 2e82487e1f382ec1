"""Baseline: run the input network on learned inputs and read nothing but its outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsl.batch import WeightBatch
from wsl.encoders.base import Encoder, UnsupportedSpecError
from wsl.execute import execute
from wsl.nn.mlp import mlp
from wsl.ranges import PositiveInt, Rate
from wsl.spec import WeightSpec


class ProbeMLP(Encoder):
    """f(w) = MLP(LayerNorm(y_w(p_1), …, y_w(p_M))) with learned probe inputs p that start uniform in [−1, 1]^d.

    The output-only part of the probe features of Kofinas et al., "Graph Neural Networks for Learning Equivariant
    Representations of Neural Networks", section 3: it knows what the network does, not how. Hence invariant to every
    symmetry of the network.

    Args:
        probes: M, the number of learned inputs.
        hidden: widths of the hidden layers.
        dropout: after each hidden layer.

    Shapes: batch ``[B, P, 1]`` → ``[B, out_features]``.
    """

    symmetries = frozenset({"permutation", "scaling", "sign", "phase"})

    def __init__(
        self,
        spec: WeightSpec,
        out_features: int,
        *,
        probes: PositiveInt = 64,
        hidden: tuple[PositiveInt, ...] = (256, 256),
        dropout: Rate = 0.0,
    ) -> None:
        super().__init__(spec, out_features)
        inputs, outputs = spec.groups_of_kind("input"), spec.groups_of_kind("output")
        if len(inputs) != 1 or len(outputs) != 1:
            raise UnsupportedSpecError(
                f"probing takes one input and one output group, this spec has {len(inputs)} and {len(outputs)}"
            )
        self.probes = nn.Parameter(torch.empty(probes, spec.size_of(inputs[0].name)).uniform_(-1, 1))
        self.norm = nn.LayerNorm(probes * spec.size_of(outputs[0].name), elementwise_affine=False)
        self.net = mlp((probes * spec.size_of(outputs[0].name), *hidden, out_features), dropout)

    def forward(self, batch: WeightBatch) -> Tensor:
        return self.net(self.norm(execute(batch, self.probes).flatten(1)))
