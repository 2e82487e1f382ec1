"""SGC, APPNP and heat-kernel diffusion: features are propagated once, then nodes are classified one by one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from wsl.encoders.node.base import ACTIVATIONS, Activation, NodeEncoder, widths
from wsl.graphs.node_graph import NodeBatch, NodeGraph, NodeGraphSpec
from wsl.nn.sparse.linear import SparseLinear
from wsl.nn.sparse.propagation import Propagated, SourceLists, appnp, heat, propagate, sgc
from wsl.ranges import NonNegativeFloat, PositiveFloat, PositiveFraction, PositiveInt, Rate
from wsl.sparsity.macs import LayerCost


class Decoupled(NodeEncoder):
    """MLP(standardised Σ_l θ_l T^l x), pruned while it propagates (:mod:`wsl.nn.sparse.propagation`).

    Propagation has no parameters, so it is done once per graph, and what is pruned there is pruned in training and
    evaluation alike. Mean and deviation are those of the training nodes. Between the linear maps, whose weights can be
    pruned too, stand activation, batch normalisation and dropout.

    Args:
        theta: θ_0 … θ_L. threshold: δ of the propagation.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        spec: NodeGraphSpec,
        out_features: int,
        theta: list[float],
        threshold: float,
        hidden: int,
        layers: int,
        activation: Activation,
        dropout: float,
    ) -> None:
        maps = [SparseLinear(*pair) for pair in widths(spec, out_features, hidden, layers)]
        super().__init__(spec, out_features, maps, activation, dropout)
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _, _ in pairwise(maps))
        self.theta, self.threshold = theta, threshold
        self.register_buffer("mean", torch.zeros(spec.features))
        self.register_buffer("deviation", torch.ones(spec.features))
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def propagated(self, graph: NodeGraph) -> Propagated:
        """The propagated features of a graph, remembered while it lives; computed on the CPU."""
        if graph.x not in self._known:
            lists = SourceLists.of(graph.edge_index.cpu(), graph.num_nodes)
            found = propagate(lists, graph.x.detach().cpu(), self.theta, self.threshold)
            self._known[graph.x] = Propagated(found.x.to(graph.x), found.updates, found.all_updates)
        return self._known[graph.x]

    def fit_statistics(self, batch: NodeBatch) -> None:  # type: ignore[override]
        """Mean and deviation of the propagated features of the batch's nodes."""
        x = self.propagated(batch.graph).x[batch.row_ids]
        self.mean.copy_(x.mean(0))
        deviation = x.std(0, correction=0)
        self.deviation.copy_(torch.where(deviation > 0, deviation, 1.0))

    def forward(self, batch: NodeBatch) -> Tensor:  # type: ignore[override]
        return self._classify(batch, torch.arange(batch.graph.num_nodes, device=batch.graph.x.device))

    def rows(self, batch: NodeBatch) -> Tensor:
        return self._classify(batch, batch.row_ids)

    def _classify(self, batch: NodeBatch, nodes: Tensor) -> Tensor:
        if batch.spec != self.spec:
            raise ValueError(f"this encoder was built for {self.spec}, the batch holds {batch.spec}")
        x: Any = (self.propagated(batch.graph).x[nodes] - self.mean) / self.deviation
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number < len(self.layers) - 1:
                x = self.dropout(self.norms[number](ACTIVATIONS[self.activation](x)))
        return x

    def costs(self, graph: NodeGraph) -> list[LayerCost]:
        """Propagation as one layer, then the maps; what is counted as an edge here is an (edge, channel) pair."""
        found, nodes = self.propagated(graph), graph.num_nodes
        first = LayerCost(0, 0, 0, channels=1, edges=found.updates, all_edges=found.all_updates)
        maps = [layer for layer in self.layers if isinstance(layer, SparseLinear)]
        kept = [m.left for m in maps]
        return [first, *(LayerCost(nodes, k, m.weight.numel()) for k, m in zip(kept, maps, strict=True))]


class SGC(Decoupled):
    """Features after ``hops`` steps of T = D^-½ (A + I) D^-½.

    Source: Wu, Zhang, Souza, Fifty, Yu, Weinberger, "Simplifying Graph Convolutional Networks", ICML 2019.

    Args:
        hops: L.
        threshold: δ of the pruned propagation; 0: exact.
        hidden: width of the classifier.
        layers: linear maps of the classifier.
        activation: between them.
        dropout: rate before every map but the first, in training.
    """

    def __init__(
        self,
        spec: NodeGraphSpec,
        out_features: int,
        *,
        hops: PositiveInt = 20,
        threshold: NonNegativeFloat = 0.0,
        hidden: PositiveInt = 512,
        layers: PositiveInt = 2,
        activation: Activation = "relu",
        dropout: Rate = 0.5,
    ) -> None:
        super().__init__(spec, out_features, sgc(hops), threshold, hidden, layers, activation, dropout)


class APPNP(Decoupled):
    """Features under personalised PageRank, Σ_l α (1 − α)^l T^l x; propagated first, then classified.

    Source: Gasteiger, Bojchevski, Günnemann, "Predict then Propagate", ICLR 2019 (there in the other order).

    Args:
        hops: L.
        alpha: α, the share that a node keeps for itself in every step.
        threshold: δ of the pruned propagation; 0: exact.
        hidden: width of the classifier.
        layers: linear maps of the classifier.
        activation: between them.
        dropout: rate before every map but the first, in training.
    """

    def __init__(
        self,
        spec: NodeGraphSpec,
        out_features: int,
        *,
        hops: PositiveInt = 20,
        alpha: PositiveFraction = 0.1,
        threshold: NonNegativeFloat = 0.0,
        hidden: PositiveInt = 512,
        layers: PositiveInt = 2,
        activation: Activation = "relu",
        dropout: Rate = 0.5,
    ) -> None:
        super().__init__(spec, out_features, appnp(hops, alpha), threshold, hidden, layers, activation, dropout)


class Heat(Decoupled):
    """Features under the heat kernel, Σ_l e^{−t} t^l / l! T^l x.

    Source: Gasteiger, Weißenberger, Günnemann, "Diffusion Improves Graph Learning", NeurIPS 2019.

    Args:
        hops: L, where the sum ends; the rest of it goes to the last step.
        time: t.
        threshold: δ of the pruned propagation; 0: exact.
        hidden: width of the classifier.
        layers: linear maps of the classifier.
        activation: between them.
        dropout: rate before every map but the first, in training.
    """

    def __init__(
        self,
        spec: NodeGraphSpec,
        out_features: int,
        *,
        hops: PositiveInt = 20,
        time: PositiveFloat = 5.0,
        threshold: NonNegativeFloat = 0.0,
        hidden: PositiveInt = 512,
        layers: PositiveInt = 2,
        activation: Activation = "relu",
        dropout: Rate = 0.5,
    ) -> None:
        super().__init__(spec, out_features, heat(hops, time), threshold, hidden, layers, activation, dropout)
