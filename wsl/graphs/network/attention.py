"""Attention as nodes and edges, and the smaller symmetry group of its published form."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from wsl.graphs.network.builder import Builder
from wsl.graphs.network.parts import KERNEL, GraphError, Integers, Nodes
from wsl.spec import Connection, WeightSpec


def attention(builder: Builder, connection: Connection) -> None:
    """Queries and keys meet in nodes of their own, values in others; constant edges join the channels of a head."""
    memory = connection.attributes.get("memory", connection.source)
    scalar = KERNEL if builder.options.linear == "kernel" else "linear"
    if builder.options.attention == "triple":
        nodes = _inner(builder, connection, "query", "query_key_value")
        _project(builder, connection, nodes, "query_key_value", memory, ("query", "key", "value"))
        _leave(builder, connection, nodes, scalar)
        return
    pairs = _inner(builder, connection, "query", "query_key")
    values = _inner(builder, connection, "value", "value")
    _project(builder, connection, pairs, "query_key", memory, ("query", "key"))
    _project(builder, connection, values, scalar, memory, ("value",))
    heads = int(connection.attributes["heads"])
    head = np.arange(heads).reshape(heads, 1, 1)
    first, second = pairs.size // heads, values.size // heads
    source = np.broadcast_to(head * first + np.arange(first).reshape(1, -1, 1), (heads, first, second))
    target = np.broadcast_to(head * second + np.arange(second).reshape(1, 1, -1), (heads, first, second))
    builder.join("head", pairs.start + source.reshape(-1), values.start + target.reshape(-1), constant=1.0)
    _leave(builder, connection, values, scalar)


def _inner(builder: Builder, connection: Connection, part: str, function: str) -> Nodes:
    """A node per head and channel of a projection."""
    tensor = builder.spec.tensor[connection.tensors[part]]
    from_group = connection.source if part == "query" else connection.attributes.get("memory", connection.source)
    size = tensor.numel // builder.spec.size_of(from_group)
    axes = tensor.axes[: len(tensor.axes) - len(builder.factors[from_group])]
    name = f"{connection.target}:{connection.tensors[part]}"
    return builder.add_nodes(name, size, "hidden", function, axes)


def _project(
    builder: Builder, connection: Connection, nodes: Nodes, type: str, memory: str, parts: tuple[str, ...]
) -> None:
    """Edges into inner channels with the weights of all parts; biases on the nodes."""
    spec = builder.spec
    columns: dict[str, list[Integers]] = {}
    for part in parts:
        group = connection.source if part == "query" else memory
        index = spec.tensor[connection.tensors[part]].index().reshape(-1, 1)
        size = spec.size_of(group)
        if len(index) != nodes.size * size:
            raise GraphError(f"the {part} tensor does not join {size} channels with the {nodes.size} of its heads")
        blank = np.full_like(index, -1)
        held = columns.setdefault(group, [blank] * len(parts))
        held[parts.index(part)] = index
        if f"{part}_bias" in connection.tensors:
            bias = spec.tensor[connection.tensors[f"{part}_bias"]].index()
            slot = "bias" if parts == ("value",) else f"{part}_bias"
            builder.give_nodes(nodes, slot, bias)
    for group, held in columns.items():
        source = np.tile(builder.source(group), nodes.size)
        target = nodes.start + np.repeat(np.arange(nodes.size), spec.size_of(group))
        builder.join(type, source, target, np.concatenate(held, axis=1))


def _leave(builder: Builder, connection: Connection, nodes: Nodes, type: str) -> None:
    """The output projection [d, H, v]."""
    tensor = builder.spec.tensor[connection.tensors["output"]]
    size = builder.spec.size_of(connection.target)
    if tensor.numel != size * nodes.size:
        raise GraphError(f"the output tensor does not join the {nodes.size} channels of the heads with {size}")
    target, source = np.divmod(np.arange(tensor.numel), nodes.size)
    builder.connect(connection, type, nodes.start + source, target, tensor.index().reshape(-1, 1))
    if "output_bias" in connection.tensors:
        builder.give(
            connection.target, "bias", builder.spec.tensor[connection.tensors["output_bias"]].index().reshape(-1)
        )


def tied_attention(spec: WeightSpec) -> WeightSpec:
    """The spec whose symmetries the form "triple" has: channels of queries, keys and values permute alike.

    Raises:
        GraphError: if values have another number of channels per head than queries and keys.
    """
    new: dict[str, str] = {}
    for c in (c for c in spec.connections if c.kind == "attention"):
        query, value = (spec.tensor[c.tensors[part]] for part in ("query", "value"))
        if query.shape[:2] != value.shape[:2] or math.prod(query.shape) != math.prod(value.shape):
            raise GraphError(
                f"attention into {c.target!r} has heads of {query.shape[1]} query and {value.shape[1]} value channels: "
                'use attention="separate"'
            )
        new |= {old: name for old, name in zip(value.axes[:2], query.axes[:2], strict=True) if old != name}

    def renamed(axes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(new.get(axis, axis) for axis in axes)

    tensors = tuple(replace(t, axes=renamed(t.axes)) for t in spec.tensors)
    labels = tuple(label for label in spec.labels if label.name not in new)
    return spec.replace(tensors=tensors, labels=labels, verified=False)
