"""Run the described networks: a whole batch of weights on given inputs, from the spec alone.

Axis letters: B networks, N inputs, I in-neurons, O out-neurons.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from wsl.activations import activate
from wsl.batch import WeightBatch
from wsl.spec import Connection, SpecError, WeightSpec


def execute(batch: WeightBatch, inputs: Tensor) -> Tensor:
    """Outputs of every network on the inputs.

    Args:
        batch: B networks with C = 1.
        inputs: ``[N, d_0]``, the same for all networks, or ``[B, N, d_0]``.

    Returns:
        ``[B, N, d_L]``, values of the spec's output group.

    Raises:
        SpecError: if the spec has not exactly one input and one output group, or a connection that is not linear.
    """
    (output,) = _only(batch.spec, "output")
    return activations_of(batch, inputs)[output]


def activations_of(batch: WeightBatch, inputs: Tensor) -> dict[str, Tensor]:
    """Values of every neuron group on the inputs, group name → ``[B, N, size]`` (after its activation)."""
    spec = batch.spec
    (source,) = _only(spec, "input")
    weights = {name: tensor.squeeze(-1) for name, tensor in batch.tensors().items()}
    inputs = inputs if inputs.dim() == 3 else inputs.unsqueeze(0).expand(len(batch), -1, -1)
    values = {source: inputs}
    for group in spec.groups:
        if group.name == source:
            continue
        arriving = [_carry(c, values, weights) for c in spec.incoming(group.name)]
        if not arriving:
            raise SpecError(f"group {group.name!r} has no incoming connection")
        values[group.name] = activate(sum(arriving[1:], arriving[0]), group.activation, group.parameters)
    return values


def _only(spec: WeightSpec, kind: str) -> tuple[str]:
    names = tuple(g.name for g in spec.groups_of_kind(kind))
    if len(names) != 1:
        raise SpecError(f"running a spec takes exactly one {kind} group, this one has {list(names)}")
    return names


def _carry(connection: Connection, values: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    where = f"connection {connection.source!r} → {connection.target!r}"
    if connection.kind != "linear":
        raise SpecError(f"{where} of kind {connection.kind!r} cannot be executed; kinds that can: linear")
    if connection.source not in values:
        raise SpecError(f"{where}: groups are not listed in the order of execution")
    x, weight = values[connection.source], weights[connection.tensors["weight"]]
    if "bias" in connection.tensors:
        return torch.baddbmm(weights[connection.tensors["bias"]].unsqueeze(1), x, weight.mT)
    return torch.bmm(x, weight.mT)
