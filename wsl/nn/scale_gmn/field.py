"""From the last states of a neural graph to a field over the parameters that has their factors."""

from __future__ import annotations

import torch
from torch import Tensor

from wsl.graphs.frame import ROLES, GraphFrame
from wsl.nn.graph_scales import GraphScales
from wsl.nn.monomial.invariants import unit
from wsl.nn.scale_gmn.front import reciprocal
from wsl.nn.scale_gmn.functions import keeping_size
from wsl.nn.scale_gmn.graph import ListGraph
from wsl.nn.scale_gmn.kinds import Kind
from wsl.nn.scale_gmn.layer import Edges, EdgeUpdate, OfKind


class ScaleField(GraphScales):
    r"""What an editor changes: a value for each bias from its node, for each weight from its edge and both ends.

    .. math:: Δb_i = α\, A f(h_i), \qquad
        Δw_{ij} = β\, B\big( (Γ e_{ij}) ⊙ φ(\tilde h_j, \tilde h_i) + (Γ_t h_i) ⊙ (Γ_s h_j^{-1}) \big)

    with maps that have no bias, f equivariant, and :math:`h^{-1} = h/‖h‖²` at neurons with positive factors, h at
    others (a sign is its own inverse). So Δb_i has the factor d_i of b_i, and both terms of Δw_ij have d_i / d_j. The
    second one changes weights that are zero, too. Published editors have the first one alone.

    Sums over neurons let states grow with every layer, which no readout of canonical forms notices, but a field would.
    So h_i here is the direction of the last state, times the norm of the first one where that has a positive factor
    (if it is not zero), and of mean square 1 elsewhere.

    Source: Kalogeropoulos et al., "Scale Equivariant Graph Metanetworks", NeurIPS 2024, section 5 and appendix A.

    Args:
        frame: what graphs fit into.
        width: C, of the states.
        out_features: k, values per parameter.
        norm, symmetrised: see :class:`~wsl.nn.scale_gmn.functions.ScaleInv`.
        start: of the learned scales.

    Shapes: a graph, first and last node states ``[ΣN, C]``, edge states by part → ``[ΣP, k]``.
    """

    def __init__(
        self, frame: GraphFrame, width: int, out_features: int, norm: bool, symmetrised: bool, start: float
    ) -> None:
        super().__init__(frame, start)
        self.roles = ROLES
        self.out_features = out_features
        self.node = OfKind(width, width, 1, norm, symmetrised)
        self.on_nodes = keeping_size(width, len(frame.slots) * out_features) if frame.slots else None
        self.edge = EdgeUpdate(width, norm, symmetrised)
        self.target, self.source = keeping_size(width, width), keeping_size(width, width)
        self.on_edges = keeping_size(width, frame.width * out_features)

    def forward(self, graph: ListGraph, first: Tensor, x: Tensor, edges: Edges) -> Tensor:
        both = zip(graph.split(first), graph.split(x), graph.kinds, strict=True)
        sets = [(_settled(start, last, kind), kind) for start, last, kind in both]
        x = graph.join([states for states, _ in sets])
        inverses = self.source(graph.join([_inverse(states, kind) for states, kind in sets]))
        targets = self.target(x)
        gated = self.edge(x, edges, graph, edges)
        changes = [
            gated[n] + part.at("target", targets) * part.at("source", inverses) for n, part in enumerate(graph.parts)
        ]
        on_edges = self.on_edges(graph.join_edges(changes)).unflatten(1, (-1, self.out_features))
        if self.on_nodes is None:
            return self.rows(graph.graph, on_edges.new_zeros(len(x), 0, self.out_features), on_edges)
        on_nodes = self.on_nodes(graph.join([self.node(states, kind) for states, kind in sets]))
        return self.rows(graph.graph, on_nodes.unflatten(1, (-1, self.out_features)), on_edges)


def _settled(first: Tensor, last: Tensor, kind: Kind) -> Tensor:
    """The direction of the last states, in a size that layers do not change."""
    if not kind.acted.scaled:
        return unit(last) * last.shape[-1] ** 0.5
    size, grown = (torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (first, last))
    return unit(last) * torch.where(size > 0, size, grown)


def _inverse(x: Tensor, kind: Kind) -> Tensor:
    """States with the inverse factor."""
    return reciprocal(x) if kind.acted.scaled else x
