"""Positional embeddings of neurons: who may be confused with whom."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsl.graphs.blocks import NodeSet


class PositionalEmbedding(nn.Module):
    """A learned vector for each input and each output neuron, and one that all neurons of a hidden group share.

    The rows break the symmetry between neurons with a meaning of their own, and only that one: hidden neurons of a
    group stay interchangeable (Kofinas et al., section 3). Rows start as N(0, 1).

    Shapes: ``forward()`` → ``[N, C]``, to be added to the node states ``[B, N, C]``.
    """

    rows: Tensor

    def __init__(self, node_sets: tuple[NodeSet, ...], width: int) -> None:
        super().__init__()
        rows: list[int] = []
        for nodes in node_sets:
            first = rows[-1] + 1 if rows else 0
            rows += range(first, first + nodes.size) if nodes.individual else [first] * nodes.size
        self.weight = nn.Parameter(torch.randn(rows[-1] + 1, width))
        self.register_buffer("rows", torch.tensor(rows), persistent=False)

    def forward(self) -> Tensor:
        return self.weight[self.rows]
