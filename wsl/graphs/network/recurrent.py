"""Recurrent layers: an edge holds the weights of all gates."""

from __future__ import annotations

import numpy as np

from wsl.graphs.network.builder import Builder
from wsl.graphs.network.parts import KERNEL, GraphError, Integers, Nodes
from wsl.spec import Connection

GATES = {"rnn": ("",), "gru": ("reset_", "update_", "new_"), "lstm": ("input_", "forget_", "cell_", "output_")}


def recurrent(builder: Builder, connection: Connection) -> None:
    """Edges into the neurons of the layer, and among them; with a projection, into cells that feed them."""
    gates, spec = GATES[connection.kind], builder.spec
    cells = _cells(builder, connection)
    _gates(builder, connection, cells, connection.kind, builder.source(connection.source), "input")
    if f"{gates[0]}hidden" in connection.tensors:
        own = builder.source(connection.target)
        _gates(builder, connection, cells, f"{connection.kind}_hidden", own, "hidden")
    for part in ("input_bias", "hidden_bias"):
        for gate in gates:
            if f"{gate}{part}" in connection.tensors:
                positions = spec.tensor[connection.tensors[f"{gate}{part}"]].index().reshape(-1)
                if cells is None:
                    builder.give(connection.target, f"{gate}{part}", positions)
                else:
                    builder.give_nodes(cells, f"{gate}{part}", positions)
    if "projection" in connection.tensors and cells is not None:
        tensor = spec.tensor[connection.tensors["projection"]]
        target, source = np.divmod(np.arange(tensor.numel), cells.size)
        type = KERNEL if builder.options.linear == "kernel" else "linear"
        builder.connect(connection, type, cells.start + source, target, tensor.index().reshape(-1, 1))


def _cells(builder: Builder, connection: Connection) -> Nodes | None:
    """Nodes of the cells where the layer's neurons are a projection of them; one set for all inputs of the layer."""
    holders = [c for c in builder.spec.incoming(connection.target) if "projection" in c.tensors]
    if not holders:
        return None
    name = f"{connection.target}:cells"
    tensor = builder.spec.tensor[holders[0].tensors[f"{GATES[connection.kind][0]}hidden"]]
    return builder.held(name) or builder.add_nodes(name, tensor.shape[0], "hidden", "cells", tensor.axes[:1])


def _gates(
    builder: Builder, connection: Connection, cells: Nodes | None, type: str, source: Integers, part: str
) -> None:
    """Edges [out, in] with a value for each gate."""
    spec = builder.spec
    size = spec.size_of(connection.target) if cells is None else cells.size
    columns = [
        spec.tensor[connection.tensors[f"{gate}{part}"]].index().reshape(-1, 1) for gate in GATES[connection.kind]
    ]
    if any(len(column) != size * len(source) for column in columns):
        raise GraphError(f"the gates' {part} weights do not join {len(source)} with {size} neurons")
    target, column = np.divmod(np.arange(size * len(source)), len(source))
    positions = np.concatenate(columns, axis=1)
    start = builder.held(connection.target) if cells is None else cells
    if start is None:
        raise GraphError("a recurrent layer cannot be flattened over positions")
    builder.join(type, source[column], start.start + target, positions, recurrent=part == "hidden")
