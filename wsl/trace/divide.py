"""Nodes whose channels belong to several labels divided into one node for each, and their edges with them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from wsl.trace.axes import Axis, Cell, cells
from wsl.trace.network import Edge, Network
from wsl.trace.pieces import Range
from wsl.trace.values import axis_of

CHANNELWISE = {"skip", "norm", "pool", "upsample", "multiply", "depthwise"}
_MIXING_NORMS = {"layer", "rms", "group"}


@dataclass
class Group:
    """One final neuron group: a cell of a node's channels."""

    node: int
    name: str
    axis: Axis  # the one leaf, or the product where heads or groups make two
    span: Range  # of the node's channels
    cell: Cell


@dataclass
class Link:
    """One final connection, with the ranges of channels that its tensors are narrowed to."""

    source: int
    target: int
    edge: Edge
    kind: str
    attributes: dict = field(default_factory=dict)
    source_span: tuple[Range, int] = (Range(0, 0), 0)
    target_span: tuple[Range, int] = (Range(0, 0), 0)
    first: bool = True  # the first source of its edge: carries the parts that do not depend on the source


class Divided(NamedTuple):
    """The final graph."""

    groups: list[Group]
    links: list[Link]


def divide(network: Network) -> Divided:
    """Groups in order of execution, and the links between them; zero channels that nothing enters are dropped."""
    groups: list[Group] = []
    of_node: dict[int, list[int]] = {}
    for number, node in network.nodes.items():
        found = [(c, math.prod(x.axis.size for x in c.leaves)) for c in cells(axis_of(node.dim))]
        of_node[number] = list(range(len(groups), len(groups) + len(found)))
        for k, (cell, size) in enumerate(found):
            name = node.name if len(found) == 1 else f"{node.name}.{k}"
            axis = cell.leaves[0].axis if len(cell.leaves) == 1 else Axis(size, reason="product")
            groups.append(Group(number, name, axis, Range(cell.offset, cell.offset + size), cell))
    links = [link for edge in network.edges for link in _links(network, edge, groups, of_node)]
    return _without_zeros(network, groups, links)


def _links(network: Network, edge: Edge, groups: list[Group], of_node: dict[int, list[int]]) -> list[Link]:
    sources, targets = of_node[edge.source], of_node[edge.target]
    n_source = sum(groups[s].span.stop - groups[s].span.start for s in sources)
    n_target = sum(groups[t].span.stop - groups[t].span.start for t in targets)
    self_edge = edge.source == edge.target
    channelwise = edge.kind in CHANNELWISE or (edge.kind == "parameter" and self_edge)
    attributes = dict(edge.attributes)
    kind = edge.kind
    if kind == "norm" and attributes.get("norm") in _MIXING_NORMS and len(sources) > 1:
        kind, attributes = "unknown", attributes | {"op": "norm", "over": [groups[s].name for s in sources]}
    if edge.refers is not None:
        named = [groups[g].name for g in of_node[edge.refers]]
        attributes["memory" if kind == "attention" else "initial"] = named[0]
        kind, attributes = (kind, attributes) if len(named) == 1 else ("unknown", attributes | {"op": kind})
    links = []
    for s in sources:
        for t in targets:
            own = attributes
            if channelwise:
                if not _meets(edge, groups[s].span, groups[t].span):
                    continue
                own = own | _starts(edge, groups[s].span, groups[t].span)
            links.append(Link(s, t, edge, kind, own, (groups[s].span, n_source), (groups[t].span, n_target)))
    if edge.kind == "attention" and len(links) > 1:
        for link in links:
            link.kind, link.attributes = "unknown", {**link.attributes, "op": "attention"}
    return links


def _meets(edge: Edge, source: Range, target: Range) -> bool:
    shift = edge.target_start - edge.source_start
    low = max(source.start, edge.source_start) + shift
    stop = source.stop if edge.length is None else min(source.stop, edge.source_start + edge.length)
    return low < target.stop and target.start < stop + shift


def _starts(edge: Edge, source: Range, target: Range) -> dict[str, int]:
    """First target channel of this source, or first source channel read, within the groups themselves."""
    shift = source.start + edge.target_start - edge.source_start - target.start
    return {"start": shift} if shift else {}


def _without_zeros(network: Network, groups: list[Group], links: list[Link]) -> Divided:
    """Padding makes channels that are zero: no link enters them; what they would add is nothing."""
    alive = set(range(len(groups)))
    while True:
        entered = {link.target for link in links}
        dead = {g for g in alive if g not in entered and network.nodes[groups[g].node].role == "hidden"}
        if not dead:
            break
        alive -= dead
        links = [link for link in links if link.source not in dead and link.target not in dead]
    for number in sorted(alive):
        if _read_through(network, groups, links, number):
            links = [link for link in links if link.target != number]
            alive.discard(number)
    order = sorted(alive)
    place = {g: k for k, g in enumerate(order)}
    moved = [replace(link, source=place[link.source], target=place[link.target]) for link in links]
    met: set[tuple[int, int]] = set()
    for link in moved:
        link.first = link.edge.kind in CHANNELWISE or (id(link.edge), link.target) not in met
        met.add((id(link.edge), link.target))
    return Divided([groups[g] for g in order], moved)


def _read_through(network: Network, groups: list[Group], links: list[Link], number: int) -> bool:
    """Let the readers of a group that only hands one whole group on (a piece of a concatenation) read that group."""
    node = network.nodes[groups[number].node]
    entering = [link for link in links if link.target == number]
    leaving = [link for link in links if link.source == number]
    if node.role != "hidden" or node.activation != "identity" or node.parameters or len(entering) != 1 or not leaving:
        return False
    (link,) = entering
    same = groups[link.source].axis.root is groups[number].axis.root
    plain_readers = all(other.kind == "skip" and not other.attributes for other in leaving)
    if link.kind != "skip" or link.source == number or not same or not (plain_readers or not link.attributes):
        return False
    for other in leaving:
        other.source = link.source
        other.attributes = {**link.attributes, **other.attributes}
    return True
