"""Node classifiers whose messages and weights can be pruned: the edges that a layer keeps are those of the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from wsl.encoders.node.base import ACTIVATIONS, Activation, NodeEncoder
from wsl.graphs.node_graph import NodeBatch, NodeGraph, NodeGraphSpec
from wsl.nn.sparse.edge_set import EdgeSet, edge_set
from wsl.nn.sparse.layers import SparseConv
from wsl.nn.sparse.sieve import EdgeSieve
from wsl.nn.sparse.sparse_input import SparseInput, sparse_input
from wsl.sparsity.macs import LayerCost

Norm = Literal["none", "batch"]


class Sparsifiable(NodeEncoder):
    """x ← dropout(activation(norm(layer(x, edges)))); edges ← what the layer kept of them.

    Args:
        layers: of one kind. activation, dropout: as in :class:`NodeEncoder`.
        norm: "batch": batch normalisation before the activation (momentum 0.9, as in Unifews' code).
        input_dropout: whether dropout also falls on the features given, before the first layer.
        read_sparse: take the features by their non-zero entries; the same function, less work on bags of words.
    """

    def __init__(
        self,
        spec: NodeGraphSpec,
        out_features: int,
        layers: Sequence[nn.Module],
        activation: Activation,
        dropout: float,
        norm: Norm = "none",
        input_dropout: bool = True,
        read_sparse: bool = False,
        inner: Sequence[int] = (),
    ) -> None:
        super().__init__(spec, out_features, layers, activation, dropout)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width, momentum=0.9) for width in inner if norm == "batch")
        self.input_dropout, self.read_sparse = input_dropout, read_sparse

    def edges(self, graph: NodeGraph) -> EdgeSet:
        """All edges of a graph as the layers want them."""
        layer = self.layers[0]
        assert isinstance(layer, SparseConv)
        return edge_set(graph.edge_index, graph.num_nodes, "replace" if layer.loops else "remove", layer.normalization)

    def sieves(self) -> Iterator[EdgeSieve]:
        """Those of the messages, in the order of the layers."""
        return (module for module in self.modules() if isinstance(module, EdgeSieve))

    def costs(self, graph: NodeGraph) -> list[LayerCost]:
        """Of each layer under what is kept now."""
        edges = self.edges(graph)
        return [layer.cost(edges) for layer in self.layers if isinstance(layer, SparseConv)]

    def forward(self, batch: NodeBatch) -> Tensor:  # type: ignore[override]
        if batch.spec != self.spec:
            raise ValueError(f"this encoder was built for {self.spec}, the batch holds {batch.spec}")
        x: Any = self.first_input(batch.graph)
        edges = self.edges(batch.graph)
        for number in range(len(self.layers)):
            x, edges = self.step(number, x, edges)
            if number < len(self.layers) - 1:
                x = self.between(number, x)
        return x

    def step(self, number: int, x: Any, edges: EdgeSet) -> tuple[Tensor, EdgeSet]:
        """One layer."""
        out: tuple[Tensor, EdgeSet] = self.layers[number](x, edges)
        return out

    def first_input(self, graph: NodeGraph) -> Tensor | SparseInput:
        """The features as the first layer reads them."""
        rate = self.dropout.p if self.input_dropout else 0.0
        if self.read_sparse:
            return sparse_input(graph.x).dropout(rate, self.training)
        return nn.functional.dropout(graph.x, rate, self.training)

    def between(self, number: int, x: Tensor) -> Tensor:
        """What stands between layer ``number`` and the next."""
        x = self.norms[number](x) if self.norms else x
        out: Tensor = self.dropout(ACTIVATIONS[self.activation](x))
        return out
