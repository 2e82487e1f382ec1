"""Node classifiers whose messages and weights can be pruned: the edges that a layer keeps are those of the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsl.encoders.node.base import ACTIVATIONS, Activation, NodeEncoder
from wsl.graphs.node_graph import NodeBatch, NodeGraph, NodeGraphSpec
from wsl.nn.sparse.edge_set import EdgeSet, edge_set
from wsl.nn.sparse.layers import GCNLayer, SparseConv
from wsl.nn.sparse.sieve import EdgeSieve, WeightSieve
from wsl.nn.sparse.sparse_input import SparseInput, dropout_of_features, sparse_input
from wsl.sparsity.macs import LayerCost

Norm = Literal["none", "batch"]
LINE = 16
"""Channels in a cache line: products are faster with widths that are a multiple of it."""
WORTHWHILE = 7 / 8
"""Share of the channels above which leaving out the others costs more than it saves."""


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
        self._known_live: dict[nn.Module, tuple[Tensor, Tensor | None]] = {}

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
        read: list[Tensor | None] = [None, *self._channels_read(), None]
        for number in range(len(self.layers)):
            inputs, outputs = read[number], read[number + 1]
            x, edges = self.step(number, x, edges, inputs, outputs)
            if number < len(self.layers) - 1:
                x = self.between(number, x, outputs)
        return x

    def step(
        self, number: int, x: Any, edges: EdgeSet, inputs: Tensor | None = None, outputs: Tensor | None = None
    ) -> tuple[Tensor, EdgeSet]:
        """One layer, of whose channels only some are given and wanted (None: all)."""
        parts = {} if inputs is None and outputs is None else {"inputs": inputs, "outputs": outputs}
        out: tuple[Tensor, EdgeSet] = self.layers[number](x, edges, **parts)
        return out

    def _channels_read(self) -> list[Tensor | None]:
        """Between each two layers the channels that the later one reads; the others are not even computed.

        A column of a weight that was pruned as a whole reads nothing, so neither output nor gradient change. Only for
        GCN, whose maps read the output of the layer before directly; and not while a choice is being made, which looks
        at all channels.
        """
        nothing: list[Tensor | None] = [None] * (len(self.layers) - 1)
        sieves = [module for module in self.modules() if isinstance(module, (EdgeSieve, WeightSieve))]
        if any((self.training and sieve.pruning) or sieve.errors is not None for sieve in sieves):
            return nothing
        return [self._live(layer) if isinstance(layer, GCNLayer) else None for layer in self.layers[1:]]

    def _live(self, layer: GCNLayer) -> Tensor | None:
        kept = layer.lin.sieve.kept
        if kept is None:
            return None
        known = self._known_live.get(layer)
        if known is None or known[0] is not kept:
            live = kept.any(0)
            width = -(-int(live.sum()) // LINE) * LINE  # filled up by channels that are read with weight 0
            read = torch.argsort(live.to(torch.uint8), descending=True, stable=True)[:width].sort().values
            known = self._known_live[layer] = kept, read if width <= WORTHWHILE * len(live) else None
        return known[1]

    def first_input(self, graph: NodeGraph) -> Tensor | SparseInput:
        """The features as the first layer reads them."""
        rate = self.dropout.p if self.input_dropout else 0.0
        if self.read_sparse:
            return sparse_input(graph.x).dropout(rate, self.training)
        return dropout_of_features(graph.x, rate, self.training)

    def between(self, number: int, x: Tensor, channels: Tensor | None = None) -> Tensor:
        """What stands between layer ``number`` and the next, on all channels or these."""
        if self.norms:
            norm = self.norms[number]
            assert isinstance(norm, nn.BatchNorm1d)
            x = norm(x) if channels is None else _normalized(norm, x, channels)
        out: Tensor = self.dropout(ACTIVATIONS[self.activation](x))
        return out


def _normalized(norm: nn.BatchNorm1d, x: Tensor, channels: Tensor) -> Tensor:
    """Batch normalisation of some channels; the running statistics of the others stay as they are."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None and norm.momentum is not None
    some_mean, some_variance = mean[channels], variance[channels]
    weight, bias = norm.weight[channels], norm.bias[channels]
    out = nn.functional.batch_norm(x, some_mean, some_variance, weight, bias, norm.training, norm.momentum, norm.eps)
    if norm.training:
        with torch.no_grad():
            mean[channels], variance[channels] = some_mean, some_variance
    return out
