"""NG-GNN: a message-passing network on the neural graph of the input network."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.encoders.base import UnsupportedSpecError
from wsl.encoders.graph_embedding import output_states, padded_states
from wsl.encoders.graph_encoder import GraphEncoder, Reading
from wsl.encoders.graph_field import GraphField
from wsl.graphs.blocks import BlockGraph
from wsl.graphs.network import GraphOptions
from wsl.nn.edge_runs import EdgeRuns, edge_runs
from wsl.nn.mlp import mlp
from wsl.nn.network_norm import NodeNorm, Owners, node_norm
from wsl.nn.node_pooling import NodePooling, Readout
from wsl.nn.pna_blocks import PNALayer, PrunedRuns
from wsl.nn.sparse.network_sieve import Networks
from wsl.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Rate
from wsl.spec import WeightSpec
from wsl.spec.family import SpecFamily


class NGGNN(GraphEncoder):
    """Embeds networks by their neural graph: one node per neuron, one edge per weight, biases as node features.

    Values are standardised, lifted to waves (Fourier features) and two linear maps; probe features and positional
    embeddings join the nodes. Then layers of FiLM-modulated principal neighbourhood aggregation update the nodes, and
    an MLP per layer the edges; an MLP reads the nodes.

    Networks of one spec whose connections are all linear run as dense blocks (:mod:`wsl.graphs.blocks`), all others and
    mixed zoos as an edge list (:mod:`wsl.graphs.edge_list`), with equal results on MLPs.

    Source: Kofinas et al., "Graph Neural Networks for Learning Equivariant Representations of Neural Networks", ICLR
    2024. Here node states are normalised by one mean and deviation for each network: the published code has one for the
    whole mini-batch, so that its result depends on the other networks of the batch. The number of parameters is the
    same: 348,746 with 64 probes and 331,466 without, at width 64 on a 2-32-32-1 network with 10 outputs.

    Args:
        spec: what the networks share, or the family of their specs. A network of a family may have a spec that the
            family has not, if its graph fits (:class:`~wsl.graphs.frame.GraphFrame`).
        out_features: number of features returned.
        width: C, size of node and edge states.
        layers: rounds of message passing; a neuron sees the neurons that many connections away.
        probes: inputs on which every network is run to give its neurons features; 0 for none.
        reverse_edges: let messages also run from outputs to inputs; doubles the edges.
        dropout: rate on node states after every layer but the last, in training.
        norm: after every layer but the last, of node states: "network" by one mean and deviation for all nodes of a
            network (:class:`~wsl.nn.network_norm.NetworkNorm`), "layer" each node on its own, "none" not.
        residual: add a layer's node states to its result (not in the published model).
        fourier_features: number of waves per value; 0 feeds the value itself.
        fourier_std: standard deviation of the waves' frequencies.
        standardize: subtract mean and divide by deviation, each tensor by its own; of a family and of convolutional
            networks, each depth by its own (see :meth:`fit_statistics`).
        readout: "outputs" concatenates the output nodes; "mean", "max" and "attention" pool all nodes; "class_token"
            reads a node that all others send to.
        form: "blocks" or "edges" asks for one form of the graph; "auto" chooses.
        flatten: see :class:`~wsl.graphs.network.GraphOptions`, as for the next two.
        linear_layers: "kernel" or "own".
        attention_nodes: "separate" or "triple"; the latter respects fewer permutations.
        probe_size: height and width of probe images, for convolutional networks.
        probe_file: array (.npy) of inputs to probe with instead of learned ones; empty for none.
        equivariant: return a field over the parameters, ``out_features`` values for each, instead of an embedding;
            always on an edge list (:class:`~wsl.encoders.graph_field.GraphField`).
        field_scale: start of the learned scales of the field.

    Shapes: batch of ``[B, P, 1]`` or a mixed one → ``[B, out_features]``; equivariant, ``[B, P, out_features]`` or
    ``[ΣP, out_features]``.

    Raises:
        UnsupportedSpecError: if a spec has no neural graph, no output neurons though they are to be read, or probes are
            asked of networks that cannot be run.
    """

    def __init__(
        self,
        spec: WeightSpec | SpecFamily,
        out_features: int,
        *,
        width: PositiveInt = 64,
        layers: PositiveInt = 4,
        probes: NonNegativeInt = 64,
        reverse_edges: bool = True,
        dropout: Rate = 0.0,
        norm: NodeNorm = "network",
        residual: bool = False,
        fourier_features: NonNegativeInt = 128,
        fourier_std: NonNegativeFloat = 3.0,
        standardize: bool = True,
        readout: Readout = "outputs",
        form: Literal["auto", "blocks", "edges"] = "auto",
        flatten: Literal["kernel", "repeat", "layer"] = "kernel",
        linear_layers: Literal["kernel", "own"] = "kernel",
        attention_nodes: Literal["separate", "triple"] = "separate",
        probe_size: PositiveInt = 32,
        probe_file: str = "",
        equivariant: bool = False,
        field_scale: PositiveFloat = 0.01,
    ) -> None:
        super().__init__(spec, out_features)
        self.residual, self.kind, self.equivariant = residual, readout, equivariant
        if equivariant and form == "blocks":
            raise UnsupportedSpecError("NG-GNN returns fields on edge lists: set form=edges or form=auto")
        options = GraphOptions(flatten, linear_layers, attention_nodes)
        reading = Reading(
            width, reverse_edges, probes, probe_size, probe_file, fourier_features, fourier_std, standardize, readout,
            options,
        )  # fmt: skip
        outputs, frame = self.read_as("NG-GNN", form, reading, field=equivariant)
        self.token = nn.Parameter(torch.randn(2, width)) if readout == "class_token" and not equivariant else None
        prunable = not equivariant  # a field has a value for every edge
        stack = [PNALayer(width, self.graph, update_edges=n > 0, prunable=prunable) for n in range(layers)]
        self.layers = nn.ModuleList(stack)
        self.norms = nn.ModuleList(node_norm(norm, width) for _ in range(layers - 1))
        self.activate = nn.Sequential(nn.SiLU(), nn.Dropout(dropout))
        if frame is not None and equivariant:
            self.field = GraphField(frame, width, width, out_features, field_scale)
            return
        self.pool = NodePooling(readout, width)
        self.readout = mlp((width * (outputs if readout == "outputs" else 1), width, width, out_features))

    def forward(self, batch: WeightBatch | MixedWeightBatch) -> Tensor:
        if isinstance(self.spec, WeightSpec):
            self.check_spec(batch)
        if not len(batch):
            return self.of_no_networks(batch)
        if self.graph is not None:
            return self.readout(self._blocks(batch, self.graph))
        if self.equivariant:
            field = self._edge_list(batch)
            return field if isinstance(batch, MixedWeightBatch) else field.unflatten(0, (len(batch), -1))
        return self.readout(self._edge_list(batch))

    def _blocks(self, batch: WeightBatch | MixedWeightBatch, graph: BlockGraph) -> Tensor:
        """What the readout reads ``[B, …]``, of networks of one spec."""
        x, e = self.block_states(batch)
        if self._open:
            x, _ = self._passed(x, e, graph)
        else:
            networks, source, target, order = Networks.alike(graph, len(x))
            runs = edge_runs(source, target, len(networks.owner))
            delta = float(graph.degrees(reverse=False).double().log1p().mean())
            e = e.flatten(0, 1).index_select(0, order[runs.order]).unsqueeze(0)
            edges = PrunedRuns(runs, networks, delta)
            owners = Owners(networks.owner, len(x))
            x = self._passed(x.flatten(0, 1).unsqueeze(0), e, edges, owners=owners)[0].view(x.shape)
        if self.kind == "outputs":
            return torch.cat([nodes.of(x).flatten(1) for nodes in self.outputs], dim=1)
        return self.pool(x)

    def _edge_list(self, batch: WeightBatch | MixedWeightBatch) -> Tensor:
        """What the readout reads ``[B, …]``, of networks of any specs; or the field."""
        graph, x, e = self.front(batch)
        source, target, row = graph.directed_source, graph.directed_target, self.front.embed.directed(graph)
        nodes, owner = graph.num_nodes, graph.node_owner
        if self.token is not None:  # a node for each network, to which the others send along equal edges
            everyone = torch.arange(nodes, device=x.device)
            source, target = torch.cat([source, everyone]), torch.cat([target, nodes + graph.node_owner])
            row = torch.cat([row, torch.full_like(everyone, len(e))])
            x = torch.cat([x, self.token[:1].expand(len(graph), -1)])
            e = torch.cat([e, self.token[1:]])
            owner = torch.cat([owner, torch.arange(len(graph), device=x.device)])
        runs = edge_runs(source, target, len(x))
        amplification = runs.degree.to(x.dtype).log1p().unsqueeze(-1) / self.front.log_degree.to(x.dtype)
        e = e.index_select(0, row.index_select(0, runs.order)).unsqueeze(0)
        edges: EdgeRuns | PrunedRuns = runs
        if not self._open:
            prunable = None if self.token is None else torch.arange(len(x), device=x.device) < nodes  # it hears all
            edges = PrunedRuns(runs, Networks.of(owner, len(graph), target, prunable), self.front.log_degree)
        passed = self._passed(x.unsqueeze(0), e, edges, amplification, Owners(owner, len(graph)))
        x, e = (states.squeeze(0) for states in passed)
        if self.equivariant:
            ahead = (~graph.reversed[runs.order]).nonzero().squeeze(-1)  # in the order of the runs
            number = graph.directed_edge[runs.order[ahead]]
            e = torch.empty_like(e[: graph.num_edges]).index_copy(0, number, e.index_select(0, ahead))
            return self.field(graph, x, e)
        if self.kind == "class_token":
            return x[nodes:]
        if self.kind == "outputs":
            return output_states(graph, x).flatten(1)
        return self.pool(*padded_states(graph, x))

    @property
    def _open(self) -> bool:
        """Whether no layer prunes messages."""
        sieves = [layer.sieve for layer in self.layers if isinstance(layer, PNALayer)]
        return all(sieve is None or sieve.open for sieve in sieves)

    def _passed(
        self,
        x: Tensor,
        e: Tensor,
        graph: BlockGraph | EdgeRuns | PrunedRuns,
        amplification: Tensor | None = None,
        owners: Owners | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Node and edge states after all layers; of pruned edges only what the last one kept."""
        for number, layer in enumerate(self.layers):
            if isinstance(graph, PrunedRuns):
                y, e, graph = layer.pruned(x, e, graph)  # type: ignore[operator]
            else:
                y, e = layer(x, e, graph, amplification)
            if number < len(self.norms):
                y = self.activate(self.norms[number](y, owners))
            x = x + y if self.residual else y
        return x, e
