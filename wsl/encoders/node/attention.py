"""GAT and GATv2: neighbours averaged with learned weights."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from wsl.encoders.attention_options import initialise_balanced, per_head
from wsl.encoders.node.base import Activation, NodeEncoder, widths
from wsl.encoders.node.sparsifiable import Sparsifiable
from wsl.graphs.geometric import geometric
from wsl.graphs.node_graph import NodeBatch, NodeGraph, NodeGraphSpec
from wsl.nn.gatv2_conv import GATv2Conv
from wsl.nn.sparse.attention import AttentionSieve
from wsl.nn.sparse.edge_set import EdgeSet, edge_set
from wsl.nn.sparse.linear import apply_linear
from wsl.nn.sparse.sparse_input import sparse_input
from wsl.ranges import PositiveInt, Rate
from wsl.sparsity.macs import LayerCost


class GAT(NodeEncoder):
    """y_i = Σ_{j ∈ N(i) ∪ i} α_ij W x_j + b, α_i = softmax_j LeakyReLU(a_1 · W x_i + a_2 · W x_j).

    Heads stand side by side between layers and are averaged in the last one.

    Source: Veličković et al., "Graph Attention Networks", ICLR 2018.

    Args:
        hidden: features between layers, all heads together; a multiple of ``heads``.
        layers: number of layers.
        heads: H.
        activation: between layers.
        dropout: rate on the input of every layer, in training.
        attention_dropout: rate on attention weights, in training.
        read_sparse: take the features by their non-zero entries: the same function, faster on bags of words.

    Raises:
        AttentionOptionError: if ``heads`` does not divide ``hidden``.
    """

    def __init__(
        self,
        spec: NodeGraphSpec,
        out_features: int,
        *,
        hidden: PositiveInt = 64,
        layers: PositiveInt = 2,
        heads: PositiveInt = 8,
        activation: Activation = "elu",
        dropout: Rate = 0.6,
        attention_dropout: Rate = 0.6,
        read_sparse: bool = False,
    ) -> None:
        stack = [
            geometric("nn").GATConv(source, target, heads, concat=concat, dropout=attention_dropout)
            for source, target, concat in _head_widths(widths(spec, out_features, hidden, layers), heads)
        ]
        super().__init__(spec, out_features, stack, activation, dropout)
        self.read_sparse = read_sparse

    def first_layer(self, batch: NodeBatch) -> Tensor:
        if not self.read_sparse:
            return super().first_layer(batch)
        first = self.layers[0]
        x = sparse_input(batch.graph.x).dropout(self.dropout.p, self.training)
        mapped = apply_linear(x, first.get_parameter("lin.weight"), None)  # so an identity in its place
        weights = {"lin.weight": torch.eye(mapped.shape[1], dtype=mapped.dtype, device=mapped.device)}
        out: Tensor = functional_call(first, weights, (mapped, batch.graph.edge_index))
        return out


class GATv2Node(Sparsifiable):
    """GATv2: :class:`wsl.nn.gatv2_conv.GATv2Conv` layers, heads side by side and averaged in the last one.

    Source: Brody, Alon, Yahav, "How Attentive are Graph Attention Networks?", ICLR 2022.

    Args:
        hidden: features between layers, all heads together; a multiple of ``heads``.
        layers: number of layers.
        heads: H.
        activation: between layers. With "relu" the gradients obey a conservation law that can be checked.
        dropout: rate on the input of every layer, in training.
        attention_dropout: rate on attention weights, in training.
        share_weights: one map for sources and targets.
        score: "leaky_relu", or "softplus" (GAT+), with which the target map learns where signs agree.
        direct: what a node adds of itself outside the softmax (GAT+): "theta_n", "theta_r"; no self loops are then
            used.
        init: "glorot", or "balanced" (:func:`wsl.nn.gatv2.balance.balance_`), which deep stacks need.
        norm: "batch": batch normalisation between layers (momentum 0.9).
        input_dropout: whether dropout falls on the first layer's input too.
        read_sparse: take the features by their non-zero entries: the same function, faster on bags of words.

    Raises:
        AttentionOptionError: if ``heads`` does not divide ``hidden``, or there is no balanced initialisation.
    """

    def __init__(
        self,
        spec: NodeGraphSpec,
        out_features: int,
        *,
        hidden: PositiveInt = 64,
        layers: PositiveInt = 2,
        heads: PositiveInt = 8,
        activation: Activation = "elu",
        dropout: Rate = 0.6,
        attention_dropout: Rate = 0.6,
        share_weights: bool = False,
        score: Literal["leaky_relu", "softplus"] = "leaky_relu",
        direct: Literal["none", "theta_n", "theta_r"] = "none",
        init: Literal["glorot", "balanced"] = "glorot",
        norm: Literal["none", "batch"] = "none",
        input_dropout: bool = True,
        read_sparse: bool = False,
    ) -> None:
        stack = [
            GATv2Conv(
                source,
                target,
                heads,
                concat=concat,
                dropout=attention_dropout,
                share_weights=share_weights,
                score=score,
                direct=direct,
            )
            for source, target, concat in _head_widths(widths(spec, out_features, hidden, layers), heads)
        ]
        if init == "balanced":
            initialise_balanced(stack)
        inner = [hidden] * (layers - 1)
        super().__init__(spec, out_features, stack, activation, dropout, norm, input_dropout, read_sparse, inner)
        self.pruners = nn.ModuleList(AttentionSieve() for _ in stack)

    def forward(self, batch: NodeBatch) -> Tensor:  # type: ignore[override]
        if not all(pruner.open for pruner in self.pruners):
            return super().forward(batch)
        if batch.spec != self.spec:
            raise ValueError(f"this encoder was built for {self.spec}, the batch holds {batch.spec}")
        x: Any = self.first_input(batch.graph)
        for number, layer in enumerate(self.layers):
            x = layer(x, batch.graph.edge_index)
            x = self.between(number, x) if number < len(self.layers) - 1 else x
        return x

    def edges(self, graph: NodeGraph) -> EdgeSet:
        return edge_set(graph.edge_index, graph.num_nodes, "replace", "none")

    def step(
        self, number: int, x: Any, edges: EdgeSet, inputs: Tensor | None = None, outputs: Tensor | None = None
    ) -> tuple[Tensor, EdgeSet]:
        out: tuple[Tensor, EdgeSet] = self.pruners[number](self.layers[number], x, edges)
        return out

    def costs(self, graph: NodeGraph) -> list[LayerCost]:
        edges = self.edges(graph)
        pairs = zip(self.pruners, self.layers, strict=True)
        return [pruner.cost(layer, edges) for pruner, layer in pairs]  # type: ignore[operator]

    @property
    def conserved_pairs(self) -> tuple[tuple[str, str], ...]:
        """Neighbouring layers between which only channel-wise, positively homogeneous operations stand."""
        if self.activation != "relu":
            return ()
        return tuple((f"layers.{n}", f"layers.{n + 1}") for n in range(len(self.layers) - 1))

    @torch.no_grad()
    def attention(self, batch: NodeBatch) -> list[tuple[Tensor, Tensor]]:
        """For each layer the edges used ``[2, E']``, self loops at the end, and their weights ``[E', H]``."""
        training = self.training
        self.eval()
        x, found = batch.graph.x, []
        for number, layer in enumerate(self.layers):
            x, used = layer(x, batch.graph.edge_index, return_attention_weights=True)
            found.append(used)
            x = self.between(number, x) if number < len(self.layers) - 1 else x
        self.train(training)
        return found


def _head_widths(pairs: list[tuple[int, int]], heads: int) -> list[tuple[int, int, bool]]:
    """(in, out per head, side by side) of each layer."""
    last = len(pairs) - 1
    return [(i, o, False) if n == last else (i, per_head(o, heads, "hidden"), True) for n, (i, o) in enumerate(pairs)]
