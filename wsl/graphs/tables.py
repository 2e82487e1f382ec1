"""Tables of a spec from which :mod:`wsl.graphs.edge_list` strings graphs of many networks together.

Edges are listed in the order of their targets. Statistics are taken over *classes* of values: all cells of the kernels
(or one slot of another type) into one depth; outputs are a depth of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from wsl.graphs.frame import ROLES, GraphFrame
from wsl.graphs.network.parts import KERNEL, EdgeSet, Integers, NetworkGraph
from wsl.spec import WeightSpec

Table = Callable[[WeightSpec], Tensor]


@dataclass(frozen=True)
class Tables:
    """Functions of a spec, always the same objects for the same frame.

    Attributes:
        nodes: ``[N, 4]`` role, row among nodes of that role (place of an input or output, depth of a hidden layer),
            position, function (−1 on inputs and outputs).
        edges: ``[E, 3]`` source, target, type.
        directed: ``[D, 4]`` source, target, edge, whether reversed: edges, with reversed copies if asked for, in the
            order of the nodes that they reach.
        node_cells, edge_cells: ``[M, 3]`` position in the row, place in the flattened values ``[N·V]`` or ``[E·F]``,
            class.
        constants: ``[M, 2]`` float64, place in ``[E·F]`` and value.
    """

    nodes: Table
    edges: Table
    directed: Table
    node_cells: Table
    edge_cells: Table
    constants: Table


@cache
def tables_of(frame: GraphFrame, reverse_edges: bool) -> Tables:
    """The tables for a frame."""
    return Tables(
        partial(node_table, frame=frame),
        partial(edge_table, frame=frame),
        partial(directed_table, frame=frame, reverse_edges=reverse_edges),
        partial(node_cell_table, frame=frame),
        partial(edge_cell_table, frame=frame),
        partial(constant_table, frame=frame),
    )


def node_classes(frame: GraphFrame) -> int:
    """Number of classes of node values."""
    return len(frame.slots) * (frame.depth + 1)


def edge_classes(frame: GraphFrame) -> int:
    """Number of classes of edge values."""
    return sum(_of_type(name, width) for name, width in frame.types) * (frame.depth + 1)


def _of_type(name: str, width: int) -> int:
    return 1 if name == KERNEL else width


def node_table(spec: WeightSpec, frame: GraphFrame) -> Tensor:
    rows = []
    for nodes in frame.graph(spec).nodes:
        hidden = nodes.role == "hidden"
        row = np.empty((nodes.size, 4), dtype=np.int64)
        row[:, 0] = ROLES.index(nodes.role)
        row[:, 1] = min(nodes.depth, frame.depth) - 1 if hidden else nodes.index
        row[:, 2] = nodes.index if hidden and nodes.individual else -1
        row[:, 3] = frame.functions.index(nodes.function) if hidden else -1
        rows.append(row)
    return torch.from_numpy(np.concatenate(rows))


def edge_table(spec: WeightSpec, frame: GraphFrame) -> Tensor:
    graph = frame.graph(spec)
    ends = [np.stack([e.source, e.target, np.full(len(e), frame.number_of(e.type))], axis=1) for e in graph.edges]
    return torch.from_numpy(np.concatenate(ends)[_order(graph)])


def directed_table(spec: WeightSpec, frame: GraphFrame, reverse_edges: bool) -> Tensor:
    edges = edge_table(spec, frame).numpy()
    number = np.arange(len(edges))
    rows = np.stack([edges[:, 0], edges[:, 1], number, np.zeros_like(number)], axis=1)
    if reverse_edges:
        back = np.stack([edges[:, 1], edges[:, 0], number, np.ones_like(number)], axis=1)
        rows = np.concatenate([rows, back])
        rows = rows[np.argsort(rows[:, 1], kind="stable")]
    return torch.from_numpy(rows)


def node_cell_table(spec: WeightSpec, frame: GraphFrame) -> Tensor:
    graph = frame.graph(spec)
    depth = _depth_of_nodes(graph, frame)
    rows = [np.zeros((0, 3), dtype=np.int64)]
    for values in graph.values:
        slot = frame.slots.index(values.slot)
        places = values.nodes * len(frame.slots) + slot
        rows.append(np.stack([values.positions, places, depth[values.nodes] * len(frame.slots) + slot], axis=1))
    return _compact(np.concatenate(rows))


def edge_cell_table(spec: WeightSpec, frame: GraphFrame) -> Tensor:
    graph = frame.graph(spec)
    depth = _depth_of_nodes(graph, frame)
    position = _ranks(graph)
    first = np.cumsum([0, *(_of_type(name, width) for name, width in frame.types)])
    rows, start = [np.zeros((0, 3), dtype=np.int64)], 0
    for edges in graph.edges:
        held = edges.positions >= 0
        number = frame.number_of(edges.type)
        places = position[start : start + len(edges), None] * frame.width + _slots(edges, frame)
        kind = first[number] + (0 if edges.type == KERNEL else np.arange(edges.width))
        classes = np.broadcast_to(depth[edges.target][:, None] * first[-1] + kind, edges.positions.shape)
        rows.append(np.stack([edges.positions[held], places[held], classes[held]], axis=1))
        start += len(edges)
    return _compact(np.concatenate(rows))


def constant_table(spec: WeightSpec, frame: GraphFrame) -> Tensor:
    graph = frame.graph(spec)
    position = _ranks(graph)
    rows, start = [np.zeros((0, 2))], 0
    for edges in graph.edges:
        absent = edges.positions < 0
        places = position[start : start + len(edges), None] * frame.width + _slots(edges, frame)
        start += len(edges)
        if edges.constant and absent.any():
            rows.append(np.stack([places[absent], np.full(absent.sum(), edges.constant)], axis=1))
    return torch.from_numpy(np.concatenate(rows))


def _slots(edges: EdgeSet, frame: GraphFrame) -> Integers:
    return frame.cells(edges.shape) if edges.type == KERNEL else np.arange(edges.width)


def _order(graph: NetworkGraph) -> Integers:
    """The edges in the order of their targets."""
    return np.argsort(np.concatenate([edges.target for edges in graph.edges]), kind="stable")


def _ranks(graph: NetworkGraph) -> Integers:
    """Place of each edge in that order."""
    order = _order(graph)
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return ranks


def _depth_of_nodes(graph: NetworkGraph, frame: GraphFrame) -> Integers:
    """Depth − 1 of hidden nodes; outputs are one deeper than all, inputs (that something reaches) count as depth 1."""
    depth = np.zeros(graph.num_nodes, dtype=np.int64)
    for nodes in graph.nodes:
        inner = min(nodes.depth, frame.depth) - 1 if nodes.role == "hidden" else 0
        depth[nodes.start : nodes.start + nodes.size] = frame.depth if nodes.role == "output" else inner
    return depth


def _compact(rows: Integers) -> Tensor:
    """Half the memory where the numbers are small enough."""
    small = not rows.size or rows.max() < 2**31
    return torch.from_numpy(rows.astype(np.int32) if small else rows)
