"""Probe features: what the neurons of an input network answer to learned inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsl.batch import WeightBatch
from wsl.execute import activations_of
from wsl.spec import SpecError, WeightSpec


class ProbeFeatures(nn.Module):
    r"""Runs every network of a batch on M learned inputs and embeds each neuron's M values.

    .. math:: f_i = \mathrm{LayerNorm}_g(W_g\, [a_i(p_1), …, a_i(p_M)] + b_g)

    with :math:`a_i` the activation of neuron i (the input itself for input neurons, the output with its offset for
    output neurons) and one map and norm for each neuron group g. The probes are shared by all networks, start as
    U(−1, 1) in the input space and learn by back-propagation. Raw weights are run, not standardised ones, so the
    features change only if the function changes: they respect every symmetry that permutes neurons.

    Source: Kofinas et al., section 3 ("probe features").

    Args:
        spec: what the networks share.
        probes: M.
        width: C.

    Shapes: batch of ``[B, P, 1]`` → ``[B, N, C]``, group after group.

    Raises:
        SpecError: if the described networks cannot be run.
    """

    def __init__(self, spec: WeightSpec, probes: int, width: int) -> None:
        super().__init__()
        _check_runs(spec)
        (source,) = spec.groups_of_kind("input")
        self.probes = nn.Parameter(torch.empty(probes, spec.size_of(source.name)).uniform_(-1, 1))
        self.embed = nn.ModuleList(
            nn.Sequential(nn.Linear(probes, width), nn.LayerNorm(width)) for _ in range(len(spec.groups))
        )

    def forward(self, batch: WeightBatch) -> Tensor:
        values = activations_of(batch, self.probes)
        groups = (values[group.name].mT for group in batch.spec.groups)
        return torch.cat([embed(group) for embed, group in zip(self.embed, groups, strict=True)], dim=1)


def _check_runs(spec: WeightSpec) -> None:
    """Run one network of zeros: what cannot be run should say so when the model is built."""
    inputs = spec.groups_of_kind("input")
    size = spec.size_of(inputs[0].name) if inputs else 0
    try:
        activations_of(WeightBatch(spec, torch.zeros(1, spec.numel, 1)), torch.zeros(1, size))
    except ValueError as error:
        raise SpecError(f"probe features need a network that can be run: {error}") from error
