"""Neural graphs sorted by kind, so that each function is evaluated where it is legal and nowhere else.

Nodes come in sets of one kind, edges in parts whose edges all leave nodes of one kind and reach nodes of one kind. The
layers see the methods of :class:`KindGraph` only, and run on

``DenseGraph``  one architecture: a part is a connection, ``[B, O, I, C]``; ends are broadcast, sums reduce an axis;
``ListGraph``   any architectures: a part is ``[E, C]``; ends are gathered, sums scattered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from wsl.graphs.edge_list import EdgeList, states_of
from wsl.graphs.network import EdgeSet, NetworkGraph
from wsl.nn.scale_gmn.kinds import KINDS, Kind

End = Literal["source", "target"]


class EdgePart(Protocol):
    """Edges from nodes of one kind to nodes of one kind."""

    @property
    def source(self) -> Kind: ...

    @property
    def target(self) -> Kind: ...

    @property
    def sets(self) -> tuple[int, int]:
        """Numbers of the node sets at the source and the target."""

    def at(self, end: End, nodes: Tensor) -> Tensor:
        """States of the nodes at one end, as something that broadcasts against the part's edge states."""


class KindGraph(Protocol):
    """Node states are ``[…, N, C]``; edge states a list, one tensor for each part."""

    @property
    def kinds(self) -> Sequence[Kind]:
        """Of the node sets."""

    @property
    def parts(self) -> Sequence[EdgePart]: ...

    def split(self, nodes: Tensor) -> Sequence[Tensor]:
        """States of all nodes → those of each set."""

    def join(self, sets: Sequence[Tensor]) -> Tensor:
        """Inverse of :meth:`split`."""

    def collect(self, edges: Mapping[int, Tensor], end: End, like: Tensor) -> Tensor:
        """Sums over the edges of some parts that have a node at that end: ``[…, N, C]``, as ``like``."""

    def of_role(self, nodes: Tensor, role: str) -> Tensor:
        """States of inputs or outputs ``[B, n, C]``, in their order."""

    def hidden_sum(self, sets: Sequence[Tensor]) -> Tensor:
        """Sums ``[B, C]`` over the hidden nodes of each network, of states of the hidden sets."""


class NotDenseError(ValueError):
    """Some connection does not join all neurons of one group with all of another."""


@dataclass(frozen=True)
class DensePart:
    """A connection between the nodes ``start … stop`` at either end, as (start, size)."""

    source: Kind
    target: Kind
    sets: tuple[int, int]
    sources: tuple[int, int]
    targets: tuple[int, int]

    def at(self, end: End, nodes: Tensor) -> Tensor:
        start, size = self.sources if end == "source" else self.targets
        return nodes.narrow(1, start, size).unsqueeze(1 if end == "source" else 2)


@dataclass(frozen=True)
class DenseGraph:
    """Node states ``[B, N, C]``, edge states ``[B, O, I, C]``.

    Attributes:
        sets: (start, size) of each set of nodes, which follow each other.
    """

    kinds: tuple[Kind, ...]
    sets: tuple[tuple[int, int], ...]
    parts: tuple[DensePart, ...]

    def split(self, nodes: Tensor) -> Sequence[Tensor]:
        return nodes.split([size for _, size in self.sets], dim=1)

    def join(self, sets: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(sets), dim=1)

    def collect(self, edges: Mapping[int, Tensor], end: End, like: Tensor) -> Tensor:
        found: dict[int, Tensor] = {}
        for number, states in edges.items():
            place, total = self.parts[number].sets[end == "target"], states.sum(1 if end == "source" else 2)
            found[place] = found[place] + total if place in found else total
        empty = self.split(like)
        return self.join([found[n] if n in found else torch.zeros_like(e) for n, e in enumerate(empty)])

    def of_role(self, nodes: Tensor, role: str) -> Tensor:
        chosen = [part for kind, part in zip(self.kinds, self.split(nodes), strict=True) if kind.role == role]
        return torch.cat(chosen, dim=1) if chosen else nodes[:, :0]

    def hidden_sum(self, sets: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(sets), dim=1).sum(1)


def dense_order(edges: EdgeSet) -> np.ndarray:
    """The order in which a connection's edges are a matrix ``[O, I]``.

    Raises:
        NotDenseError: if they are not: some pair of neurons is not joined, or joined twice.
    """
    order = np.lexsort((edges.source, edges.target))
    sources, targets = np.unique(edges.source), np.unique(edges.target)
    dense = len(edges) == len(sources) * len(targets) and all(
        np.array_equal(a, np.arange(a[0], a[0] + len(a))) for a in (sources, targets)
    )
    if not dense or not np.array_equal(edges.source[order], np.tile(sources, len(targets))):
        raise NotDenseError(f"the edges of connection {edges.connection} are no matrix")
    return order


def dense_graph(graph: NetworkGraph, kinds: Sequence[int]) -> DenseGraph:
    """The graph of one architecture, all of whose connections are matrices between groups; ``kinds [N]`` of its nodes.

    Raises:
        NotDenseError: if one of them is not.
    """
    sets = tuple((nodes.start, nodes.size) for nodes in graph.nodes)
    parts = []
    for edges in graph.edges:
        dense_order(edges)
        ends = [(int(e.min()), int(e.max() - e.min()) + 1) for e in (edges.source, edges.target)]
        if not set(ends) <= set(sets):
            raise NotDenseError(f"the edges of connection {edges.connection} join parts of groups")
        source, target = (KINDS[kinds[start]] for start, _ in ends)
        numbers = sets.index(ends[0]), sets.index(ends[1])
        parts.append(DensePart(source, target, numbers, ends[0], ends[1]))
    return DenseGraph(tuple(KINDS[kinds[start]] for start, _ in sets), sets, tuple(parts))


@dataclass(frozen=True, eq=False)
class ListPart:
    """Edges ``edges [E]`` of a list, from ``sources [E]`` to ``targets [E]``."""

    source: Kind
    target: Kind
    sets: tuple[int, int]
    edges: Tensor
    sources: Tensor
    targets: Tensor

    def at(self, end: End, nodes: Tensor) -> Tensor:
        return nodes.index_select(0, self.sources if end == "source" else self.targets)

    def subset(self, rows: Tensor) -> ListPart:
        """The edges of these rows."""
        some = (t.index_select(0, rows) for t in (self.edges, self.sources, self.targets))
        return ListPart(self.source, self.target, self.sets, *some)


@dataclass(frozen=True, eq=False)
class ListGraph:
    """Node states ``[ΣN, C]``, edge states ``[E, C]``.

    Attributes:
        sets: nodes ``[n]`` of each set.
    """

    graph: EdgeList
    kinds: tuple[Kind, ...]
    sets: tuple[Tensor, ...]
    parts: tuple[ListPart, ...]

    @cached_property
    def _place(self) -> Tensor:
        return torch.cat(self.sets).argsort()

    def split(self, nodes: Tensor) -> Sequence[Tensor]:
        return [nodes.index_select(0, rows) for rows in self.sets]

    def join(self, sets: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(sets)).index_select(0, self._place)

    def join_edges(self, parts: Sequence[Tensor]) -> Tensor:
        """States of all edges ``[ΣE, C]``, in the order of the list, from those of each part."""
        order = torch.cat([part.edges for part in self.parts])
        return torch.cat(list(parts)).index_select(0, order.argsort())

    def collect(self, edges: Mapping[int, Tensor], end: End, like: Tensor) -> Tensor:
        if not edges:
            return torch.zeros_like(like)
        ends = [self.parts[n].sources if end == "source" else self.parts[n].targets for n in edges]
        states = torch.cat(list(edges.values()))
        wide = torch.promote_types(states.dtype, like.dtype)  # they may differ under autocast
        return torch.zeros_like(like, dtype=wide).index_add(0, torch.cat(ends), states.to(wide))

    def of_role(self, nodes: Tensor, role: str) -> Tensor:
        return states_of(self.graph, nodes, role)

    def hidden_sum(self, sets: Sequence[Tensor]) -> Tensor:
        rows = [rows for kind, rows in zip(self.kinds, self.sets, strict=True) if kind.role == "hidden"]
        states = torch.cat(list(sets))
        owner = self.graph.node_owner[torch.cat(rows)]
        return states.new_zeros(len(self.graph), states.shape[-1]).index_add(0, owner, states)


def list_graph(graph: EdgeList, kinds: Tensor) -> ListGraph:
    """An edge list sorted by the kinds ``[ΣN]`` of its nodes."""
    present = kinds.unique().tolist()
    sets = tuple((kinds == number).nonzero().squeeze(-1) for number in present)
    pairs = kinds[graph.source] * len(KINDS) + kinds[graph.target]
    parts = []
    for pair in pairs.unique().tolist():
        rows = (pairs == pair).nonzero().squeeze(-1)
        source, target = divmod(pair, len(KINDS))
        numbers = present.index(source), present.index(target)
        parts.append(ListPart(KINDS[source], KINDS[target], numbers, rows, graph.source[rows], graph.target[rows]))
    return ListGraph(graph, tuple(KINDS[number] for number in present), sets, tuple(parts))
