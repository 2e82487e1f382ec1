"""NG-T: a relational transformer on the neural graph of the input network."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.encoders.attention_options import per_head
from wsl.encoders.base import Encoder
from wsl.encoders.graph_embedding import EdgeListFront, graph_frame, output_states, padded_states
from wsl.encoders.graph_field import GraphField, refuse_readout
from wsl.graphs.edge_list import EdgeList
from wsl.graphs.network import GraphOptions
from wsl.graphs.pairs import Pairs, dense_pairs, sparse_pairs
from wsl.nn.mlp import mlp
from wsl.nn.node_pooling import NodePooling, Readout
from wsl.nn.relational import RelationalLayer
from wsl.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Rate
from wsl.spec import WeightSpec
from wsl.spec.family import SpecFamily


class NGTransformer(Encoder):
    """Embeds networks by attention between the nodes of their neural graph; every pair of nodes has a state.

    Two forms. ``dense`` is the published one: all N² pairs of a network, those without an edge starting from the code
    of a zero weight. ``sparse`` keeps the pairs that an edge joins, in both directions: the same layers on fewer pairs,
    for graphs of more than a few hundred nodes.

    Sizes as published for INRs of MNIST; 376,586 parameters with 10 outputs on 2-32-32-1 networks without probes, and
    1,807,873 in the size for the Small CNN Zoo (``encoder=ng_t_cnn``).

    Source: Kofinas et al., "Graph Neural Networks for Learning Equivariant Representations of Neural Networks", ICLR
    2024, section 3.2 and equation 5. The published code lets nodes attend to the padding of smaller networks in a
    batch; here there is no padding, so a network's features do not depend on its company.

    Args:
        spec: what the networks share, or the family of their specs.
        out_features: number of features returned.
        form: which pairs of nodes there are.
        node_width, edge_width: sizes of the states of nodes and pairs.
        width: A, of all attention heads together.
        hidden, edge_hidden: widths of the hidden layers on nodes and on pairs.
        layers: of attention; the pairs are updated after each but the last, whose states no readout but a
            field uses.
        heads: of attention.
        dropout: rate before every residual sum, in training.
        modulation: multiply values by a map of the pair's state.
        norm: "layer" normalises after every residual sum; "none" does not.
        init: "xavier"; or "t_fixup", which scales the maps of values, results and feed-forward layers by
            0.67 · layers^(-1/4) (Huang et al., "Improving Transformer Optimization Through Better Initialization").
        head: widths of the hidden layers of the MLP that reads the nodes.
        readout: "outputs" concatenates the output nodes; "mean", "max" and "attention" pool all nodes; "class_token"
            reads a node that is paired with all others.
        probes: inputs on which every network is run to give its neurons features; 0 for none.
        probe_size: height and width of probe images.
        probe_file: an array of inputs (.npy) to use instead of learned ones; empty: learned.
        reverse_features: give a pair the weights of both directions and their sum. Where weights run both ways, as in
            recurrent networks, the pair's state is the sum of what either would give.
        fourier_features: number of waves per value; 0 feeds the value itself.
        fourier_std: standard deviation of the waves' frequencies.
        standardize: subtract mean and divide by deviation, see :meth:`fit_statistics`.
        flatten: see :class:`~wsl.graphs.network.GraphOptions`, as for the next two.
        linear_layers: see there.
        attention_nodes: see there.
        equivariant: return a field over the parameters, ``out_features`` values for each, instead of an embedding
            (:class:`~wsl.encoders.graph_field.GraphField`).
        field_scale: start of the learned scales of the field.

    Shapes: batch of ``[B, P, 1]`` or a mixed batch → ``[B, out_features]``; equivariant, ``[B, P, out_features]`` or
    ``[ΣP, out_features]``.

    Raises:
        UnsupportedSpecError: if a spec has no neural graph, probes are asked of networks that cannot be run, or a
            field is asked for with a readout.
        AttentionOptionError: if ``heads`` does not divide ``width``.
    """

    symmetries: ClassVar[frozenset[str]] = frozenset({"permutation"})
    reads: ClassVar = (WeightSpec, SpecFamily)

    def __init__(
        self,
        spec: WeightSpec | SpecFamily,
        out_features: int,
        *,
        form: Literal["dense", "sparse"] = "dense",
        node_width: PositiveInt = 64,
        edge_width: PositiveInt = 32,
        width: PositiveInt = 128,
        hidden: PositiveInt = 128,
        edge_hidden: PositiveInt = 64,
        layers: PositiveInt = 4,
        heads: PositiveInt = 8,
        dropout: Rate = 0.0,
        modulation: bool = True,
        norm: Literal["layer", "none"] = "layer",
        init: Literal["xavier", "t_fixup"] = "xavier",
        head: tuple[PositiveInt, ...] = (128,),
        readout: Readout = "outputs",
        probes: NonNegativeInt = 0,
        probe_size: PositiveInt = 32,
        probe_file: str = "",
        reverse_features: bool = False,
        fourier_features: NonNegativeInt = 128,
        fourier_std: NonNegativeFloat = 1.0,
        standardize: bool = True,
        flatten: Literal["kernel", "repeat", "layer"] = "kernel",
        linear_layers: Literal["kernel", "own"] = "kernel",
        attention_nodes: Literal["separate", "triple"] = "separate",
        equivariant: bool = False,
        field_scale: PositiveFloat = 0.01,
    ) -> None:
        super().__init__(spec, out_features)
        per_head(width, heads, "width")
        if equivariant:
            refuse_readout("NG-T", readout)
        self.equivariant = equivariant
        self.frame = graph_frame(
            spec, GraphOptions(flatten=flatten, linear=linear_layers, attention=attention_nodes), "NG-T"
        )
        self.front = EdgeListFront(
            spec,
            self.frame,
            node_width,
            edge_width,
            reverse_edges=reverse_features,
            probes=probes,
            probe_size=probe_size,
            probe_file=probe_file,
            fourier_features=fourier_features,
            fourier_std=fourier_std,
            standardize=standardize,
        )
        self.pairs_of = dense_pairs if form == "dense" else sparse_pairs
        stack = [
            RelationalLayer(
                node_width, edge_width, width, hidden, edge_hidden if more or equivariant else 0, heads, dropout,
                modulation, norm == "layer",
            )
            for more in reversed(range(layers))
        ]  # fmt: skip
        if init == "t_fixup":
            for layer in stack:
                layer.scale(0.67 * layers**-0.25)
        self.layers = nn.ModuleList(stack)
        self.token: nn.Parameter | None = None
        if equivariant:
            self.field = GraphField(self.frame, node_width, edge_width, out_features, field_scale)
            return
        self.token = nn.Parameter(torch.randn(1, node_width)) if readout == "class_token" else None
        self.pool = NodePooling(readout, node_width) if readout in ("mean", "max", "attention") else None
        read = node_width * (self.frame.outputs if readout == "outputs" else 1)
        self.head = mlp((read, *head, out_features), 0.0)

    def fit_statistics(self, batch: WeightBatch | MixedWeightBatch) -> None:
        """Set means and deviations of the values from training data, one of each for a kind of value and depth."""
        self.front.fit(batch)

    def forward(self, batch: WeightBatch | MixedWeightBatch) -> Tensor:
        if isinstance(self.spec, WeightSpec):
            self.check_spec(batch)
        if not len(batch):
            return self.of_no_networks(batch)
        graph, x, edges = self.front(batch)
        owner, source, target = graph.node_owner, graph.source, graph.target
        if self.token is not None:
            everyone = torch.arange(len(x), device=x.device)
            source, target = torch.cat([source, everyone]), torch.cat([target, len(x) + owner])
            owner = torch.cat([owner, torch.arange(len(graph), device=x.device)])
            x = torch.cat([x, self.token.expand(len(graph), -1)])
        pairs = self.pairs_of(owner, source, target)
        e = self._pair_states(graph, pairs, edges)
        for layer in self.layers:
            x, e = layer(x, e, pairs)
        if not self.equivariant:
            return self.head(self._read(graph, x))
        # parallel edges share a pair: what each was at first tells them apart
        field = self.field(graph, x, e.index_select(0, pairs.along) + edges[: graph.num_edges])
        return field if isinstance(batch, MixedWeightBatch) else field.unflatten(0, (len(batch), -1))

    def _pair_states(self, graph: EdgeList, pairs: Pairs, edges: Tensor) -> Tensor:
        """The states of edges at their pairs, the code of a zero weight everywhere else; parallel edges add up."""
        nothing = self.front.embed.zero().to(edges)
        e = nothing.expand(len(pairs), -1)
        places = torch.cat([pairs.along[: graph.num_edges], pairs.against[: graph.num_edges]])[: len(edges)]
        return e.index_add(0, places, edges - nothing)

    def _read(self, graph: EdgeList, x: Tensor) -> Tensor:
        if self.token is not None:
            return x[graph.num_nodes :]
        if self.pool is not None:
            return self.pool(*padded_states(graph, x))
        return output_states(graph, x).flatten(1)
