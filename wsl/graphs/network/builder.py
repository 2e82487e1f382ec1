"""Collects nodes and edges of a spec: which group is which nodes, and what is added to them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from wsl.graphs.network.factors import factors_of
from wsl.graphs.network.parts import (
    KERNEL,
    EdgeSet,
    GraphError,
    GraphOptions,
    Integers,
    NetworkGraph,
    Nodes,
    NodeValues,
    product,
)
from wsl.spec import Connection, WeightSpec

#: kinds by which a group may only hand on what another one holds
HANDS_ON = ("pool", "upsample", "skip", "slice")


@dataclass(frozen=True, eq=False)
class _Place:
    """Where the neurons of a group are: local numbers ``within`` the nodes of the group ``root``."""

    root: str
    within: Integers


class Builder:
    """The graph of one spec in the making; rules for connections add to it.

    Attributes:
        factors: the labels over which each group ranges.
        current: number of the connection whose edges are being added; −1 for none.
    """

    def __init__(self, spec: WeightSpec, options: GraphOptions) -> None:
        if not spec.connections or not all(spec.size_of(g.name) for g in spec.groups):
            raise GraphError(f"a neural graph needs connections between groups that are not empty, {spec!r} has not")
        self.spec, self.options = spec, options
        self.factors = factors_of(spec)
        self.current = -1
        self._nodes: dict[str, Nodes] = {}
        self._values: list[NodeValues] = []
        self._edges: list[EdgeSet] = []
        self._slots: Counter[tuple[str, str]] = Counter()
        self._count = 0
        self._ends = self._find_ends()
        self._places = self._find_places()
        self._copies = self._find_copies()
        for group in spec.groups:
            self._add_group(group.name)

    # -- nodes --------------------------------------------------------------------------------------------------------

    def _find_ends(self) -> dict[str, str]:
        """Role of the groups that are inputs (fed by none) or outputs (read by none)."""
        fed = {c.target for c in self.spec.connections if c.source != c.target}
        read = {c.source for c in self.spec.connections if c.source != c.target}
        last = [g for g in self.spec.groups if g.name not in read]
        outputs = [g for g in last if self._kind(g.name) == "output"] or last
        roles = {g.name: "input" for g in self.spec.groups if g.name not in fed}
        return roles | {g.name: "output" for g in outputs if g.name in fed and self._kind(g.name) != "hidden"}

    def _kind(self, group: str) -> str:
        kinds = {self.spec.label[name].kind for name in self.factors[group]}
        return "hidden" if "hidden" in kinds else next((k for k in ("input", "output") if k in kinds), "fixed")

    def _find_places(self) -> dict[str, _Place]:
        places: dict[str, _Place] = {}
        for group in self.spec.groups:
            size = self.spec.size_of(group.name)
            own = _Place(group.name, np.arange(size))
            incoming = self.spec.incoming(group.name)
            if len(incoming) == 1 and self._only_hands_on(incoming[0]) and incoming[0].source in places:
                before = places[incoming[0].source]
                start = int(incoming[0].attributes.get("start", 0)) if incoming[0].kind == "slice" else 0
                own = _Place(before.root, before.within[start : start + size])
            places[group.name] = own
        return places

    def _only_hands_on(self, connection: Connection) -> bool:
        group = self.spec.group[connection.target]
        sizes = self.spec.size_of(connection.source), self.spec.size_of(connection.target)
        fits = sizes[0] == sizes[1] or (connection.kind == "slice" and sizes[0] > sizes[1])
        plain = group.activation == "identity" and not group.parameters.get("offset", 0.0)
        plain = plain and connection.attributes.get("scale", 1) == 1 and connection.source != connection.target
        return connection.kind in HANDS_ON and not connection.tensors and fits and plain

    def _find_copies(self) -> dict[str, tuple[set[int], bool]]:
        """Group → numbers of positions for which it is flattened, and whether it is read unflattened too."""
        found: dict[str, tuple[set[int], bool]] = {}
        for c in self.spec.connections:
            root = self._places[c.source].root
            if self._places[c.target].root == root and c.kind in HANDS_ON:
                continue
            cells, plain = found.get(root, (set(), False))
            spatial = c.attributes.get("spatial")
            if spatial is not None and self.options.flatten != "kernel":
                found[root] = (cells | {math.prod(spatial)}, plain)
            else:
                found[root] = (cells, True)
        return found

    def _add_group(self, name: str) -> None:
        place = self._places[name]
        if place.root != name:
            return
        group, size = self.spec.group[name], self.spec.size_of(name)
        aliases = [g for g, p in self._places.items() if p.root == name]
        roles = [self._ends[g] for g in aliases if g in self._ends]
        role = "input" if "input" in roles else "output" if "output" in roles else "hidden"
        cells, plain = self._copies.get(name, (set(), True))
        function = group.activation
        if plain or not cells or self.options.flatten == "layer":
            self.add_nodes(name, size, role, function, self.factors[name])
        for count in sorted(cells):
            self.add_nodes(f"{name}@{count}", size * count, role, function, (*self.factors[name], ""), count)
            if self.options.flatten == "layer":
                source = self._nodes[name].start + np.repeat(np.arange(size), count)
                self._append(KERNEL, source, self._nodes[f"{name}@{count}"].start + np.arange(size * count), None)

    def add_nodes(
        self, name: str, size: int, role: str, function: str, factors: tuple[str, ...], positions: int = 0
    ) -> Nodes:
        """New nodes; ``factors`` are the labels that they range over, "" stands for that many ``positions``."""
        index, individual = np.zeros(size, dtype=np.int64), False
        shape = [positions if f == "" else self.spec.label[f].size for f in factors]
        if role == "hidden" and product(shape) == size:
            for place, factor in zip(np.unravel_index(np.arange(size), shape), factors, strict=True):
                if factor == "" or self.spec.label[factor].kind != "hidden":
                    index = index * (place.max() + 1) + place
                    individual = individual or bool(place.max() > 0)
        elif role == "hidden":
            raise GraphError(f"the {size} neurons of group {name!r} are no product of the labels {factors}")
        else:
            index = np.arange(size) + sum(n.size for n in self._nodes.values() if n.role == role)
            individual = True
        self._nodes[name] = Nodes(name, self._count, size, role, function, 0, index, individual)
        self._count += size
        return self._nodes[name]

    def held(self, name: str) -> Nodes | None:
        """Nodes that a rule has added under this name."""
        return self._nodes.get(name)

    # -- what rules ask and add ---------------------------------------------------------------------------------------

    def source(self, group: str) -> Integers:
        """Nodes of the neurons of a group that a connection reads."""
        place = self._places[group]
        if place.root not in self._nodes:
            raise GraphError(f"group {group!r} is read both flattened and as it is")
        return self._nodes[place.root].start + place.within

    def flattened(self, group: str, cells: int) -> Integers:
        """Nodes of the neurons of a group at every position, channel by channel."""
        place = self._places[group]
        start = self._nodes[f"{place.root}@{cells}"].start
        return (start + place.within[:, None] * cells + np.arange(cells)).reshape(-1)

    def aliased(self, connection: Connection) -> bool:
        """Whether both ends are the same nodes."""
        return self._places[connection.source].root == self._places[connection.target].root and (
            connection.kind in HANDS_ON and self._places[connection.target].root != connection.target
        )

    def _targets(self, group: str) -> list[tuple[Nodes, int]]:
        """Nodes that receive what arrives at a group, with the number of copies of each neuron."""
        cells, _ = self._copies.get(group, (set(), True))
        found = [(self._nodes[group], 1)] if group in self._nodes else []
        if self.options.flatten == "repeat":
            found += [(self._nodes[f"{group}@{count}"], count) for count in sorted(cells)]
        return found

    def connect(
        self,
        connection: Connection,
        type: str,
        source: Integers,
        target: Integers,
        positions: Integers | None = None,
        shape: tuple[int, ...] = (),
        constant: float = 0.0,
    ) -> None:
        """Edges to the neurons numbered ``target [E]`` of the connection's target, from the nodes ``source [E]``.

        ``positions [E, K]`` in the row; None for one constant.
        """
        for nodes, count in self._targets(connection.target):
            copies = np.arange(count)
            ends = (nodes.start + target[:, None] * count + copies).reshape(-1)
            places = None if positions is None else np.repeat(positions, count, axis=0)
            self._append(type, np.repeat(source, count), ends, places, shape, constant)

    def join(
        self,
        type: str,
        source: Integers,
        target: Integers,
        positions: Integers | None = None,
        constant: float = 0.0,
        recurrent: bool = False,
    ) -> None:
        """Edges between nodes ``[E]`` that rules have added."""
        self._append(type, source, target, positions, (), constant, recurrent)

    def _append(
        self,
        type: str,
        source: Integers,
        target: Integers,
        positions: Integers | None,
        shape: tuple[int, ...] = (),
        constant: float = 0.0,
        recurrent: bool = False,
    ) -> None:
        if positions is None:
            positions, constant = np.full((len(source), 1), -1, dtype=np.int64), constant or 1.0
        self._edges.append(EdgeSet(type, source, target, positions, shape, constant, self.current, recurrent))

    def give(self, group: str, slot: str, positions: Integers) -> None:
        """Values ``[size]`` on the neurons of a group, beside those of the same kind that they have."""
        number = self._slots[group, slot]
        self._slots[group, slot] += 1
        for nodes, count in self._targets(group):
            self.give_nodes(nodes, f"{slot}.{number}" if number else slot, np.repeat(positions, count))

    def give_nodes(self, nodes: Nodes, slot: str, positions: Integers) -> None:
        """Values ``[size]`` on nodes that a rule has added."""
        self._values.append(NodeValues(slot, nodes.start + np.arange(nodes.size), positions.reshape(-1)))

    # -- the whole ----------------------------------------------------------------------------------------------------

    def finish(self) -> NetworkGraph:
        """The graph, if every value of the row is on it."""
        held = np.zeros(self.spec.numel, dtype=bool)
        for values in self._values:
            held[values.positions] = True
        for edges in self._edges:
            held[edges.positions[edges.positions >= 0]] = True
        if not held.all():
            missing = [t.name for t in self.spec.tensors if not held[t.index()].all()]
            raise GraphError(f"no connection says what the tensors {missing} do, so they are on no node and no edge")
        depth = self._depths()
        nodes = tuple(replace(n, depth=depth[n.name]) for n in self._nodes.values())
        return NetworkGraph(nodes, tuple(self._values), tuple(self._edges))

    def _depths(self) -> dict[str, int]:
        """Longest paths from the inputs, counted in sets of nodes; hidden ones are at least 1 away."""
        starts = np.array([n.start for n in self._nodes.values()])
        names = list(self._nodes)
        arcs = set()
        for edges in (e for e in self._edges if not e.recurrent and len(e)):
            ends = [np.searchsorted(starts, side, side="right") - 1 for side in (edges.source, edges.target)]
            arcs |= {(int(a), int(b)) for a, b in np.unique(np.stack(ends, axis=1), axis=0) if a != b}
        depth = [1 if n.role == "hidden" else 0 for n in self._nodes.values()]
        for _ in names:
            before = list(depth)
            for a, b in arcs:
                depth[b] = max(depth[b], depth[a] + 1)
            if depth == before:
                return dict(zip(names, depth, strict=True))
        raise GraphError("the connections run in a circle, and none of them is recurrent")
