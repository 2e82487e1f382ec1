"""From the states of a neural graph back to a field over the parameters of the networks."""

from __future__ import annotations

import torch
from torch import Tensor

from wsl.encoders.base import UnsupportedSpecError
from wsl.graphs.edge_list import EdgeList
from wsl.graphs.frame import GraphFrame
from wsl.nn.graph_scales import GraphScales
from wsl.nn.mlp import mlp


class GraphField(GraphScales):
    r"""What an editor changes: a value for each bias from its own node, for each weight from its own edge.

    .. math:: Δb_i = α\, \mathrm{MLP}(x_i), \qquad Δw_{ij} = β\, \mathrm{MLP}([e_{ij}, x_j, x_i])

    for the edge from j to i, with one learned scale for each kind of value and depth. Kernels take one result per cell.
    The published code reads the biases of NG-GNN as many nodes too early as there are inputs.

    Source: Kofinas et al., "Graph Neural Networks for Learning Equivariant Representations of Neural Networks", section
    4.2; the states of both ends of an edge are read as well here.

    Args:
        frame: what graphs fit into.
        node_width, edge_width: of the states.
        out_features: k, values per parameter.
        scale: start of the scales.

    Shapes: a graph, node states ``[ΣN, C]``, edge states ``[ΣE, D]`` → ``[ΣP, k]``.
    """

    def __init__(self, frame: GraphFrame, node_width: int, edge_width: int, out_features: int, scale: float) -> None:
        super().__init__(frame, scale)
        self.out_features = out_features
        self.nodes = mlp((node_width, node_width, len(frame.slots) * out_features)) if frame.slots else None
        self.edges = mlp((edge_width + 2 * node_width, node_width, frame.width * out_features))

    def forward(self, graph: EdgeList, x: Tensor, e: Tensor) -> Tensor:
        ends = x.index_select(0, graph.source), x.index_select(0, graph.target)
        on_edges = self.edges(torch.cat([e, *ends], dim=-1)).unflatten(1, (-1, self.out_features))
        if self.nodes is None:
            return self.rows(graph, on_edges.new_zeros(graph.num_nodes, 0, self.out_features), on_edges)
        return self.rows(graph, self.nodes(x).unflatten(1, (-1, self.out_features)), on_edges)


def refuse_readout(name: str, readout: str) -> None:
    """Raise UnsupportedSpecError if an encoder that is asked for a field is also asked for a readout."""
    if readout != "outputs":
        raise UnsupportedSpecError(f"{name} returns a field, which no readout makes: leave readout=outputs")
