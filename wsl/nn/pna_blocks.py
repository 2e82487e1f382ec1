"""Principal neighbourhood aggregation with FiLM messages and edge updates, on dense blocks or an edge list.

Shapes: node states ``[B, N, C]``, edge states ``[B, E, C]`` on blocks (:mod:`wsl.graphs.blocks`); ``[1, ΣN, C]`` and
``[1, ΣD, C]`` on an edge list (:mod:`wsl.nn.edge_runs`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsl.graphs.blocks import BlockGraph
from wsl.nn.block_pieces import Blocks
from wsl.nn.edge_runs import EdgeRuns
from wsl.nn.edge_step import Messages, StepGraph, Update, active_edges, edge_step, message_norms
from wsl.nn.sparse.linear import SparseLinear
from wsl.nn.sparse.network_sieve import Networks, NetworkSieve, Norms
from wsl.sparsity.macs import LayerCost
from wsl.sparsity.weights import column_norms


@dataclass(frozen=True, eq=False)
class PrunedRuns:
    """The edges that layers have left of a batch of networks; their states are in the order of ``runs``.

    ``log_degree``: δ of the degree scalers, whose degrees are those of what is left.
    """

    runs: EdgeRuns
    networks: Networks
    log_degree: Tensor | float

    @property
    def amplification(self) -> Tensor:
        """log(deg + 1) / δ ``[N, 1]``."""
        return self.runs.degree.double().log1p().unsqueeze(-1) / self.log_degree


class EdgeUpdate(nn.Module):
    r"""Edge states that take in the nodes at both ends.

    .. math:: e'_{ij} = R\, \mathrm{SiLU}(Q e_{ij} + S x_j + T x_i)

    for the edge from j to i; :class:`PNALayer` runs it together with its messages. Source: Kofinas et al., section 3.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.edge = SparseLinear(width, width)
        self.source = SparseLinear(width, width)
        self.target = SparseLinear(width, width)
        self.out = SparseLinear(width, width)

    def terms(self, x: Tensor, e: Tensor, graph: StepGraph) -> Update:
        """What :func:`~wsl.nn.edge_step.edge_step` needs; three biases of one sum are added once per node.

        Weights are pruned by the inputs that they multiply: node states, edge states, and SiLU(z) for R.
        """
        edge = self.edge.effective(e)
        target = F.linear(x, self.target.effective(x), self.target.bias + self.source.bias + self.edge.bias)
        update = Update(F.linear(x, self.source.effective(x)), target, edge, self.out.weight, self.out.bias)
        return update._replace(
            out=self.out.sieve(self.out.weight, lambda: column_norms(active_edges(e, update, graph)))
        )


class PNALayer(nn.Module):
    r"""Messages that the edge modulates, four aggregations, two degree scalers, a linear node update.

    .. math::
        [s_{ij}, t_{ij}] &= A e_{ij} + a, \qquad m_{ij} = s_{ij} ⊙ (P [x_i, x_j] + c) + t_{ij} \\
        h_i &= [\mathrm{mean}, \min, \max, \mathrm{std}]_{j → i}\, m_{ij} \\
        x'_i &= U_2 U_1 [x_i, h_i, \tfrac{\log(\deg_i + 1)}{δ} h_i]

    δ is the mean of log(deg + 1) over all nodes, counting the edges of the network but not the reversed ones. A node
    that no edge reaches aggregates zeros (and the floor of the deviation). With ``update_edges`` the edges are updated
    first, from the nodes that the layer is given.

    Pruned (:class:`~wsl.nn.sparse.network_sieve.NetworkSieve`, Unifews' rule with ‖m_ij‖ itself as the score, as the
    edge's part of the message is no factor that could be split off), an edge is *absent*: none of the four aggregations
    and not the degree count it, and later layers do not see it.

    Args:
        graph: the blocks, of which δ and the degrees are known; None where every batch has a graph of its own, and the
            scaler log(deg + 1)/δ is given with it.
        prunable: whether messages may be pruned; edge states are then only those of the edges left.

    Sources: Corso et al., "Principal Neighbourhood Aggregation for Graph Nets"; Kofinas et al., equation 4.
    """

    amplification: Tensor | None

    def __init__(self, width: int, graph: BlockGraph | None, update_edges: bool, prunable: bool = True) -> None:
        super().__init__()
        self.edge_update = EdgeUpdate(width) if update_edges else None
        self.film = SparseLinear(width, 2 * width)
        self.pair = SparseLinear(2 * width, width)
        self.combine = SparseLinear(9 * width, width)
        self.out = SparseLinear(width, width)
        self.sieve = NetworkSieve() if prunable else None
        self._nodes = 0
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
        step = Blocks(graph) if isinstance(graph, BlockGraph) else graph
        update, messages = self._terms(x, e, step)
        e, h = edge_step(e, messages, update, step)
        scaler = self.amplification if amplification is None else amplification
        if scaler is None:
            raise ValueError("a layer that was not built for one graph needs the degree scalers of each")
        return self._nodes_from(x, h, scaler), e

    def pruned(self, x: Tensor, e: Tensor, edges: PrunedRuns) -> tuple[Tensor, Tensor, PrunedRuns]:
        """x' ``[1, ΣN, C]``, states ``[1, D', C]`` of the edges that it kept, and these."""
        update, messages = self._terms(x, e, edges.runs)

        def norms() -> Norms:
            of_messages = message_norms(e, messages, update, edges.runs)[0]
            return Norms(of_messages, of_messages)

        assert self.sieve is not None, "the layer was built with prunable=False"
        kept, left = self.sieve(edges.runs.target, edges.networks, norms), e
        if kept is not None:
            runs, rows = edges.runs.subset(kept)
            edges, left = PrunedRuns(runs, edges.networks, edges.log_degree), e.index_select(1, rows)
        left, h = edge_step(left, messages, update, edges.runs)
        self._nodes = x.shape[1]
        return self._nodes_from(x, h, edges.amplification.to(h)), left, edges

    def network_costs(self) -> list[LayerCost]:
        """Of the last :meth:`pruned`: maps of nodes, then of edges; the layer's sieve is not counted."""
        of_edges = [self.film] + ([self.edge_update.edge, self.edge_update.out] if self.edge_update else [])
        of_nodes = [self.pair, self.combine, self.out]
        of_nodes += [self.edge_update.source, self.edge_update.target] if self.edge_update else []
        there, _, kept = (0, 0, 0) if self.sieve is None else self.sieve.used
        stored = sum(m.weight.numel() for m in of_edges)
        nodes = LayerCost(self._nodes, sum(m.left for m in of_nodes), sum(m.weight.numel() for m in of_nodes))
        width = self.out.out_features
        edges = LayerCost(kept, sum(m.left for m in of_edges), stored, width, kept, there, all_rows=there)
        return [nodes, edges]

    def _nodes_from(self, x: Tensor, h: Tensor, scaler: Tensor) -> Tensor:
        out: Tensor = self.out(self.combine(torch.cat([x, h, scaler * h], dim=-1)))
        return out

    def _terms(self, x: Tensor, e: Tensor, graph: StepGraph) -> tuple[Update | None, Messages]:
        """P splits into a map of the receiving and one of the sending node: two maps of nodes, none of edges."""
        update = None if self.edge_update is None else self.edge_update.terms(x, e, graph)

        def edge_norms() -> Tensor:
            if update is None:
                return column_norms(e)
            return column_norms(F.linear(active_edges(e, update, graph), update.out, update.bias))

        pair = self.pair.sieve(self.pair.weight, lambda: column_norms(x).repeat(2))
        of_own, of_other = pair.chunk(2, dim=1)
        own, other = F.linear(x, of_own, self.pair.bias), F.linear(x, of_other)
        return update, Messages(own, other, self.film.sieve(self.film.weight, edge_norms), self.film.bias)
