"""Learned scales of what an editor changes on a neural graph, one for each kind of value and depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsl.graphs.edge_list import EdgeList
from wsl.graphs.frame import GraphFrame
from wsl.graphs.tables import edge_classes, node_classes


class GraphScales(nn.Module):
    """Changes of node and edge values, times their scales, as a field over the parameters.

    Every value is read at the place where the graph holds it, so the field moves with the neurons; a scale is a number,
    so the field keeps the factors of its values.

    Args:
        frame: what graphs fit into.
        start: of the scales.

    Shapes: a graph, changes ``[ΣN, V, k]`` and ``[ΣE, F, k]`` → ``[ΣP, k]``.
    """

    def __init__(self, frame: GraphFrame, start: float) -> None:
        super().__init__()
        self.node_scale = nn.Parameter(torch.full((node_classes(frame),), start)) if frame.slots else None
        self.edge_scale = nn.Parameter(torch.full((edge_classes(frame),), start))

    def rows(self, graph: EdgeList, on_nodes: Tensor, on_edges: Tensor) -> Tensor:
        """The field."""
        on_edges = on_edges * self._scales(graph, self.edge_scale, on_edges, edges=True)
        if self.node_scale is not None:
            on_nodes = on_nodes * self._scales(graph, self.node_scale, on_nodes, edges=False)
        return graph.rows(on_nodes, on_edges)

    def _scales(self, graph: EdgeList, scale: Tensor, values: Tensor, edges: bool) -> Tensor:
        """The scale of each value, ``[ΣE, F, 1]`` or ``[ΣN, V, 1]``; zero where there is none."""
        cells = graph.edge_cells if edges else graph.node_cells
        of_cells = scale.index_select(0, cells.classes).unsqueeze(-1)
        return cells.spread(of_cells, values.shape[0] * values.shape[1]).view(*values.shape[:2], 1)
