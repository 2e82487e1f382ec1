"""GATv2 on the neural graph of the input network."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.encoders.attention_options import initialise_balanced, per_head
from wsl.encoders.graph_embedding import output_states, padded_states
from wsl.encoders.graph_encoder import GraphEncoder, Reading
from wsl.graphs.blocks import BlockGraph
from wsl.graphs.network import GraphOptions
from wsl.nn.gatv2.graph import EdgeGraph
from wsl.nn.gatv2_conv import GATv2Conv
from wsl.nn.mlp import mlp
from wsl.nn.node_pooling import NodePooling
from wsl.nn.sparse.network_attention import NetworkAttentionSieve, PrunedEdges
from wsl.nn.sparse.network_sieve import Networks
from wsl.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt, Rate
from wsl.spec import WeightSpec
from wsl.spec.family import SpecFamily


class GATv2Encoder(GraphEncoder):
    """Embeds networks by attention on their neural graph: neurons choose among the neurons that feed them.

        x ← embedding of biases, probe features and positions          e ← embedding of weights
        x ← x + relu(norm(GATv2(x, e)))   in every layer               out = MLP(states of the output neurons)

    The weights of the input network are edge features: they decide how much a neuron listens to another one, and the
    states of the neurons are what it hears. The layers have closed-form gradients (:mod:`wsl.nn.gatv2`): no tensor of
    edges × channels is kept for the backward pass. Networks of one spec whose connections are all linear run as dense
    blocks, all others and mixed zoos as an edge list.

    Source of the layer: Brody, Alon, Yahav, "How Attentive are Graph Attention Networks?", ICLR 2022; of the graph:
    Kofinas et al., "Graph Neural Networks for Learning Equivariant Representations of Neural Networks", ICLR 2024.

    Args:
        spec: what the networks share, or the family of their specs.
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
        standardize: subtract mean and divide by deviation, each tensor by its own; on an edge list, each depth by its
            own (see :meth:`fit_statistics`).
        readout: "outputs" concatenates the output nodes; "mean", "max" and "attention" pool all nodes.
        form: "blocks" or "edges" asks for one form of the graph; "auto" chooses.
        flatten: see :class:`~wsl.graphs.network.GraphOptions`, as for the next two.
        linear_layers: "kernel" or "own".
        attention_nodes: "separate" or "triple"; the latter respects fewer permutations.
        probe_size: height and width of probe images, for convolutional networks.
        probe_file: array (.npy) of inputs to probe with instead of learned ones; empty for none.

    Shapes: batch of ``[B, P, 1]`` or a mixed one → ``[B, out_features]``.

    Raises:
        UnsupportedSpecError: if a spec has no neural graph, no output neurons though they are to be read, or probes are
            asked of networks that cannot be run.
        AttentionOptionError: if ``heads`` does not divide ``width``, or there is no balanced initialisation.
    """

    def __init__(
        self,
        spec: WeightSpec | SpecFamily,
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
        readout: Literal["outputs", "mean", "max", "attention"] = "outputs",
        form: Literal["auto", "blocks", "edges"] = "auto",
        flatten: Literal["kernel", "repeat", "layer"] = "kernel",
        linear_layers: Literal["kernel", "own"] = "kernel",
        attention_nodes: Literal["separate", "triple"] = "separate",
        probe_size: PositiveInt = 32,
        probe_file: str = "",
    ) -> None:
        super().__init__(spec, out_features)
        self.residual, self.norm, self.kind = residual, norm, readout
        options = GraphOptions(flatten, linear_layers, attention_nodes)
        reading = Reading(
            width, reverse_edges, probes, probe_size, probe_file, fourier_features, fourier_std, standardize, readout,
            options,
        )  # fmt: skip
        outputs, _ = self.read_as("GATv2", form, reading)
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
        self.pruners = nn.ModuleList(NetworkAttentionSieve() for _ in convs)
        self.norms = nn.ModuleList(nn.LayerNorm(width) if norm == "layer" else nn.Identity() for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.pool = NodePooling(readout, width)
        self.readout = mlp((width * (outputs if readout == "outputs" else 1), width, width, out_features))

    @property
    def conserved_pairs(self) -> tuple[tuple[str, str], ...]:
        """Neighbouring layers between which only channel-wise, positively homogeneous operations stand."""
        if self.residual or self.norm != "none":
            return ()
        return tuple((f"layers.{n}", f"layers.{n + 1}") for n in range(len(self.layers) - 1))

    def forward(self, batch: WeightBatch | MixedWeightBatch) -> Tensor:
        if isinstance(self.spec, WeightSpec):
            self.check_spec(batch)
        return self.readout(self._edge_list(batch) if self.graph is None else self._blocks(batch, self.graph))

    def _blocks(self, batch: WeightBatch | MixedWeightBatch, graph: BlockGraph) -> Tensor:
        """What the readout reads ``[B, …]``, of networks of one spec."""
        x, e = self.block_states(batch)
        nodes, edges = x.flatten(0, 1), e.flatten(0, 1)
        if self._open:
            x = self._passed(nodes, graph, edges).view(x.shape)
        else:
            networks, source, target, order = Networks.alike(graph, len(x))
            listed = PrunedEdges(EdgeGraph(source, target, None, len(nodes), len(nodes)), networks)
            x = self._passed(nodes, listed, edges.index_select(0, order)).view(x.shape)
        if self.kind == "outputs":
            return torch.cat([nodes.of(x).flatten(1) for nodes in self.outputs], dim=1)
        return self.pool(x)

    def _edge_list(self, batch: WeightBatch | MixedWeightBatch) -> Tensor:
        """What the readout reads ``[B, …]``, of networks of any specs."""
        graph, x, e = self.front(batch)
        edges = EdgeGraph(graph.directed_source, graph.directed_target, None, len(x), len(x))
        given: EdgeGraph | PrunedEdges = edges
        if not self._open:
            given = PrunedEdges(edges, Networks.of(graph.node_owner, len(graph), edges.target))
        x = self._passed(x, given, e.index_select(0, self.front.embed.directed(graph)))
        if self.kind == "outputs":
            return output_states(graph, x).flatten(1)
        return self.pool(*padded_states(graph, x))

    @property
    def _open(self) -> bool:
        """Whether no layer prunes."""
        return all(pruner.open for pruner in self.pruners if isinstance(pruner, NetworkAttentionSieve))

    def _passed(self, x: Tensor, graph: BlockGraph | EdgeGraph | PrunedEdges, e: Tensor) -> Tensor:
        """Node states ``[ΣN, C]`` after all layers."""
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            if isinstance(graph, PrunedEdges):
                y, e, graph = self.pruners[number](layer, x, e, graph)
            else:
                y = layer(x, graph, e)
            y = F.relu(norm(y))
            if number < len(self.layers) - 1:
                y = self.dropout(y)
            x = x + y if self.residual else y
        return x
