"""GATv2 on neural graphs whose attention is pruned, each network by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.func import functional_call

from wsl.nn.gatv2.graph import EdgeGraph
from wsl.nn.gatv2_conv import GATv2Conv
from wsl.nn.sparse.network_sieve import Networks, NetworkSieve, Norms
from wsl.nn.sparse.sieve import WeightSieve
from wsl.sparsity.macs import LayerCost
from wsl.sparsity.weights import column_norms


@dataclass(frozen=True, eq=False)
class PrunedEdges:
    """The edges that layers have left of a batch of networks, in the order of their receivers."""

    graph: EdgeGraph
    networks: Networks

    def subset(self, kept: Tensor) -> PrunedEdges:
        """Those of ``kept [D]`` bool."""
        graph = self.graph
        nodes = (graph.num_sources, graph.num_targets)
        return PrunedEdges(EdgeGraph(graph.source[kept], graph.target[kept], None, *nodes), self.networks)


class NetworkAttentionSieve(nn.Module):
    """Runs a :class:`GATv2Conv` with edge features under pruning.

    Unifews' rule for GATv2 with means over each network: an edge goes when ‖α_e‖ / H · ‖x_src‖ < δ · mean ‖x_src‖. It
    is *absent*: the softmax is over what is left, by the layer's own closed-form kernels, and later layers do not see
    it. A node of which nothing is left hears nothing and has the bias alone. The maps of sources, targets and edges are
    pruned by the norms of the columns that they read; the attention vector and biases never are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sieve = NetworkSieve()
        self.left, self.right, self.edge = WeightSieve(), WeightSieve(), WeightSieve()
        self._rows, self._channels, self._maps = 0, 0, (0, 0, 0, 0)

    @property
    def open(self) -> bool:
        return self.sieve.open and self.left.open and self.right.open and self.edge.open

    def forward(self, layer: GATv2Conv, x: Tensor, e: Tensor, edges: PrunedEdges) -> tuple[Tensor, Tensor, PrunedEdges]:
        """Output ``[ΣN, …]``, features ``[D', F]`` of the edges that it kept, and these.

        Args:
            x: ``[ΣN, C]``. e: ``[D, F]`` in the order of ``edges``.
        """
        used = self._weights(layer, x, e)

        def norms() -> Norms:
            # as in evaluation: weights are not dropped out, whatever of them the output will drop
            _, (_, alpha) = functional_call(layer, used, (x, edges.graph, e, True), tie_weights=True)
            of_nodes = nn.functional.linear(x, used["lin_l.weight"], layer.lin_l.bias).norm(dim=1)
            of_sources = of_nodes.index_select(0, edges.graph.source)
            return Norms(alpha.norm(dim=1) / layer.heads * of_sources, of_sources)

        kept = self.sieve(edges.graph.target, edges.networks, norms)
        if kept is not None:
            edges, e = edges.subset(kept), e.index_select(0, kept.nonzero().squeeze(-1))
        y: Tensor = functional_call(layer, used, (x, edges.graph, e), tie_weights=True)
        self._count(layer, len(x))
        return y, e, edges

    def _weights(self, layer: GATv2Conv, x: Tensor, e: Tensor) -> dict[str, Tensor]:
        maps: list[tuple[str, nn.Linear | None, WeightSieve, Callable[[], Tensor]]] = [
            ("lin_l.weight", layer.lin_l, self.left, lambda: column_norms(x)),
            ("lin_r.weight", None if layer.share_weights else layer.lin_r, self.right, lambda: column_norms(x)),
            ("lin_edge.weight", layer.lin_edge, self.edge, lambda: column_norms(e)),
        ]
        return {name: sieve(linear.weight, norms) for name, linear, sieve, norms in maps if linear is not None}

    def _count(self, layer: GATv2Conv, rows: int) -> None:
        def left(sieve: WeightSieve, weight: Tensor) -> int:
            return weight.numel() if sieve.kept is None else int(sieve.kept.sum())

        nodes = [(self.left, layer.lin_l)] + ([] if layer.share_weights else [(self.right, layer.lin_r)])
        edge = layer.lin_edge
        self._rows = rows
        self._maps = (
            sum(left(sieve, linear.weight) for sieve, linear in nodes),
            sum(linear.weight.numel() for _, linear in nodes),
            0 if edge is None else left(self.edge, edge.weight),
            0 if edge is None else edge.weight.numel(),
        )
        self._channels = layer.heads * (2 * layer.out_channels + 2)

    def network_costs(self) -> list[LayerCost]:
        """Of the last forward: maps of nodes, then of edges with 2 MACs per channel; the sieve is not counted."""
        there, _, kept = self.sieve.used
        node, all_node, edge, all_edge = self._maps
        of_edges = LayerCost(kept, edge, all_edge, self._channels, kept, there, all_rows=there)
        return [LayerCost(self._rows, node, all_node), of_edges]
