"""From the states of a neural graph back to a field over the parameters of the networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsl.graphs.edge_list import EdgeList
from wsl.graphs.frame import GraphFrame
from wsl.graphs.tables import edge_classes, node_classes
from wsl.nn.mlp import mlp


class GraphField(nn.Module):
    r"""What an editor changes: a value for each bias from its own node, for each weight from its own edge.

    .. math:: Δb_i = α\, \mathrm{MLP}(x_i), \qquad Δw_{ij} = β\, \mathrm{MLP}([e_{ij}, x_j, x_i])

    for the edge from j to i, with one learned scale for each kind of value and depth. Kernels take one result per cell.
    Every value is read at the place where the graph holds it, so the field moves with the neurons; the published code
    reads the biases of NG-GNN as many nodes too early as there are inputs.

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
        super().__init__()
        self.out_features = out_features
        self.nodes = mlp((node_width, node_width, len(frame.slots) * out_features)) if frame.slots else None
        self.edges = mlp((edge_width + 2 * node_width, node_width, frame.width * out_features))
        self.node_scale = nn.Parameter(torch.full((node_classes(frame),), scale)) if frame.slots else None
        self.edge_scale = nn.Parameter(torch.full((edge_classes(frame),), scale))

    def forward(self, graph: EdgeList, x: Tensor, e: Tensor) -> Tensor:
        ends = x.index_select(0, graph.source), x.index_select(0, graph.target)
        on_edges = self.edges(torch.cat([e, *ends], dim=-1)).unflatten(1, (-1, self.out_features))
        on_edges = on_edges * self._scales(graph, self.edge_scale, on_edges, edges=True)
        if self.nodes is None:
            return graph.rows(on_edges.new_zeros(graph.num_nodes, 0, self.out_features), on_edges)
        on_nodes = self.nodes(x).unflatten(1, (-1, self.out_features))
        return graph.rows(on_nodes * self._scales(graph, self.node_scale, on_nodes, edges=False), on_edges)

    def _scales(self, graph: EdgeList, scale: Tensor | None, values: Tensor, edges: bool) -> Tensor:
        """The scale of each value, ``[ΣE, F, 1]`` or ``[ΣN, V, 1]``; zero where there is none."""
        assert scale is not None
        cells = graph.edge_cells if edges else graph.node_cells
        of_cells = scale.index_select(0, cells.classes).unsqueeze(-1)
        return cells.spread(of_cells, values.shape[0] * values.shape[1]).view(*values.shape[:2], 1)
