"""One rule for each kind of connection: which edges and node values it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from wsl.graphs.network.attention import attention
from wsl.graphs.network.builder import Builder
from wsl.graphs.network.factors import in_first
from wsl.graphs.network.parts import KERNEL, GraphError, Integers
from wsl.graphs.network.recurrent import recurrent
from wsl.spec import Connection


def add_connection(builder: Builder, connection: Connection) -> None:
    """Add what a connection holds.

    Raises:
        GraphError: naming the connection and what about it no edge can stand for.
    """
    where = f"the connection {connection.source!r} → {connection.target!r} of kind {connection.kind!r}"
    rule = RULES.get(connection.kind)
    if rule is None:
        raise GraphError(f"{where} has no rule for neural graphs; known: {', '.join(RULES)}")
    try:
        rule(builder, connection)
    except KeyError as error:
        raise GraphError(f"{where} lacks {error}") from error
    except GraphError as error:
        raise GraphError(f"{where}: {error}") from error


def _weight(builder: Builder, connection: Connection) -> None:
    """linear, conv, embedding: an edge per pair of channels, with its cells."""
    attributes, spec = connection.attributes, builder.spec
    tensor = spec.tensor[connection.tensors["weight"]]
    out, into = spec.size_of(connection.target), spec.size_of(connection.source)
    groups = int(attributes.get("groups", 1)) if connection.kind == "conv" else 1
    fan = into // groups
    if out % groups or into % groups or tensor.numel % (out * fan):
        raise GraphError(
            f"the weight {tensor.name!r} of shape {tensor.shape} does not join {into} with {out} neurons "
            f"in {groups} groups"
        )
    if in_first(spec, connection, tensor, builder.factors):
        index = tensor.index().reshape(groups, fan, out // groups, -1).swapaxes(1, 2)
    else:
        index = tensor.index().reshape(groups, out // groups, fan, -1)
    target = np.broadcast_to(np.arange(out).reshape(groups, -1, 1), index.shape[:3]).reshape(-1)
    source = np.broadcast_to(np.arange(into).reshape(groups, 1, -1), index.shape[:3]).reshape(-1)
    cells = index.shape[3]
    positions = index.reshape(-1, cells)
    spatial = attributes.get("spatial")
    if spatial is not None and builder.options.flatten != "kernel":
        nodes = builder.flattened(connection.source, cells)
        source = nodes[(source[:, None] * cells + np.arange(cells)).reshape(-1)]
        _scalar(builder, connection, source, np.repeat(target, cells), positions.reshape(-1, 1))
    elif connection.kind == "conv" or spatial is not None:
        shape = tuple(attributes["kernel"] if spatial is None else spatial)
        if math.prod(shape) != cells:
            raise GraphError(f"the weight {tensor.name!r} has {cells} cells, the kernel {list(shape)} another number")
        builder.connect(connection, KERNEL, builder.source(connection.source)[source], target, positions, shape)
    elif cells == 1:
        _scalar(builder, connection, builder.source(connection.source)[source], target, positions)
    else:
        raise GraphError(f"the weight {tensor.name!r} has {cells} values for each pair of neurons")
    _bias(builder, connection)


def _scalar(builder: Builder, connection: Connection, source: Integers, target: Integers, positions: Integers) -> None:
    type = KERNEL if builder.options.linear == "kernel" else "linear"
    builder.connect(connection, type, source, target, positions)


def _bias(builder: Builder, connection: Connection, part: str = "bias") -> None:
    if part in connection.tensors:
        builder.give(connection.target, "bias", _flat(builder, connection, part))


def _flat(builder: Builder, connection: Connection, part: str) -> Integers:
    """Positions of a tensor with one value per neuron of the target."""
    tensor = builder.spec.tensor[connection.tensors[part]]
    if tensor.numel != builder.spec.size_of(connection.target):
        raise GraphError(f"the tensor {tensor.name!r} of shape {tensor.shape} does not hold one value per neuron")
    return tensor.index().reshape(-1)


def _depthwise(builder: Builder, connection: Connection) -> None:
    """An edge per channel with its kernel; with a multiplier several channels read one."""
    spec = builder.spec
    out, into = spec.size_of(connection.target), spec.size_of(connection.source)
    tensor = spec.tensor[connection.tensors["weight"]]
    shape = tuple(connection.attributes["kernel"])
    if out % into or tensor.numel != out * math.prod(shape):
        raise GraphError(f"the kernels {tensor.name!r} of shape {tensor.shape} are not {out} of {list(shape)} cells")
    source = builder.source(connection.source)[np.arange(out) // (out // into)]
    builder.connect(connection, KERNEL, source, np.arange(out), tensor.index().reshape(out, -1), shape)
    _bias(builder, connection)


def _norm(builder: Builder, connection: Connection) -> None:
    """A diagonal layer: gamma (and the buffers of a batch norm) on the edges, beta on the nodes."""
    source, parts = builder.source(connection.source), ["gamma"]
    if connection.attributes["norm"] == "batch":
        parts += ["mean", "var"]
    size = builder.spec.size_of(connection.target)
    columns = [
        _flat(builder, connection, part) if part in connection.tensors else np.full(size, -1, dtype=np.int64)
        for part in parts
    ]
    type = f"{connection.attributes['norm']}_norm"
    builder.connect(connection, type, source, np.arange(size), np.stack(columns, axis=1), constant=1.0)
    _bias(builder, connection, "beta")


def _one_to_one(builder: Builder, connection: Connection) -> None:
    """skip, concat, pool, …: constant edges between the channels that it joins."""
    if builder.aliased(connection):
        return
    attributes, spec = connection.attributes, builder.spec
    out, spatial = spec.size_of(connection.target), attributes.get("spatial")
    start = int(attributes.get("start", 0))
    if spatial is not None and builder.options.flatten != "kernel":
        source = builder.flattened(connection.source, math.prod(spatial))
    elif spatial is not None:
        source = np.repeat(builder.source(connection.source), math.prod(spatial))
    else:
        source = builder.source(connection.source)
    if connection.kind == "slice":
        source, start = source[start : start + out], 0
    if start + len(source) > out:
        raise GraphError(f"{len(source)} channels from channel {start} on do not fit into {out}")
    target = start + np.arange(len(source))
    builder.connect(connection, KERNEL, source, target, constant=float(attributes.get("scale", 1)))


def _parameter(builder: Builder, connection: Connection, part: str = "value") -> None:
    """A vector is a node value; of a table, each row is a node."""
    size = builder.spec.size_of(connection.target)
    tensor = builder.spec.tensor[connection.tensors[part]]
    if tensor.numel % size or (
        builder.factors[connection.target] != tensor.axes[-len(builder.factors[connection.target]) :]
    ):
        raise GraphError(
            f"the tensor {tensor.name!r} with the axes {tensor.axes} is no table of rows of {size} neurons"
        )
    index = tensor.index().reshape(-1, size)
    if len(index) == 1:
        builder.give(connection.target, "bias", index[0])
        return
    rows = tuple(builder.spec.tensor[tensor.name].axes[: len(tensor.axes) - len(builder.factors[connection.target])])
    nodes = builder.add_nodes(f"{connection.target}:{tensor.name}", len(index), "hidden", "table", rows)
    source, target = np.divmod(np.arange(index.size), size)
    _scalar(builder, connection, nodes.start + source, target, index.reshape(-1, 1))


def _multiply(builder: Builder, connection: Connection) -> None:
    source = builder.source(connection.source)
    positions = _flat(builder, connection, "value").reshape(-1, 1) if "value" in connection.tensors else None
    builder.connect(connection, "multiply", source, np.arange(len(source)), positions, constant=1.0)


def _memory(builder: Builder, connection: Connection) -> None:
    """What attention reads is on its own edges; an initial state is handed on neuron by neuron."""
    if not any(c.kind == "attention" for c in builder.spec.incoming(connection.target)):
        _one_to_one(builder, connection)


def _unknown(builder: Builder, connection: Connection) -> None:
    """Constant edges that no symmetry moves; learned rows as tables."""
    spec = builder.spec
    source = builder.source(connection.source)
    out = spec.size_of(connection.target)
    if builder.factors[connection.source] == builder.factors[connection.target]:
        builder.connect(connection, "unknown", source, np.arange(out), constant=1.0)
    else:
        pairs = np.divmod(np.arange(len(source) * out), out)
        builder.connect(connection, "unknown", source[pairs[0]], pairs[1], constant=1.0)
    for part in connection.tensors:
        _parameter(builder, connection, part)


RULES: dict[str, Callable[[Builder, Connection], Any]] = {
    **dict.fromkeys(("linear", "conv", "embedding"), _weight),
    **dict.fromkeys(("skip", "concat", "slice", "pool", "upsample"), _one_to_one),
    **dict.fromkeys(("rnn", "gru", "lstm"), recurrent),
    "depthwise": _depthwise,
    "norm": _norm,
    "parameter": _parameter,
    "multiply": _multiply,
    "memory": _memory,
    "attention": attention,
    "unknown": _unknown,
}
