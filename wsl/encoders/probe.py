"""Baseline: run the input network on learned inputs and read nothing but its outputs."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.encoders.base import Encoder, UnsupportedSpecError
from wsl.execute import execute
from wsl.nn.mlp import mlp
from wsl.nn.probes import input_shape
from wsl.ranges import PositiveInt, Rate
from wsl.spec import SpecError, WeightSpec
from wsl.spec.family import SpecFamily, specs_of


class ProbeMLP(Encoder):
    """f(w) = MLP(LayerNorm(y_w(p_1), …, y_w(p_M))) with learned probe inputs p that start uniform in [−1, 1].

    The output-only part of the probe features of Kofinas et al., "Graph Neural Networks for Learning Equivariant
    Representations of Neural Networks", section 3: it knows what the network does, not how. Hence invariant to every
    symmetry of the network, and free to read a zoo of many architectures that answer the same inputs alike.

    Args:
        probes: M, the number of learned inputs.
        probe_size: height and width of probe images, for convolutional networks.
        hidden: widths of the hidden layers.
        dropout: after each hidden layer.

    Shapes: batch of B networks, C = 1 → ``[B, out_features]``.

    Raises:
        UnsupportedSpecError: if networks cannot be run, have several inputs or outputs, or differ in their shapes.
    """

    symmetries = frozenset({"permutation", "scaling", "sign", "phase"})
    reads: ClassVar[tuple[type[Any], ...]] = (WeightSpec, SpecFamily)

    def __init__(
        self,
        spec: WeightSpec | SpecFamily,
        out_features: int,
        *,
        probes: PositiveInt = 64,
        probe_size: PositiveInt = 32,
        hidden: tuple[PositiveInt, ...] = (256, 256),
        dropout: Rate = 0.0,
    ) -> None:
        super().__init__(spec, out_features)
        specs = specs_of(spec)
        try:
            self.probes = nn.Parameter(torch.empty(probes, *input_shape(specs, probe_size)).uniform_(-1, 1))
            answers = {_answers(spec, self.probes[:1].detach()) for spec in specs}
        except SpecError as error:
            raise UnsupportedSpecError(f"probe_mlp runs the networks that it reads: {error}") from error
        if len(answers) != 1:
            raise UnsupportedSpecError(f"probe_mlp reads the same outputs of all networks, not {sorted(answers)}")
        features = probes * answers.pop()
        self.norm = nn.LayerNorm(features, elementwise_affine=False)
        self.net = mlp((features, *hidden, out_features), dropout)

    def forward(self, batch: WeightBatch | MixedWeightBatch) -> Tensor:
        self.check_spec(batch)
        return self.net(self.norm(self.answers(batch)))

    def answers(self, batch: WeightBatch | MixedWeightBatch) -> Tensor:
        """The outputs of each network on all probes ``[B, M · d_out]``; those of one architecture run together."""
        if isinstance(batch, WeightBatch):
            return execute(batch, self.probes).flatten(1)
        if not len(batch):
            return batch.values.new_zeros(0, *self.norm.normalized_shape)
        where, found = zip(*((rows, self.answers(part)) for rows, part in batch.split()), strict=True)
        together = torch.cat(found)
        return torch.empty_like(together).index_copy(0, torch.cat(where), together)


def _answers(spec: WeightSpec, probe: Tensor) -> int:
    """How many numbers a network answers one probe ``[1, …]`` with."""
    return execute(WeightBatch(spec, probe.new_zeros(1, spec.numel, 1)), probe).numel()
