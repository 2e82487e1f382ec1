"""GCN, GraphSAGE, GIN and GCNII: neighbours summed with fixed weights."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from wsl.encoders.node.base import ACTIVATIONS, Activation, widths
from wsl.encoders.node.sparsifiable import Norm, Sparsifiable
from wsl.graphs.node_graph import NodeBatch, NodeGraphSpec
from wsl.nn.sparse.layers import GCNIILayer, GCNLayer, GINLayer, SAGELayer
from wsl.nn.sparse.linear import apply_linear
from wsl.ranges import Fraction, PositiveFloat, PositiveInt, Rate


class GCN(Sparsifiable):
    """y_i = Σ_{j ∈ N(i) ∪ i} W x_j / √(d_i d_j) + b, with degrees d that count the self loop.

    Source: Kipf, Welling, "Semi-Supervised Classification with Graph Convolutional Networks", ICLR 2017.

    Args:
        hidden: features between layers.
        layers: number of layers.
        activation: between layers.
        dropout: rate on the input of every layer, in training.
        norm: "batch": batch normalisation between layers (momentum 0.9).
        input_dropout: whether dropout falls on the first layer's input too.
        read_sparse: take the features by their non-zero entries: the same function, faster on bags of words.
    """

    def __init__(
        self,
        spec: NodeGraphSpec,
        out_features: int,
        *,
        hidden: PositiveInt = 64,
        layers: PositiveInt = 2,
        activation: Activation = "relu",
        dropout: Rate = 0.5,
        norm: Literal["none", "batch"] = "none",
        input_dropout: bool = True,
        read_sparse: bool = False,
    ) -> None:
        pairs = widths(spec, out_features, hidden, layers)
        stack = [GCNLayer(*pair) for pair in pairs]
        inner = [hidden] * (layers - 1)
        super().__init__(spec, out_features, stack, activation, dropout, norm, input_dropout, read_sparse, inner)


class SAGE(Sparsifiable):
    """y_i = W_l mean_{j ∈ N(i)} x_j + b + W_r x_i.

    Source: Hamilton, Ying, Leskovec, "Inductive Representation Learning on Large Graphs", NeurIPS 2017 (the mean
    aggregator; all neighbours, none sampled).

    Args:
        hidden: features between layers.
        layers: number of layers.
        activation: between layers.
        dropout: rate on the input of every layer, in training.
        norm: "batch": batch normalisation between layers (momentum 0.9).
        input_dropout: whether dropout falls on the first layer's input too.
        read_sparse: take the features by their non-zero entries: the same function, faster on bags of words.
    """

    def __init__(
        self,
        spec: NodeGraphSpec,
        out_features: int,
        *,
        hidden: PositiveInt = 64,
        layers: PositiveInt = 2,
        activation: Activation = "relu",
        dropout: Rate = 0.5,
        norm: Literal["none", "batch"] = "none",
        input_dropout: bool = True,
        read_sparse: bool = False,
    ) -> None:
        stack = [SAGELayer(*pair) for pair in widths(spec, out_features, hidden, layers)]
        inner = [hidden] * (layers - 1)
        super().__init__(spec, out_features, stack, activation, dropout, norm, input_dropout, read_sparse, inner)


class GIN(Sparsifiable):
    """y_i = W_2 relu(W_1 ((1 + ε) x_i + Σ_{j ∈ N(i)} x_j) + b_1) + b_2.

    Source: Xu, Hu, Leskovec, Jegelka, "How Powerful are Graph Neural Networks?", ICLR 2019 (ε learned).

    Args:
        hidden: features between layers.
        layers: number of layers.
        activation: between layers.
        dropout: rate on the input of every layer, in training.
        norm: "batch": batch normalisation between layers (momentum 0.9).
        input_dropout: whether dropout falls on the first layer's input too.
        read_sparse: take the features by their non-zero entries: the same function, faster on bags of words.
    """

    def __init__(
        self,
        spec: NodeGraphSpec,
        out_features: int,
        *,
        hidden: PositiveInt = 64,
        layers: PositiveInt = 2,
        activation: Activation = "relu",
        dropout: Rate = 0.5,
        norm: Literal["none", "batch"] = "batch",
        input_dropout: bool = True,
        read_sparse: bool = False,
    ) -> None:
        stack = [GINLayer(*pair) for pair in widths(spec, out_features, hidden, layers)]
        inner = [hidden] * (layers - 1)
        super().__init__(spec, out_features, stack, activation, dropout, norm, input_dropout, read_sparse, inner)


class GCNII(Sparsifiable):
    """x_0 = relu(W_in x + b), then layers y = (1 − β_l) Z + β_l Z W_l with Z = (1 − α) Â x + α x_0, then W_out.

    β_l = ln(θ / l + 1). Input and output maps are never pruned.

    Source: Chen, Wei, Huang, Ding, Li, "Simple and Deep Graph Convolutional Networks", ICML 2020.

    Args:
        hidden: features of every layer.
        layers: number of propagating layers.
        activation: after every layer.
        dropout: rate on the input of every layer, in training.
        norm: "batch": batch normalisation after every layer (momentum 0.9).
        input_dropout: whether dropout falls on the first layer's input too.
        alpha: share of x_0 in every layer.
        theta: how fast the maps come near the identity.
        read_sparse: take the features by their non-zero entries: the same function, faster on bags of words.
    """

    def __init__(
        self,
        spec: NodeGraphSpec,
        out_features: int,
        *,
        hidden: PositiveInt = 64,
        layers: PositiveInt = 8,
        activation: Activation = "relu",
        dropout: Rate = 0.5,
        norm: Literal["none", "batch"] = "none",
        input_dropout: bool = True,
        alpha: Fraction = 0.1,
        theta: PositiveFloat = 0.5,
        read_sparse: bool = False,
    ) -> None:
        widths(spec, out_features, hidden, layers)  # refuses other specs
        stack = [GCNIILayer(hidden, number + 1, alpha, theta) for number in range(layers)]
        inner: list[int] = [hidden] * layers
        super().__init__(spec, out_features, stack, activation, dropout, norm, input_dropout, read_sparse, inner)
        self.lin_in, self.lin_out = nn.Linear(spec.features, hidden), nn.Linear(hidden, out_features)

    def forward(self, batch: NodeBatch) -> Tensor:  # type: ignore[override]
        if batch.spec != self.spec:
            raise ValueError(f"this encoder was built for {self.spec}, the batch holds {batch.spec}")
        edges, given = self.edges(batch.graph), self.first_input(batch.graph)
        initial = torch.as_tensor(
            ACTIVATIONS[self.activation](apply_linear(given, self.lin_in.weight, self.lin_in.bias))
        )
        x: Tensor = self.dropout(initial)
        for number, layer in enumerate(self.layers):
            x, edges = layer(x, edges, initial)
            x = self.between(number, x)
        out: Tensor = self.lin_out(x)
        return out


__all__ = ["GCN", "GCNII", "GIN", "SAGE", "Norm"]
