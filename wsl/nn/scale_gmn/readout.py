"""From the last states to one vector per network that nothing in the group changes.

``roles``: those of the nodes that are read.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from wsl.graphs.frame import ROLES, GraphFrame
from wsl.nn.scale_gmn.functions import Perceptron, ScaleInv
from wsl.nn.scale_gmn.graph import KindGraph

Readout = Literal["outputs", "full"]


class EndsReadout(nn.Module):
    """A perceptron of the outputs' states; where messages run both ways, of a map of them and a map of the inputs'."""

    def __init__(self, frame: GraphFrame, width: int, out: int, norm: bool, backward: bool) -> None:
        super().__init__()
        sizes = {"output": frame.outputs * width} | ({"input": frame.inputs * width} if backward else {})
        self.maps = nn.ModuleDict({role: nn.Linear(size, width) for role, size in sizes.items()} if backward else {})
        self.roles = tuple(sizes)
        self.head = Perceptron(2 * width if backward else sizes["output"], width, out, norm)

    def forward(self, x: Tensor, graph: KindGraph) -> Tensor:
        if not self.maps:
            return self.head(graph.of_role(x, "output").flatten(1))
        mapped = [linear(graph.of_role(x, role).flatten(1)) for role, linear in self.maps.items()]
        return self.head(torch.cat(mapped, dim=-1))


class FullReadout(nn.Module):
    """A perceptron of the inputs' and outputs' states and of ρ(Σ ScaleInv(h)) over the hidden nodes."""

    def __init__(self, frame: GraphFrame, width: int, out: int, norm: bool, symmetrised: bool) -> None:
        super().__init__()
        self.roles = ROLES
        self.invariant = ScaleInv(width, width, width, norm, symmetrised)
        self.pooled = Perceptron(width, width, width, norm)
        self.head = Perceptron((frame.inputs + frame.outputs + 1) * width, width, out, norm)

    def forward(self, x: Tensor, graph: KindGraph) -> Tensor:
        ends = [graph.of_role(x, role).flatten(1) for role in ("input", "output")]
        sets = [(s, k) for s, k in zip(graph.split(x), graph.kinds, strict=True) if k.role == "hidden"]
        if sets:
            hidden = graph.hidden_sum([self.invariant(states, kind.acted) for states, kind in sets])
        else:
            hidden = ends[0].new_zeros(len(ends[0]), x.shape[-1])
        return self.head(torch.cat([*ends, self.pooled(hidden)], dim=-1))
