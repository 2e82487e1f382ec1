"""From the node states of networks to one vector each."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Readout = Literal["outputs", "mean", "max", "attention", "class_token"]


class NodePooling(nn.Module):
    r"""Mean, maximum, or attention over all nodes of a network.

    .. math:: \mathrm{attention:}\quad \sum_i \mathrm{softmax}_i(w^T x_i + b)\, (V x_i + c)

    Source of the last: Li et al., "Gated Graph Sequence Neural Networks", equation 7.

    Shapes: ``[B, N, C]`` and which nodes there are, ``[B, N]`` bool or None for all → ``[B, C]``.
    """

    def __init__(self, readout: Readout, width: int) -> None:
        super().__init__()
        self.readout = readout
        self.score = nn.Linear(width, 1) if readout == "attention" else None
        self.value = nn.Linear(width, width) if readout == "attention" else None

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        there = torch.ones_like(x[..., 0], dtype=torch.bool) if present is None else present
        there = there.unsqueeze(-1)
        if self.readout == "mean":
            return torch.where(there, x, 0).sum(1) / there.sum(1)
        if self.readout == "max":
            return x.masked_fill(~there, -torch.inf).amax(1)
        if self.score is None or self.value is None:
            raise ValueError(f"the readout {self.readout!r} does not pool nodes")
        share = self.score(x).masked_fill(~there, -torch.inf).softmax(dim=1)
        return (share * self.value(x)).sum(1)
