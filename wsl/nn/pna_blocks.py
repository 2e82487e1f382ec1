"""Principal neighbourhood aggregation with FiLM messages and edge updates, on dense blocks or an edge list.

Shapes: node states ``[B, N, C]``, edge states ``[B, E, C]`` on blocks (:mod:`wsl.graphs.blocks`); ``[1, ΣN, C]`` and
``[1, ΣD, C]`` on an edge list (:mod:`wsl.nn.edge_runs`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsl.graphs.blocks import BlockGraph
from wsl.nn.block_pieces import Blocks
from wsl.nn.edge_runs import EdgeRuns
from wsl.nn.edge_step import Messages, Update, edge_step


class EdgeUpdate(nn.Module):
    r"""Edge states that take in the nodes at both ends.

    .. math:: e'_{ij} = R\, \mathrm{SiLU}(Q e_{ij} + S x_j + T x_i)

    for the edge from j to i; :class:`PNALayer` runs it together with its messages. Source: Kofinas et al., section 3.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.edge = nn.Linear(width, width)
        self.source = nn.Linear(width, width)
        self.target = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def terms(self, x: Tensor) -> Update:
        """What :func:`~wsl.nn.edge_step.edge_step` needs; three biases of one sum are added once per node."""
        target = F.linear(x, self.target.weight, self.target.bias + self.source.bias + self.edge.bias)
        return Update(F.linear(x, self.source.weight), target, self.edge.weight, self.out.weight, self.out.bias)


class PNALayer(nn.Module):
    r"""Messages that the edge modulates, four aggregations, two degree scalers, a linear node update.

    .. math::
        [s_{ij}, t_{ij}] &= A e_{ij} + a, \qquad m_{ij} = s_{ij} ⊙ (P [x_i, x_j] + c) + t_{ij} \\
        h_i &= [\mathrm{mean}, \min, \max, \mathrm{std}]_{j → i}\, m_{ij} \\
        x'_i &= U_2 U_1 [x_i, h_i, \tfrac{\log(\deg_i + 1)}{δ} h_i]

    δ is the mean of log(deg + 1) over all nodes, counting the edges of the network but not the reversed ones. A node
    that no edge reaches aggregates zeros (and the floor of the deviation). With ``update_edges`` the edges are updated
    first, from the nodes that the layer is given.

    Args:
        graph: the blocks, of which δ and the degrees are known; None where every batch has a graph of its own, and the
            scaler log(deg + 1)/δ is given with it.

    Sources: Corso et al., "Principal Neighbourhood Aggregation for Graph Nets"; Kofinas et al., equation 4.
    """

    amplification: Tensor | None

    def __init__(self, width: int, graph: BlockGraph | None, update_edges: bool) -> None:
        super().__init__()
        self.edge_update = EdgeUpdate(width) if update_edges else None
        self.film = nn.Linear(width, 2 * width)
        self.pair = nn.Linear(2 * width, width)
        self.combine = nn.Linear(9 * width, width)
        self.out = nn.Linear(width, width)
        amplification = None
        if graph is not None:
            delta = graph.degrees(reverse=False).double().log1p().mean()
            scaler = graph.degrees().double().log1p() / delta
            amplification = scaler.to(self.out.weight.dtype).unsqueeze(-1)
        self.register_buffer("amplification", amplification, persistent=False)

    def forward(
        self, x: Tensor, e: Tensor, graph: BlockGraph | EdgeRuns, amplification: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x' ``[B, N, C]`` and the edge states ``[B, E, C]`` that it was made from; ``amplification`` ``[N, 1]``."""
        update = None if self.edge_update is None else self.edge_update.terms(x)
        e, h = edge_step(e, self.terms(x), update, Blocks(graph) if isinstance(graph, BlockGraph) else graph)
        scaler = self.amplification if amplification is None else amplification
        if scaler is None:
            raise ValueError("a layer that was not built for one graph needs the degree scalers of each")
        scaled = scaler * h
        return self.out(self.combine(torch.cat([x, h, scaled], dim=-1))), e

    def terms(self, x: Tensor) -> Messages:
        """P splits into a map of the receiving and one of the sending node: two maps of nodes, none of edges."""
        of_own, of_other = self.pair.weight.chunk(2, dim=1)
        own, other = F.linear(x, of_own, self.pair.bias), F.linear(x, of_other)
        return Messages(own, other, self.film.weight, self.film.bias)
