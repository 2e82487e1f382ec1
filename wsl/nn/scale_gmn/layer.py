"""One round of scale- and sign-equivariant message passing."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsl.nn.monomial.invariants import normal_form
from wsl.nn.scale_gmn.functions import Perceptron, ScaleEq, Symmetrised, keeping_size
from wsl.nn.scale_gmn.graph import EdgePart, End, KindGraph
from wsl.nn.scale_gmn.kinds import Kind
from wsl.nn.scale_gmn.reach import Reach

#: edge states of parts by number
Edges = Mapping[int, Tensor]


class OfKind(nn.Module):
    """A function of one vector that has the vector's factor: ScaleEq where there is one, any perceptron elsewhere.

    Args:
        size, width: of the vector, and of the result and hidden layers.
        ends: number of perceptrons for nodes without factors: one, or one for inputs and one for all others.
        norm, symmetrised, side: see :class:`~wsl.nn.scale_gmn.functions.ScaleInv`.
    """

    def __init__(self, size: int, width: int, ends: int, norm: bool, symmetrised: bool, side: int = 0) -> None:
        super().__init__()
        self.moved = ScaleEq(size, width, norm, symmetrised, side)
        self.free = nn.ModuleList(Perceptron(size, width, width, norm, side) for _ in range(ends))

    def forward(self, x: Tensor, kind: Kind, side: Tensor | None = None) -> Tensor:
        if not kind.free:
            return self.moved(x, kind.acted, side)
        return self.free[0 if kind.role == "input" else -1](x, side)


class Message(nn.Module):
    """m_ij = f((Γ_v h_j) ⊙ (Γ_e e_ij)): factors d_j and d_i / d_j make d_i; then their sum over j.

    ``side``: size of the codes of nodes, if f also reads that of the sender.
    """

    def __init__(self, width: int, ends: int, norm: bool, symmetrised: bool, side: int = 0) -> None:
        super().__init__()
        self.node = keeping_size(width, width)
        self.edge = keeping_size(width, width)
        self.function = OfKind(width, width, ends, norm, symmetrised, side)

    def forward(
        self, x: Tensor, edges: Edges, graph: KindGraph, to: End, along: Collection[int], codes: Tensor | None
    ) -> Tensor:
        """Sums ``[…, N, C]`` at the ends ``to`` of the edges, over those of the parts ``along``."""
        sent = self.node(x)
        away: End = "source" if to == "target" else "target"
        messages = {}
        for number in sorted(along):
            part = graph.parts[number]
            product = self.product(sent, edges[number], part, away)
            side = None if codes is None else part.at(away, codes)
            messages[number] = self.function(product, part.target if to == "target" else part.source, side)
        return graph.collect(messages, to, x)

    def product(self, sent: Tensor, edges: Tensor, part: EdgePart, away: End) -> Tensor:
        """(Γ_v h_j) ⊙ (Γ_e e_ij) of one part; ``sent`` is Γ_v h of the nodes at its end ``away``."""
        out: Tensor = self.edge(edges) * part.at(away, sent)
        return out


class EdgeUpdate(nn.Module):
    """e'_ij = (Γ e_ij) ⊙ φ(h̃_j, h̃_i) with the canonical forms of both ends.

    φ's first map splits into a map of either end, so that only its last one, and Γ, are evaluated on edges.
    """

    def __init__(self, width: int, norm: bool, symmetrised: bool) -> None:
        super().__init__()
        self.linear = keeping_size(width, width)
        self.even = Symmetrised(width, width, norm) if symmetrised else None
        self.phi = Perceptron(2 * width, width, width, norm)
        nn.init.ones_(self.phi.last.bias)

    def forward(
        self, x: Tensor, edges: Edges, graph: KindGraph, wanted: Collection[int], sender: End = "source"
    ) -> Edges:
        """New states of the parts that are ``wanted``."""
        sets = zip(graph.split(x), graph.kinds, strict=True)
        canonical = graph.join([self._canonical(states, kind) for states, kind in sets])
        of_sender, of_receiver = self.phi.first.weight.chunk(2, dim=1)
        first = F.linear(canonical, of_sender, self.phi.first.bias)
        second = F.linear(canonical, of_receiver)
        source, target = (first, second) if sender == "source" else (second, first)
        new = {}
        for number in sorted(wanted):
            part = graph.parts[number]
            both = part.at("source", source) + part.at("target", target)
            new[number] = self.linear(edges[number]) * self.phi.last(self.phi.hidden(both))
        return new

    def _canonical(self, x: Tensor, kind: Kind) -> Tensor:
        if kind.acted.signed and self.even is not None:
            return self.even(normal_form(x, kind.acted._replace(signed=False)))
        return normal_form(x, kind.acted)


class ScaleGMNLayer(nn.Module):
    """Messages along the network, perhaps messages against it, node update f([h_i, sums]), edge update.

    Args:
        width: C. ``ends``: see :class:`OfKind`. ``norm``, ``symmetrised``: see :class:`ScaleEq`.
        backward: whether messages also run against the edges.
        own_back: whether edges have other states in that direction, which are updated apart.
        update_edges: not in the last layer of a network of which only nodes are read.
        skip: add a linear map of the node states.
        coded: messages and node updates read codes of nodes as well.

    Source: Kalogeropoulos et al., "Scale Equivariant Graph Metanetworks", NeurIPS 2024, section 5.
    """

    def __init__(
        self,
        width: int,
        ends: int,
        norm: bool,
        symmetrised: bool,
        *,
        backward: bool,
        own_back: bool,
        update_edges: bool,
        skip: bool,
        coded: bool = False,
    ) -> None:
        super().__init__()
        self.own_back, side = own_back, width * coded
        self.message = Message(width, ends, norm, symmetrised, side)
        self.back_message = Message(width, ends, norm, symmetrised, side) if backward else None
        self.update = OfKind((3 if backward else 2) * width, width, ends, norm, symmetrised, side)
        self.edge_update = EdgeUpdate(width, norm, symmetrised) if update_edges else None
        self.back_update = EdgeUpdate(width, norm, symmetrised) if update_edges and own_back else None
        self.skip = keeping_size(width, width) if skip else None

    def forward(
        self, x: Tensor, edges: Edges, back: Edges, graph: KindGraph, reach: Reach, codes: Tensor | None = None
    ) -> tuple[Tensor, Edges, Edges]:
        """New states of nodes, of edges, and of edges against the network (the same unless ``own_back``).

        Nodes out of reach have states 0, edges out of reach none. ``codes [1 or B, N, C]`` or ``[ΣN, C]`` if coded.
        """
        heard = [x, self.message(x, edges, graph, "target", reach.messages, codes)]
        if self.back_message is not None:
            heard.append(self.back_message(x, back, graph, "source", reach.back, codes))
        joint, own = graph.split(torch.cat(heard, dim=-1)), graph.split(x)
        sides = [None] * len(own) if codes is None else graph.split(codes)
        sets = []
        for number, (kind, side) in enumerate(zip(graph.kinds, sides, strict=True)):
            reached = number in reach.nodes
            sets.append(self.update(joint[number], kind, side) if reached else torch.zeros_like(own[number]))
        new = graph.join(sets)
        if self.skip is not None:
            new = new + self.skip(x)
        if self.edge_update is not None:
            edges = self.edge_update(new, edges, graph, reach.edges)
        if self.back_update is not None:
            back = self.back_update(new, back, graph, reach.back_edges, "target")
        return new, edges, back if self.own_back else edges
