"""Standardise the values of neural graphs, with one mean and one deviation for each kind of value and depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsl.graphs.edge_list import Cells, EdgeList
from wsl.graphs.frame import GraphFrame
from wsl.graphs.tables import edge_classes, node_classes


class GraphStandardize(nn.Module):
    """(value − mean) / std, with scalars for all weights (or biases, gates, …) into layers of one depth.

    Networks of different architectures share statistics where they share types of edges and depths; outputs are a depth
    of their own. On one MLP this is :class:`~wsl.nn.standardize.Standardize`. Constants of edges stay what they are.
    Classes of which the training data had none pass unchanged.

    Shapes: a graph and all values of its batch ``[ΣP, 1]`` → those of its node cells and edge cells, ``[M, 1]`` each.
    """

    def __init__(self, frame: GraphFrame) -> None:
        super().__init__()
        for name, count in (("node", node_classes(frame)), ("edge", edge_classes(frame))):
            self.register_buffer(f"{name}_mean", torch.zeros(count))
            self.register_buffer(f"{name}_std", torch.ones(count))

    @torch.no_grad()
    def fit(self, graph: EdgeList, flat: Tensor) -> None:
        """Take means and deviations from networks; a class that does not vary keeps its scale (std 1).

        Raises:
            ValueError: if there is no network, or a value is not finite.
        """
        if len(graph) == 0:
            raise ValueError("statistics of an empty batch do not exist; give at least one network")
        if not bool(flat.isfinite().all()):
            bad = int((~flat.isfinite().all(dim=1)).sum())
            raise ValueError(f"{bad} of the networks' {len(flat)} values are not finite; remove their rows")
        for name, cells in (("node", graph.node_cells), ("edge", graph.edge_cells)):
            mean, std = getattr(self, f"{name}_mean"), getattr(self, f"{name}_std")
            values = cells.pick(flat).double().flatten()
            count = cells.classes.bincount(minlength=len(mean)).clamp(min=1)
            zeros = values.new_zeros(len(mean))
            of_class = zeros.index_add(0, cells.classes, values) / count
            centred = values - of_class[cells.classes]
            deviation = (zeros.index_add(0, cells.classes, centred.square()) / count).sqrt()
            mean.copy_(of_class)
            std.copy_(torch.where(deviation > 0, deviation, 1.0))

    def forward(self, graph: EdgeList, flat: Tensor) -> tuple[Tensor, Tensor]:
        return self._standardized("node", graph.node_cells, flat), self._standardized("edge", graph.edge_cells, flat)

    def _standardized(self, name: str, cells: Cells, flat: Tensor) -> Tensor:
        mean, std = getattr(self, f"{name}_mean")[cells.classes], getattr(self, f"{name}_std")[cells.classes]
        return (cells.pick(flat) - mean.unsqueeze(-1)) / std.unsqueeze(-1)
