"""Run the described networks: a whole batch of weights on given inputs, from the spec alone.

Nothing loops over networks: matrices are multiplied in batches, the kernels of all networks are groups of one
convolution, recurrent layers loop over time. What each connection kind does is written at :class:`wsl.spec.Connection`.

Axis letters: B networks, N inputs, I in-neurons, O out-neurons, T steps of a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor

from wsl.activations import activate
from wsl.batch import WeightBatch
from wsl.execute.attention import attention
from wsl.execute.conv import conv, pool, upsample
from wsl.execute.layout import RECURRENT, layout_of
from wsl.execute.linear import aligned, concat, embedding, linear, multiply, parameter, skip
from wsl.execute.module import execute_module
from wsl.execute.norm import norm
from wsl.execute.recurrent import recurrent
from wsl.spec import Connection, NeuronGroup, SpecError, WeightSpec

__all__ = ["KINDS", "activations_of", "execute", "execute_module", "input_groups", "layout_of"]

#: connection kinds that can be run from the spec alone
KINDS = (
    "linear", "conv", "depthwise", "norm", "pool", "skip", "concat", "slice", "upsample", "embedding", "parameter",
    "multiply", "rnn", "gru", "lstm", "attention", "memory",
)  # fmt: skip


def execute(batch: WeightBatch, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Outputs of every network on the inputs.

    Args:
        batch: B networks with C = 1.
        inputs: as the network's module reads them, the same for all networks (``[N, d_0]``; ``[N, C, H, W]`` for
            images; ``[N, T, d_0]`` for sequences; ``[N, T]`` for tokens), or with a leading axis B. A mapping names
            the input group where there are several.

    Returns:
        ``[B, N, …]``, values of the spec's output group, laid out as the module returns them.

    Raises:
        SpecError: if the spec has not exactly one output group, or the inputs or a connection cannot be run.
    """
    spec = batch.spec
    read = {c.source for c in spec.connections if c.source != c.target}
    ends = [g for g in spec.groups if g.name not in read]
    outputs = [g.name for g in ends if spec.label[g.label].kind == "output"] or [g.name for g in ends]
    if len(outputs) != 1:
        raise SpecError(f"running a spec takes one output group, this one has {outputs}; activations_of returns all")
    layout = layout_of(spec, _inputs(spec, inputs)[0])
    return layout.leave(activations_of(batch, inputs)[outputs[0]])


def activations_of(batch: WeightBatch, inputs: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values of every neuron group on the inputs, after its activation: name → ``[B, N, *positions, size]``.

    Positions are the pixels of a feature map or the steps of a sequence; a group without them gives ``[B, N, size]``.
    Arguments and errors are those of :func:`execute`.
    """
    spec, device = batch.spec, batch.values.device.type
    if torch.is_autocast_enabled(device):  # what a network answers is data: it is no layer of its reader
        given = {k: _wide(v) for k, v in inputs.items()} if isinstance(inputs, Mapping) else _wide(inputs)
        with torch.autocast(device, enabled=False):
            return activations_of(batch.with_values(_wide(batch.values)), given)
    if batch.values.shape[-1] != 1:
        raise SpecError(f"only weights with one channel can be run, this batch has {batch.values.shape[-1]}")
    if not len(batch):  # the shapes of one network, of which none are kept
        one = batch.values.new_zeros(1, spec.numel, 1)
        return {name: value[:0] for name, value in activations_of(WeightBatch(spec, one), inputs).items()}
    weights = {name: tensor.squeeze(-1) for name, tensor in batch.tensors().items()}
    values: dict[str, Tensor] = {}
    for name in _inputs(spec, inputs):
        given = inputs[name] if isinstance(inputs, Mapping) else inputs
        values[name] = layout_of(spec, name).enter(given, spec.size_of(name), len(batch))
    for group in spec.groups:
        if group.name not in values:
            values[group.name] = _value_of(group, spec, values, weights)
    return {name: value.expand(len(batch), *value.shape[1:]) for name, value in values.items()}


def input_groups(spec: WeightSpec) -> tuple[str, ...]:
    """Names of the groups that take what a network is given."""
    fed = {c.target for c in spec.connections if c.source != c.target}
    names = tuple(g.name for g in spec.groups_of_kind("input") if g.name not in fed)
    # of an image that is flattened first every neuron has a place, and none the label of an input
    return names or tuple(g.name for g in spec.groups if not spec.incoming(g.name))


def _wide(values: Tensor) -> Tensor:
    """In float32 at least, if they are no whole numbers."""
    return values.to(torch.promote_types(values.dtype, torch.float32)) if values.is_floating_point() else values


def _inputs(spec: WeightSpec, inputs: Tensor | Mapping[str, Tensor]) -> tuple[str, ...]:
    names = input_groups(spec)
    if isinstance(inputs, Mapping):
        if set(inputs) != set(names):
            raise SpecError(f"inputs are given for {sorted(inputs)}, the spec's input groups are {list(names)}")
    elif len(names) != 1:
        raise SpecError(f"one input was given, but the spec has the input groups {list(names)}")
    return names


def _value_of(
    group: NeuronGroup, spec: WeightSpec, values: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> Tensor:
    """activation(sum over connections + product over ``multiply`` connections) + offset."""
    arriving: list[Tensor] = []
    factors: list[Tensor] = []
    incoming = sorted(spec.incoming(group.name), key=lambda c: c.kind == "parameter")  # their size follows the others
    cells = [c for c in incoming if c.kind in RECURRENT]
    if len(cells) > 1:  # a concatenated input: its parts add up before the gates
        arriving.append(_cell_of_many(cells, spec, values, weights))
    for connection in incoming:
        if connection in cells and len(cells) > 1:
            continue
        if connection.kind == "parameter":
            arriving.append(parameter(weights[connection.tensors["value"]], arriving))
        elif connection.kind != "memory":
            carried = _carry(connection, spec, values, weights)
            (factors if connection.kind == "multiply" else arriving).append(carried)
    try:
        if factors:
            arriving.append(reduce(torch.mul, _broadcast(factors)))
        if not arriving:
            raise SpecError(f"group {group.name!r} has no incoming connection")
        total = reduce(torch.add, _broadcast(arriving))
        recurrent_cells = any(c.kind in RECURRENT for c in incoming)  # these have applied the activation
        return total if recurrent_cells else activate(total, group.activation, group.parameters)
    except (ValueError, RuntimeError) as error:
        raise error if isinstance(error, SpecError) else SpecError(f"group {group.name!r}: {error}") from error


def _cell_of_many(
    cells: list[Connection], spec: WeightSpec, values: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> Tensor:
    """A recurrent layer that reads several groups: as one that reads their concatenation."""
    parts = [part for part in cells[0].tensors if part == "input" or part.endswith("_input")]
    joined = {cells[0].tensors[p]: torch.cat([weights[c.tensors[p]] for c in cells], -1) for p in parts}
    sources = [values[c.source] for c in cells]
    networks = max(x.shape[0] for x in sources)
    together = torch.cat([x.expand(networks, *x.shape[1:]) for x in sources], -1)
    return _carry(cells[0], spec, {**values, cells[0].source: together}, {**weights, **joined})


def _broadcast(terms: list[Tensor]) -> list[Tensor]:
    """Values without positions are the same at every position."""
    dims = max(t.dim() for t in terms)
    return [aligned(t, dims) for t in terms]


def _carry(
    connection: Connection, spec: WeightSpec, values: Mapping[str, Tensor], all_weights: Mapping[str, Tensor]
) -> Tensor:
    """What one connection brings to its target."""
    where = f"connection {connection.source!r} → {connection.target!r} of kind {connection.kind!r}"
    if connection.kind not in KINDS:
        what = connection.attributes.get("op", connection.kind)
        raise SpecError(
            f"{where} ({what}) cannot be executed from the spec; kinds that can: {', '.join(KINDS)}. "
            "With the module at hand, use execute_module"
        )
    weights = {part: all_weights[name] for part, name in connection.tensors.items()}
    try:
        if connection.source not in values:
            raise SpecError(f"{where}: groups are not listed in the order of execution")
        return _run(connection, spec, values, weights)
    except SpecError:
        raise
    except (KeyError, RuntimeError, IndexError, ValueError) as error:
        missing = f"lacks {error}" if isinstance(error, KeyError) else f"does not fit: {error}"
        raise SpecError(f"{where} {missing}") from error


def _in_first(connection: Connection, spec: WeightSpec) -> bool:
    """Whether a weight's axes begin with in axes: its out axes are those of the bias, else the target's label."""
    label = spec.group[connection.target].label
    out = spec.tensor[connection.tensors["bias"]].axes if "bias" in connection.tensors else (label,)
    return spec.tensor[connection.tensors["weight"]].axes[: len(out)] != out


def _run(
    connection: Connection, spec: WeightSpec, values: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> Tensor:
    kind, attributes = connection.kind, connection.attributes
    size = spec.size_of(connection.target)
    x = values[connection.source]
    if kind != "attention" and attributes.get("scale", 1) != 1:
        x = x * attributes["scale"]
    match kind:
        case "linear":
            return linear(x, weights, size, attributes.get("spatial"))
        case "conv" | "depthwise":
            return conv(x, weights, attributes, size, kind == "depthwise", _in_first(connection, spec))
        case "norm":
            return norm(x, weights, attributes)
        case "pool":
            return pool(x, attributes)
        case "upsample":
            return upsample(x, attributes)
        case "concat":
            return concat(x, size, attributes)
        case "slice":
            return x.narrow(-1, int(attributes.get("start", 0)), size)
        case "embedding":
            return embedding(x, weights["weight"])
        case "multiply":
            return multiply(x, weights.get("value"))
        case "rnn" | "gru" | "lstm":
            initial = values[attributes["initial"]] if "initial" in attributes else None
            return recurrent(kind, x, weights, attributes, initial)
        case "attention":
            return attention(x, values[attributes.get("memory", connection.source)], weights, attributes)
        case _:
            return skip(x, size, attributes)
