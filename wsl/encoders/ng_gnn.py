"""NG-GNN: a message-passing network on the neural graph of the input network."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from wsl.batch import WeightBatch
from wsl.encoders.base import StandardizingEncoder
from wsl.encoders.neural_graph import NeuralGraphEmbedding, neural_graph
from wsl.nn.pna_blocks import PNALayer
from wsl.nn.standardize import Standardize
from wsl.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt, Rate
from wsl.spec import WeightSpec


class NGGNN(StandardizingEncoder):
    """Embeds networks by their neural graph: one node per neuron, one edge per weight, biases as node features.

    Inputs are standardised per tensor, lifted to waves (Fourier features) and two linear maps; probe features and
    positional embeddings join the nodes. Then layers of FiLM-modulated principal neighbourhood aggregation update the
    nodes, and an MLP per layer the edges; an MLP reads the states of the output neurons.

    Source: Kofinas et al., "Graph Neural Networks for Learning Equivariant Representations of Neural Networks", ICLR
    2024. Here each node is normalised alone: the published code normalises the whole mini-batch by one mean and
    variance, so that its result depends on the other networks of the batch. The number of parameters is the same:
    348,746 with 64 probes and 331,466 without, at width 64 on a 2-32-32-1 network with 10 outputs.

    Args:
        spec: what the networks share; all connections linear.
        out_features: number of features returned.
        width: C, size of node and edge states.
        layers: rounds of message passing; a neuron sees the neurons that many connections away.
        probes: learned inputs on which every network is run to give its neurons features; 0 for none.
        reverse_edges: let messages also run from outputs to inputs; doubles the edges.
        dropout: rate on node states after every layer but the last, in training.
        norm: "layer" normalises every node state on its own after every layer but the last; "none" does not.
        residual: add a layer's node states to its result (not in the published model).
        fourier_features: number of waves per value; 0 feeds the value itself.
        fourier_std: standard deviation of the waves' frequencies.
        standardize: subtract mean and divide by deviation of each tensor (see :meth:`fit_statistics`).

    Shapes: batch of ``[B, P, 1]`` → ``[B, out_features]``.

    Raises:
        UnsupportedSpecError: if the spec has no neural graph of dense blocks, no output group, or probes are asked of
            networks that cannot be run.
    """

    symmetries: ClassVar[frozenset[str]] = frozenset({"permutation"})

    def __init__(
        self,
        spec: WeightSpec,
        out_features: int,
        *,
        width: PositiveInt = 64,
        layers: PositiveInt = 4,
        probes: NonNegativeInt = 64,
        reverse_edges: bool = True,
        dropout: Rate = 0.0,
        norm: Literal["layer", "none"] = "layer",
        residual: bool = False,
        fourier_features: NonNegativeInt = 128,
        fourier_std: NonNegativeFloat = 3.0,
        standardize: bool = True,
    ) -> None:
        super().__init__(spec, out_features)
        self.graph, self.outputs = neural_graph(spec, reverse_edges, "NG-GNN")
        self.residual = residual
        self.standardize = Standardize(spec) if standardize else None
        self.embed = NeuralGraphEmbedding(spec, self.graph, width, probes, fourier_features, fourier_std)
        self.layers = nn.ModuleList(PNALayer(width, self.graph, update_edges=n > 0) for n in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) if norm == "layer" else nn.Identity() for _ in range(layers - 1))
        self.activate = nn.Sequential(nn.SiLU(), nn.Dropout(dropout))
        self.readout = nn.Sequential(
            nn.Linear(width * sum(nodes.size for nodes in self.outputs), width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, out_features),
        )

    def forward(self, batch: WeightBatch) -> Tensor:
        values = self.standardized(batch)
        x, e = self.embed(batch, values)
        for number, layer in enumerate(self.layers):
            y, e = layer(x, e, self.graph)
            if number < len(self.norms):
                y = self.activate(self.norms[number](y))
            x = x + y if self.residual else y
        return self.readout(torch.cat([nodes.of(x).flatten(1) for nodes in self.outputs], dim=1))
