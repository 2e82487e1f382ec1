"""The neural graph while it is traced: nodes with a channel dimension, edges with the stored tensors on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from wsl.trace.values import Dim, Value


class Part(NamedTuple):
    """A stored tensor on an edge: the value that was used, and which of its dimensions follow target and source."""

    value: Value
    target: int | None = None
    source: int | None = None


@dataclass
class Edge:
    """A connection in the making; channel i of the source's range goes to channel i of the target's (channel-wise)."""

    source: int
    target: int
    kind: str
    parts: dict[str, Part] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    source_start: int = 0
    target_start: int = 0
    length: int | None = None  # of the range of channels; None: all of them
    refers: int | None = None  # the node that its attribute "initial" or "memory" names

    @property
    def plain(self) -> bool:
        """Whether it hands all channels on as they are."""
        at_start = not (self.source_start or self.target_start or self.attributes or self.parts)
        return self.kind == "skip" and at_start and self.length is None


@dataclass
class Node:
    """A neuron group in the making."""

    name: str
    dim: Dim
    activation: str = "identity"
    parameters: dict[str, float] = field(default_factory=dict)
    role: str = "hidden"  # or input, output


@dataclass
class Network:
    """Nodes in order of execution, and all edges."""

    nodes: dict[int, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)

    def add(self, name: str, dim: Dim, activation: str = "identity", **parameters: float) -> int:
        """A new node; returns its number."""
        number = len(self.nodes)
        self.nodes[number] = Node(name, dim, activation, dict(parameters))
        return number

    def connect(
        self,
        source: Value,
        target: int,
        kind: str,
        parts: Mapping[str, Part | None] | None = None,
        attributes: Mapping[str, Any] | None = None,
        **ranges: int | None,
    ) -> None:
        """An edge from the node that holds ``source``; values without a node leave their tensors on the target."""
        used = {name: part for name, part in (parts or {}).items() if part is not None}
        given = {name: value for name, value in (attributes or {}).items() if value is not None}
        if source.scale != 1.0:
            given["scale"] = source.scale
        if source.node is not None:
            self.edges.append(Edge(source.node, target, kind, used, given, **ranges))  # type: ignore[arg-type]

    def into(self, node: int) -> list[Edge]:
        """Edges that enter a node."""
        return [e for e in self.edges if e.target == node]

    def out_of(self, node: int) -> list[Edge]:
        """Edges that leave a node."""
        return [e for e in self.edges if e.source == node]

    def remove(self, nodes: Sequence[int]) -> None:
        """Drop nodes with all their edges."""
        gone = set(nodes)
        self.nodes = {i: n for i, n in self.nodes.items() if i not in gone}
        self.edges = [e for e in self.edges if e.source not in gone and e.target not in gone]
