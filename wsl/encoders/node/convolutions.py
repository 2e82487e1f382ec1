"""GCN and GraphSAGE: neighbours averaged with fixed weights."""

from __future__ import annotations

from wsl.encoders.node.base import Activation, NodeEncoder, widths
from wsl.graphs.geometric import geometric
from wsl.graphs.node_graph import NodeGraphSpec
from wsl.ranges import PositiveInt, Rate


class GCN(NodeEncoder):
    """y_i = Σ_{j ∈ N(i) ∪ i} W x_j / √(d_i d_j) + b, with degrees d that count the self loop.

    Source: Kipf, Welling, "Semi-Supervised Classification with Graph Convolutional Networks", ICLR 2017.

    Args:
        hidden: features between layers.
        layers: number of layers.
        activation: between layers.
        dropout: rate on the input of every layer, in training.
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
    ) -> None:
        stack = [geometric("nn").GCNConv(*width) for width in widths(spec, out_features, hidden, layers)]
        super().__init__(spec, out_features, stack, activation, dropout)


class SAGE(NodeEncoder):
    """y_i = W_1 x_i + W_2 mean_{j ∈ N(i)} x_j + b.

    Source: Hamilton, Ying, Leskovec, "Inductive Representation Learning on Large Graphs", NeurIPS 2017 (the mean
    aggregator; all neighbours, none sampled).

    Args:
        hidden: features between layers.
        layers: number of layers.
        activation: between layers.
        dropout: rate on the input of every layer, in training.
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
    ) -> None:
        stack = [geometric("nn").SAGEConv(*width) for width in widths(spec, out_features, hidden, layers)]
        super().__init__(spec, out_features, stack, activation, dropout)
