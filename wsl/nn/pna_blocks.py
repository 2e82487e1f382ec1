"""Principal neighbourhood aggregation with FiLM messages and edge updates, on the dense blocks of a neural graph.

Shapes: node states ``[B, N, C]``, edge states ``[B, E, C]`` (:mod:`wsl.graphs.blocks`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsl.graphs.blocks import BlockGraph

#: floor of the variance under the root: the gradient of the deviation stays finite where all messages agree
VARIANCE_FLOOR = 1e-5


class EdgeUpdate(nn.Module):
    r"""Edge states that take in the nodes at both ends.

    .. math:: e'_{ij} = R\, \mathrm{SiLU}(Q e_{ij} + S x_j + T x_i)

    for the edge from j to i. Source: Kofinas et al., section 3.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.edge = nn.Linear(width, width)
        self.source = nn.Linear(width, width)
        self.target = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, e: Tensor, graph: BlockGraph) -> Tensor:
        return self.out(F.silu(self.edge(e) + on_edges(self.source(x), self.target(x), graph)))


class PNALayer(nn.Module):
    r"""Messages that the edge modulates, four aggregations, two degree scalers, a linear node update.

    .. math::
        [s_{ij}, t_{ij}] &= A e_{ij} + a, \qquad m_{ij} = s_{ij} ⊙ (P [x_i, x_j] + c) + t_{ij} \\
        h_i &= [\mathrm{mean}, \min, \max, \mathrm{std}]_{j → i}\, m_{ij} \\
        x'_i &= U_2 U_1 [x_i, h_i, \tfrac{\log(\deg_i + 1)}{δ} h_i]

    δ is the mean of log(deg + 1) over all nodes, counting the edges of the network but not the reversed ones. A node
    that no edge reaches aggregates zeros (and the floor of the deviation).

    Sources: Corso et al., "Principal Neighbourhood Aggregation for Graph Nets"; Kofinas et al., equation 4.
    """

    amplification: Tensor

    def __init__(self, width: int, graph: BlockGraph, update_edges: bool) -> None:
        super().__init__()
        self.edge_update = EdgeUpdate(width) if update_edges else None
        self.film = nn.Linear(width, 2 * width)
        self.pair = nn.Linear(2 * width, width)
        self.combine = nn.Linear(9 * width, width)
        self.out = nn.Linear(width, width)
        delta = graph.degrees(reverse=False).double().log1p().mean()
        amplification = graph.degrees().double().log1p() / delta
        self.register_buffer("amplification", amplification.to(self.out.weight.dtype).unsqueeze(-1), persistent=False)

    def forward(self, x: Tensor, e: Tensor, graph: BlockGraph) -> tuple[Tensor, Tensor]:
        """x' and the edge states that it was made from."""
        if self.edge_update is not None:
            e = self.edge_update(x, e, graph)
        return self.update(x, aggregate(self.messages(x, e, graph), graph)), e

    def messages(self, x: Tensor, e: Tensor, graph: BlockGraph) -> Tensor:
        """m, ``[B, E, C]``. P splits into one map of the targets and one of the sources, both on nodes."""
        of_target, of_source = self.pair.weight.chunk(2, dim=1)
        pair = on_edges(F.linear(x, of_source), F.linear(x, of_target, self.pair.bias), graph)
        scale, shift = self.film(e).chunk(2, dim=-1)
        return torch.addcmul(shift, scale, pair)

    def update(self, x: Tensor, h: Tensor) -> Tensor:
        """x', ``[B, N, C]``, from the states and the aggregates ``[B, N, 4C]``."""
        return self.out(self.combine(torch.cat([x, h, self.amplification * h], dim=-1)))


def on_edges(source: Tensor, target: Tensor, graph: BlockGraph) -> Tensor:
    """source_j + target_i on the edge from j to i: two ``[B, N, C]`` → ``[B, E, C]``."""
    return torch.cat([(b.at_sources(source) + b.at_targets(target)).flatten(1, 2) for b in graph.blocks], dim=1)


class Moments(NamedTuple):
    """What a node aggregates from its incoming messages, each ``[B, n, C]``."""

    mean: Tensor
    minimum: Tensor
    maximum: Tensor
    std: Tensor


def aggregate(messages: Tensor, graph: BlockGraph) -> Tensor:
    """Mean, minimum, maximum and standard deviation of the incoming messages: ``[B, E, C]`` → ``[B, N, 4C]``."""
    parts = []
    for nodes, blocks in zip(graph.node_sets, graph.incoming, strict=True):
        if blocks:
            moments = _moments([(b.of(messages), b.source_axis) for b in blocks])
        else:
            zeros = messages.new_zeros(messages.shape[0], nodes.size, messages.shape[2])
            moments = Moments(zeros, zeros, zeros, zeros + VARIANCE_FLOOR**0.5)
        parts.append(torch.cat(moments, dim=-1))
    return torch.cat(parts, dim=1)


def _moments(blocks: list[tuple[Tensor, int]]) -> Moments:
    degree = sum(m.shape[axis] for m, axis in blocks)
    mean = torch.stack([m.sum(axis) for m, axis in blocks]).sum(0) / degree
    minimum = torch.stack([m.amin(axis) for m, axis in blocks]).amin(0)
    maximum = torch.stack([m.amax(axis) for m, axis in blocks]).amax(0)
    squares = [(m - mean.unsqueeze(axis)).square().sum(axis) for m, axis in blocks]
    variance = torch.stack(squares).sum(0) / degree
    return Moments(mean, minimum, maximum, variance.clamp(min=VARIANCE_FLOOR).sqrt())
