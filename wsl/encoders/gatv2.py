"""GATv2 on the neural graph of the input network."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsl.batch import WeightBatch
from wsl.encoders.attention_options import initialise_balanced, per_head
from wsl.encoders.base import StandardizingEncoder
from wsl.encoders.neural_graph import NeuralGraphEmbedding, neural_graph
from wsl.nn.gatv2_conv import GATv2Conv
from wsl.nn.mlp import mlp
from wsl.nn.standardize import Standardize
from wsl.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt, Rate
from wsl.spec import WeightSpec


class GATv2Encoder(StandardizingEncoder):
    """Embeds networks by attention on their neural graph: neurons choose among the neurons that feed them.

        x ← embedding of biases, probe features and positions          e ← embedding of weights
        x ← x + relu(norm(GATv2(x, e)))   in every layer               out = MLP(states of the output neurons)

    The weights of the input network are edge features: they decide how much a neuron listens to another one, and the
    states of the neurons are what it hears. The layers run as dense blocks with closed-form gradients
    (:mod:`wsl.nn.gatv2`), no tensor of edges × channels is kept for the backward pass of a layer.

    Source of the layer: Brody, Alon, Yahav, "How Attentive are Graph Attention Networks?", ICLR 2022; of the graph:
    Kofinas et al., "Graph Neural Networks for Learning Equivariant Representations of Neural Networks", ICLR 2024.

    Args:
        spec: what the networks share; all connections linear.
        out_features: number of features returned.
        width: C, size of node states, all heads together; a multiple of ``heads``.
        layers: rounds of attention.
        heads: H.
        probes: learned inputs on which every network is run to give its neurons features; 0 for none.
        reverse_edges: let messages also run from outputs to inputs; without them input neurons hear nothing.
        share_weights: one map for sources and targets.
        score: "leaky_relu", or "softplus" (GAT+), with which the target map learns where signs agree.
        dropout: rate on node states after every layer but the last, in training.
        attention_dropout: rate on attention weights, in training.
        norm: "layer" normalises the result of every layer, each node on its own; "none" does not.
        residual: add a layer's node states to its result.
        init: "glorot", or "balanced" (:func:`wsl.nn.gatv2.balance.balance_`).
        fourier_features: number of waves per value; 0 feeds the value itself.
        fourier_std: standard deviation of the waves' frequencies.
        standardize: subtract mean and divide by deviation of each tensor (see :meth:`fit_statistics`).

    Shapes: batch of ``[B, P, 1]`` → ``[B, out_features]``.

    Raises:
        UnsupportedSpecError: if the spec has no neural graph of dense blocks, no output group, or probes are asked of
            networks that cannot be run.
        AttentionOptionError: if ``heads`` does not divide ``width``, or there is no balanced initialisation.
    """

    symmetries: ClassVar[frozenset[str]] = frozenset({"permutation"})

    def __init__(
        self,
        spec: WeightSpec,
        out_features: int,
        *,
        width: PositiveInt = 64,
        layers: PositiveInt = 4,
        heads: PositiveInt = 4,
        probes: NonNegativeInt = 64,
        reverse_edges: bool = True,
        share_weights: bool = False,
        score: Literal["leaky_relu", "softplus"] = "leaky_relu",
        dropout: Rate = 0.0,
        attention_dropout: Rate = 0.0,
        norm: Literal["layer", "none"] = "layer",
        residual: bool = True,
        init: Literal["glorot", "balanced"] = "glorot",
        fourier_features: NonNegativeInt = 128,
        fourier_std: NonNegativeFloat = 3.0,
        standardize: bool = True,
    ) -> None:
        super().__init__(spec, out_features)
        self.graph, self.outputs = neural_graph(spec, reverse_edges, "GATv2")
        self.residual, self.norm = residual, norm
        self.standardize = Standardize(spec) if standardize else None
        self.embed = NeuralGraphEmbedding(spec, self.graph, width, probes, fourier_features, fourier_std)
        convs = [
            GATv2Conv(
                width,
                per_head(width, heads, "width"),
                heads,
                dropout=attention_dropout,
                add_self_loops=False,
                edge_dim=width,
                share_weights=share_weights,
                score=score,
            )
            for _ in range(layers)
        ]
        if init == "balanced":
            initialise_balanced(convs)
        self.layers = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.LayerNorm(width) if norm == "layer" else nn.Identity() for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.readout = mlp((width * sum(nodes.size for nodes in self.outputs), width, width, out_features))

    @property
    def conserved_pairs(self) -> tuple[tuple[str, str], ...]:
        """Neighbouring layers between which only channel-wise, positively homogeneous operations stand."""
        if self.residual or self.norm != "none":
            return ()
        return tuple((f"layers.{n}", f"layers.{n + 1}") for n in range(len(self.layers) - 1))

    def forward(self, batch: WeightBatch) -> Tensor:
        values = self.standardized(batch)
        x, e = self.embed(batch, values)
        shape, x, e = x.shape, x.flatten(0, 1), e.flatten(0, 1)
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            y = F.relu(norm(layer(x, self.graph, e)))
            if number < len(self.layers) - 1:
                y = self.dropout(y)
            x = x + y if self.residual else y
        x = x.view(shape)
        return self.readout(torch.cat([nodes.of(x).flatten(1) for nodes in self.outputs], dim=1))
