"""What the neural graphs of many specs share: how wide values are, and how many nodes have a meaning of their own.

Everything learned on graphs (maps of edge values, positional rows) is sized by the frame, so a network of another
architecture fits if its graph fits the frame.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from wsl.graphs.network import GraphError, GraphOptions, NetworkGraph, network_graph
from wsl.graphs.network.parts import KERNEL, Integers, product
from wsl.spec import WeightSpec

#: numbers of the roles of nodes
ROLES = ("input", "hidden", "output")


@dataclass(frozen=True)
class GraphFrame:
    """What all graphs of a family fit into.

    Attributes:
        options: how networks are read.
        kernel: the largest kernel, per axis; smaller ones are centred in it (a spare row or column goes last).
        types: of edges, with the number of their values.
        slots: kinds of node values.
        functions: what nodes compute (activations and others).
        inputs, outputs: the largest numbers of them.
        positions: the largest number of hidden nodes of one layer with a meaning of their own, at least 1.
        depth: of the deepest hidden layer, at least 1; deeper ones of other networks count as the deepest.
    """

    options: GraphOptions
    kernel: tuple[int, ...]
    types: tuple[tuple[str, int], ...]
    slots: tuple[str, ...]
    functions: tuple[str, ...]
    inputs: int
    outputs: int
    positions: int
    depth: int

    @property
    def width(self) -> int:
        """F: values of the edge type that has most."""
        return max(width for _, width in self.types)

    def number_of(self, type: str) -> int:
        return [name for name, _ in self.types].index(type)

    def cells(self, shape: tuple[int, ...]) -> Integers:
        """Slots of the cells of a kernel, row by row: ``[K]``.

        A kernel of fewer axes has size 1 on the first ones; an empty shape is one value at the centre.
        """
        whole = (1,) * (len(shape) - len(self.kernel)) + self.kernel
        small = (1,) * (len(whole) - len(shape)) + shape
        if any(s > w for s, w in zip(small, whole, strict=True)):
            raise GraphError(f"a kernel {list(shape)} does not fit into the largest of the family, {list(self.kernel)}")
        slots = np.arange(product(whole)).reshape(whole)
        start = [(w - s) // 2 for s, w in zip(small, whole, strict=True)]
        return slots[tuple(slice(a, a + s) for a, s in zip(start, small, strict=True))].reshape(-1)

    def graph(self, spec: WeightSpec) -> NetworkGraph:
        """The graph of a spec, which fits.

        Raises:
            GraphError: if it has no graph, or one with something that no graph of the family has.
        """
        graph = network_graph(spec, self.options)
        other = frame_of_graphs([graph], self.options)
        for what, ours, theirs in (
            ("edges of type", {name for name, _ in self.types}, {name for name, _ in other.types}),
            ("node values", set(self.slots), set(other.slots)),
            ("neurons that compute", set(self.functions), set(other.functions)),
        ):
            if more := theirs - ours:
                raise GraphError(f"{spec!r} has {what} {sorted(more)}, which no network of the family has")
        for what, most, count in (
            ("inputs", self.inputs, other.inputs),
            ("outputs", self.outputs, other.outputs),
            ("positions", self.positions, other.positions),
        ):
            if count > most:
                raise GraphError(f"{spec!r} has {count} {what}, the networks of the family have at most {most}")
        for shape in graph.kernels():
            self.cells(shape)
        return graph


def frame_of(specs: Iterable[WeightSpec], options: GraphOptions | None = None) -> GraphFrame:
    """The frame of a family.

    Raises:
        GraphError: if a spec has no graph.
    """
    options = GraphOptions() if options is None else options
    return frame_of_graphs((network_graph(spec, options) for spec in specs), options)


def frame_of_graphs(graphs: Iterable[NetworkGraph], options: GraphOptions) -> GraphFrame:
    """:func:`frame_of` graphs that exist."""
    types: dict[str, int] = {}
    slots: set[str] = set()
    functions: set[str] = set()
    kernel: tuple[int, ...] = ()
    inputs = outputs = 0
    positions = depth = 1
    for graph in graphs:
        for edges in graph.edges:
            types[edges.type] = max(types.get(edges.type, 0), edges.width)
        for shape in graph.kernels():
            rank = max(len(shape), len(kernel))
            both = [(1,) * (rank - len(s)) + s for s in (shape, kernel)]
            kernel = tuple(max(pair) for pair in zip(*both, strict=True))
        slots |= {values.slot for values in graph.values}
        inner = graph.of_role("hidden")
        functions |= {n.function for n in inner}
        inputs = max(inputs, sum(n.size for n in graph.of_role("input")))
        outputs = max(outputs, sum(n.size for n in graph.of_role("output")))
        positions = max([positions, *(int(n.index.max()) + 1 for n in inner)])
        depth = max([depth, *(n.depth for n in inner)])
    if KERNEL in types:
        types[KERNEL] = product(kernel)
    order = sorted(types, key=lambda name: (name != KERNEL, name))
    kinds = tuple((name, types[name]) for name in order)
    return GraphFrame(
        options, kernel, kinds, tuple(sorted(slots)), tuple(sorted(functions)), inputs, outputs, positions, depth
    )
