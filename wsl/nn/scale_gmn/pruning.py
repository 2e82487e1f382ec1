"""Pruned messages of ScaleGMN, each network by itself and each message among those to the same neuron."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor, nn

from wsl.nn.scale_gmn.graph import ListGraph
from wsl.nn.scale_gmn.layer import Edges, ScaleGMNLayer
from wsl.nn.sparse.network_sieve import Networks, NetworkSieve, Norms
from wsl.sparsity.macs import LayerCost


class MessageSieve(nn.Module):
    """Takes edges away before a layer sends along them.

    Unifews' rule with the score ‖(Γ_v h_j) ⊙ (Γ_e e_ij)‖, what the message function is given: the function is not
    evaluated for edges that go. The score has the factor |d_i| of the receiver, and is compared with its mean over the
    edges into the same neuron, which has it too, so that the choice does not change under scales and signs. Messages
    are summed, so a pruned edge that is absent and one whose message is 0 are the same. It is absent: later layers do
    not see it, nor do messages against the network, which have no say in the choice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sieve = NetworkSieve("destination")
        self._costs: list[LayerCost] = []

    def forward(
        self,
        layer: ScaleGMNLayer,
        x: Tensor,
        edges: Edges,
        back: Edges,
        graph: ListGraph,
        whole: ListGraph,
        along: Collection[int],
    ) -> tuple[Edges, Edges, ListGraph]:
        """What is left of the edges, their states and those against the network; ``whole`` is before any pruning.

        Args:
            x: ``[ΣN, C]``. along: parts that the layer sends messages along; others stay.
        """
        numbers = sorted(along)
        if not numbers:
            return edges, back, graph
        target = torch.cat([graph.parts[n].targets for n in numbers])
        there = torch.cat([whole.parts[n].targets for n in numbers])
        networks = Networks.of(graph.graph.node_owner, len(graph.graph), there)

        def norms() -> Norms:
            sent = layer.message.node(x)
            given = [layer.message.product(sent, edges[n], graph.parts[n], "source") for n in numbers]
            value = torch.cat(given).norm(dim=-1)
            return Norms(value, value)

        kept = self.sieve(target, networks, norms)
        self._count(layer, len(x))
        if kept is None:
            return edges, back, graph
        sizes = [len(graph.parts[n].targets) for n in numbers]
        rows = {n: mask.nonzero().squeeze(-1) for n, mask in zip(numbers, kept.split(sizes), strict=True)}
        parts = tuple(part.subset(rows[n]) if n in rows else part for n, part in enumerate(graph.parts))
        return _left(edges, rows), _left(back, rows), replace(graph, parts=parts)

    def _count(self, layer: ScaleGMNLayer, nodes: int) -> None:
        there, _, kept = self.sieve.used
        on_edges = [layer.message.edge, layer.message.function.moved]
        if layer.edge_update is not None:
            on_edges += [layer.edge_update.linear, layer.edge_update.phi.last]
        edge = sum(p.numel() for module in on_edges for p in module.parameters() if p.dim() == 2)
        width = layer.message.node.weight.shape[0]
        node = layer.message.node.weight.numel() + sum(
            p.numel() for p in layer.update.moved.parameters() if p.dim() == 2
        )
        of_edges = LayerCost(kept, edge, edge, width, kept, there, all_rows=there)
        self._costs = [LayerCost(nodes, node, node), of_edges]

    def network_costs(self) -> list[LayerCost]:
        """Of the last forward, maps of nodes, then of edges; all neurons as if they had factors."""
        return self._costs


def _weights(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if p.dim() == 2)


def _left(states: Edges, rows: dict[int, Tensor]) -> Edges:
    return {n: of_part.index_select(0, rows[n]) if n in rows else of_part for n, of_part in states.items()}
