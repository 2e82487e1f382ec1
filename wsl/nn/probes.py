"""Probe features: what the neurons of an input network answer to learned inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsl.batch import WeightBatch
from wsl.execute import activations_of, layout_of
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
        shape = input_shape((spec,))
        if len(shape) != 1:
            raise SpecError("probe features of blocks need networks that read vectors; edge lists run those of images")
        self.probes = nn.Parameter(torch.empty(probes, *shape).uniform_(-1, 1))
        check_runs((spec,), self.probes[:1].detach())
        self.embed = nn.ModuleList(
            nn.Sequential(nn.Linear(probes, width), nn.LayerNorm(width)) for _ in range(len(spec.groups))
        )

    def forward(self, batch: WeightBatch) -> Tensor:
        values = activations_of(batch, self.probes)
        groups = (values[group.name].mT for group in batch.spec.groups)
        return torch.cat([embed(group) for embed, group in zip(self.embed, groups, strict=True)], dim=1)


def input_shape(specs: Sequence[WeightSpec], size: int = 32) -> tuple[int, ...]:
    """Shape of one input that all networks read, an image of ``size`` pixels a side where they read images.

    Raises:
        SpecError: if they differ, or read tokens or sequences.
    """
    shapes = set()
    for spec in specs:
        fed = {c.target for c in spec.connections if c.source != c.target}
        inputs = [g.name for g in spec.groups if g.name not in fed]
        if len(inputs) != 1:
            raise SpecError(f"probe features need one input group, {spec!r} has {inputs}")
        layout = layout_of(spec, inputs[0])
        if layout.kind not in ("vector", "flat", "image"):
            raise SpecError(f"probe features need vectors or images as inputs, {spec!r} reads {layout.kind} inputs")
        shapes.add((spec.size_of(inputs[0]), *(size,) * layout.rank))
    if len(shapes) != 1:
        raise SpecError(f"probe features need inputs that all networks read; these read {sorted(shapes)}")
    return shapes.pop()


def check_runs(specs: Sequence[WeightSpec], probe: Tensor) -> None:
    """Run one network of zeros of each spec that holds a new kind of connection, activation, or size of a map.

    What cannot be run should say so when the model is built.

    Raises:
        SpecError: with the reason.
    """
    seen: set[str] = set()
    for spec in specs:
        kinds = {f"{c.kind} {c.attributes.get('spatial')}" for c in spec.connections}
        kinds |= {f"activation {g.activation}" for g in spec.groups}
        if kinds <= seen:
            continue
        seen |= kinds
        try:
            activations_of(WeightBatch(spec, probe.new_zeros(1, spec.numel, 1)), probe)
        except ValueError as error:
            size = f" on images of {' × '.join(map(str, probe.shape[2:]))} (probe_size)" if probe.dim() > 2 else ""
            raise SpecError(f"probe features need a network that can be run{size}: {error}") from error
