"""What encoders on the neural graph share: the graph of a spec, and the first states of its nodes and edges."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsl.batch import WeightBatch
from wsl.encoders.base import UnsupportedSpecError
from wsl.graphs.blocks import BlockError, BlockGraph, NodeSet, block_graph
from wsl.nn.fourier import FourierFeatures
from wsl.nn.positional import PositionalEmbedding
from wsl.nn.probes import ProbeFeatures
from wsl.spec import SpecError, WeightSpec
from wsl.spec.family import SpecFamily


def neural_graph(spec: WeightSpec, reverse_edges: bool, reader: str) -> tuple[BlockGraph, list[NodeSet]]:
    """The block graph of a spec, and the node sets of its outputs.

    Args:
        reader: the encoder's name, for the sentence in which it refuses a spec.

    Raises:
        UnsupportedSpecError: if the spec has no graph of dense blocks, or no output group.
    """
    try:
        graph = block_graph(spec, reverse_edges)
    except BlockError as error:
        raise UnsupportedSpecError(f"{reader} cannot take this spec: {error}") from error
    names = {group.name for group in spec.groups_of_kind("output")}
    if not names:
        raise UnsupportedSpecError(f"{reader} reads the states of output neurons, and this spec has no output group")
    return graph, [nodes for nodes in graph.node_sets if nodes.name in names]


class NeuralGraphEmbedding(nn.Module):
    """First states of nodes and edges: waves of biases and weights, probe features, positional embeddings.

    With reverse edges an edge carries the features [w, 0, w] along its weight's direction and [0, w, w] against it: the
    weight from sender to receiver, the weight back, and their sum.

    Shapes: batch and standardised values ``[B, P, 1]`` → ``[B, N, C]`` and ``[B, E, C]``.
    """

    weight_index: Tensor
    bias_index: Tensor
    bias_nodes: Tensor

    def __init__(
        self, spec: WeightSpec, graph: BlockGraph, width: int, probes: int, fourier_features: int, fourier_std: float
    ) -> None:
        super().__init__()
        self.reverse = any(block.reverse for block in graph.blocks)
        self.num_nodes = graph.num_nodes
        for name in ("weight_index", "bias_index", "bias_nodes"):
            self.register_buffer(name, getattr(graph, name), persistent=False)

        def waves(size: int) -> nn.Module:
            return FourierFeatures(size, fourier_features, fourier_std) if fourier_features else nn.Identity()

        node_size, edge_size = 1, 3 if self.reverse else 1
        self.node_waves, self.edge_waves = waves(node_size), waves(edge_size)
        self.lift_nodes = nn.Linear(2 * fourier_features or node_size, width)
        self.lift_edges = nn.Linear(2 * fourier_features or edge_size, width)
        self.project_nodes, self.project_edges = nn.Linear(width, width), nn.Linear(width, width)
        self.probe_features = _probe_features(spec, probes, width) if probes else None
        self.positional = PositionalEmbedding(graph.node_sets, width)

    def forward(self, batch: WeightBatch, values: Tensor) -> tuple[Tensor, Tensor]:
        biases = values.new_zeros(values.shape[0], self.num_nodes, 1)
        biases = biases.index_add(1, self.bias_nodes, values.index_select(1, self.bias_index))
        x = self.lift_nodes(self.node_waves(biases))
        if self.probe_features is not None:
            x = x + self.probe_features(batch)
        x = self.project_nodes(x) + self.positional()
        w = values.index_select(1, self.weight_index)
        if self.reverse:
            zero = torch.zeros_like(w)
            w = torch.cat([torch.cat([w, zero, w], dim=-1), torch.cat([zero, w, w], dim=-1)], dim=1)
        return x, self._edges(w)

    def _edges(self, w: Tensor) -> Tensor:
        """The two maps in a row are one map: there are many edges, so it pays to multiply the weights first."""
        weight = self.project_edges.weight @ self.lift_edges.weight
        return F.linear(self.edge_waves(w), weight, self.project_edges(self.lift_edges.bias))


def _probe_features(spec: WeightSpec, probes: int, width: int) -> ProbeFeatures:
    try:
        return ProbeFeatures(spec, probes, width)
    except SpecError as error:
        raise UnsupportedSpecError(f"a neural graph with probes > 0 cannot be made of this spec: {error}") from error


def fits_blocks(spec: WeightSpec | SpecFamily, readout: str) -> bool:
    """Whether dense blocks can hold the graph."""
    if isinstance(spec, SpecFamily) or readout == "class_token":
        return False
    try:
        return bool(block_graph(spec).blocks) and bool(spec.groups_of_kind("output"))
    except BlockError:
        return False


def one_spec(spec: WeightSpec | SpecFamily, readout: str) -> WeightSpec:
    """The spec that dense blocks are asked to hold.

    Raises:
        UnsupportedSpecError: if they cannot hold it.
    """
    if isinstance(spec, SpecFamily) or readout == "class_token":
        what = "a mixed zoo" if isinstance(spec, SpecFamily) else "a class token"
        raise UnsupportedSpecError(f"dense blocks cannot hold {what}: set form=edges or form=auto")
    return spec
