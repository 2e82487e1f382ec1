"""What the readout can see: states that reach no node that is read are not computed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from wsl.nn.scale_gmn.graph import KindGraph


@dataclass(frozen=True)
class Reach:
    """Of one layer.

    Attributes:
        messages, back: numbers of the parts that messages run along, or against.
        nodes: numbers of the node sets whose new states are of use.
        edges, back_edges: numbers of the parts whose new states are, for messages of later layers.
    """

    messages: frozenset[int]
    back: frozenset[int]
    nodes: frozenset[int]
    edges: frozenset[int]
    back_edges: frozenset[int]


def reaches(graph: KindGraph, layers: int, roles: Collection[str], backward: bool, own_back: bool) -> list[Reach]:
    """For each layer what its successors and the readout of nodes of these ``roles`` need.

    The last layer sends messages to nodes that are read, the one before also to those which these hear, and so on.
    """
    nodes = frozenset(number for number, kind in enumerate(graph.kinds) if kind.role in roles)
    edges: frozenset[int] = frozenset()
    back_edges: frozenset[int] = frozenset()
    found = []
    for _ in range(layers):
        messages = frozenset(n for n, part in enumerate(graph.parts) if part.sets[1] in nodes)
        back = frozenset(n for n, part in enumerate(graph.parts) if backward and part.sets[0] in nodes)
        found.append(Reach(messages, back, nodes, edges, back_edges))
        nodes = nodes | {graph.parts[n].sets[0] for n in messages} | {graph.parts[n].sets[1] for n in back}
        edges, back_edges = (messages, back) if own_back else (messages | back, frozenset())
    return found[::-1]
