"""First states of the nodes and edges of an edge list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.encoders.base import UnsupportedSpecError
from wsl.graphs.edge_list import EdgeList, as_mixed, edge_list, states_of
from wsl.graphs.frame import GraphFrame, frame_of
from wsl.graphs.network import GraphError, GraphOptions
from wsl.nn.fourier import FourierFeatures
from wsl.nn.graph_probes import GraphProbes
from wsl.nn.graph_standardize import GraphStandardize
from wsl.spec import SpecError, WeightSpec
from wsl.spec.family import SpecFamily, specs_of


def graph_frame(spec: WeightSpec | SpecFamily, options: GraphOptions, reader: str) -> GraphFrame:
    """What the graphs of a spec or family fit into.

    Raises:
        UnsupportedSpecError: if one of them has no graph; ``reader`` is the encoder that says so.
    """
    try:
        return frame_of(specs_of(spec), options)
    except GraphError as error:
        raise UnsupportedSpecError(f"{reader} cannot take this spec: {error}") from error


def graph_probes(
    spec: WeightSpec | SpecFamily, frame: GraphFrame, probes: int, width: int, size: int, file: str
) -> GraphProbes:
    """Probe features; ``file`` names an array ``[≥ M, …]`` of inputs (.npy) to use instead of learned ones.

    Raises:
        UnsupportedSpecError: if the networks cannot be run, or the file does not hold such inputs.
    """
    try:
        images = torch.from_numpy(_numbers(np.load(Path(file), allow_pickle=False))) if file else None
        return GraphProbes(specs_of(spec), frame, probes, width, size, images)
    except (SpecError, OSError, ValueError) as error:
        where = f" (probe_file {file!r})" if file else ""
        raise UnsupportedSpecError(
            f"a neural graph with probes > 0 cannot be made of this spec{where}: {error}"
        ) from error


def _numbers(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array, if networks can be run on it.

    Raises:
        ValueError: saying what it holds instead.
    """
    if array.dtype.kind not in "fiu":
        raise ValueError(f"it holds {array.dtype}, not real numbers")
    if not np.isfinite(array).all():
        raise ValueError("it holds NaN or infinity")
    return array


class EdgeListEmbedding(nn.Module):
    """Waves of node and edge values, two linear maps for each type of edge; positional and activation embeddings.

    A node gets the row of its place: one for each input, for each depth of hidden layers, for each output. Layers that
    are deeper than all that the frame knows share the row of the deepest. Hidden neurons that have a meaning of their
    own (positions of a flattened map, rows of a table) also get a row for it, and where hidden layers compute different
    functions each has the row of its function. All rows start as N(0, 1).

    With reverse edges an edge's features are [w, 0, w] along its direction and [0, w, w] against it, as on dense blocks
    (:class:`~wsl.encoders.neural_graph.NeuralGraphEmbedding`); the zeros are not multiplied.

    Args:
        frame: what graphs fit into.
        node_width, edge_width: sizes of the states.
        reverse_edges: whether states of reversed edges are wanted too.
        fourier_features: number of waves per value; 0 feeds the value itself.
        fourier_std: standard deviation of the waves' frequencies.
    """

    def __init__(
        self,
        frame: GraphFrame,
        node_width: int,
        edge_width: int,
        reverse_edges: bool,
        fourier_features: int,
        fourier_std: float,
    ) -> None:
        super().__init__()
        self.frame, self.reverse_edges = frame, reverse_edges

        def waves(size: int) -> nn.Module:
            return FourierFeatures(size, fourier_features, fourier_std) if fourier_features else nn.Identity()

        sizes = [width * (3 if reverse_edges else 1) for _, width in frame.types]
        self.node_waves = waves(max(1, len(frame.slots)))
        self.lift_nodes = nn.Linear(2 * fourier_features or max(1, len(frame.slots)), node_width)
        self.edge_waves = nn.ModuleList(waves(size) for size in sizes)
        self.lift_edges = nn.ModuleList(nn.Linear(2 * fourier_features or size, edge_width) for size in sizes)
        self.project_nodes = nn.Linear(node_width, node_width)
        self.project_edges = nn.ModuleList(nn.Linear(edge_width, edge_width) for _ in sizes)
        self.places = nn.Parameter(torch.randn(frame.inputs + frame.depth + frame.outputs, node_width))
        self.positions = nn.Parameter(torch.randn(frame.positions, node_width)) if frame.positions > 1 else None
        several = len(frame.functions) > 1
        self.functions = nn.Parameter(torch.randn(len(frame.functions), node_width)) if several else None

    def nodes(self, graph: EdgeList, picked: Tensor, features: Tensor | None = None) -> Tensor:
        """Node states ``[ΣN, C]`` from values of the node cells ``[M, 1]`` and probe features ``[ΣN, C]``."""
        values = graph.spread_on_nodes(picked).flatten(1)
        values = F.pad(values, (0, 1)) if not values.shape[1] else values
        x = self.lift_nodes(self.node_waves(values))
        x = self.project_nodes(x if features is None else x + features)
        starts = torch.tensor([0, self.frame.inputs, self.frame.inputs + self.frame.depth], device=x.device)
        x = x + self.places.index_select(0, starts[graph.role] + graph.row)
        for table, rows in ((self.positions, graph.position), (self.functions, graph.function)):
            if table is not None:  # a number below 0 says that there is none
                x = x + F.pad(table, (0, 0, 1, 0)).index_select(0, rows + 1)
        return x

    def edges(self, graph: EdgeList, picked: Tensor) -> Tensor:
        """States of edges ``[ΣE, C]``, followed by those of the reversed ones if there are, from ``[M, 1]``."""
        values = graph.spread_on_edges(picked).flatten(1)
        directions = (0, 1) if self.reverse_edges else (0,)
        if len(self.frame.types) == 1:
            return torch.cat([self._lifted(0, values, direction) for direction in directions])
        rows = [(graph.type == number).nonzero().squeeze(-1) for number in range(len(self.frame.types))]
        parts = []
        for direction in directions:
            of_types = [
                self._lifted(number, values.index_select(0, of_type)[:, :width], direction)
                for number, (of_type, (_, width)) in enumerate(zip(rows, self.frame.types, strict=True))
            ]
            lifted = torch.cat(of_types)
            parts.append(torch.empty_like(lifted).index_copy(0, torch.cat(rows), lifted))
        return torch.cat(parts)

    def zero(self) -> Tensor:
        """``[C]``: the state of an edge of the first type whose values are all zero."""
        lift, waves = self.lift_edges[0], self.edge_waves[0]
        width = self.frame.types[0][1] * (3 if self.reverse_edges else 1)
        return self.project_edges[0](lift(waves(self.places.new_zeros(1, width))))[0]

    def directed(self, graph: EdgeList) -> Tensor:
        """``[ΣD]``: the row of :meth:`edges` that each directed edge has."""
        return graph.directed_edge + graph.reversed * graph.num_edges

    def _lifted(self, type: int, values: Tensor, direction: int) -> Tensor:
        """The two maps in a row are one map: there are many edges, so it pays to multiply the weights first."""
        lift, waves, project = self.lift_edges[type], self.edge_waves[type], self.project_edges[type]
        weight, bias = _composed(project, lift)
        if isinstance(waves, FourierFeatures):
            return F.linear(waves.waves(values, self._of_direction(waves.frequencies, direction)), weight, bias)
        return F.linear(values, self._of_direction(weight, direction), bias)

    def _of_direction(self, columns: Tensor, direction: int) -> Tensor:
        """What acts on w of [w, 0, w], or of [0, w, w]."""
        if not self.reverse_edges:
            return columns
        along, against, both = columns.chunk(3, dim=1)
        return (against if direction else along) + both


def _composed(second: nn.Module, first: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of two linear maps in a row."""
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    return second.weight @ first.weight, second(first.bias)


class EdgeListFront(nn.Module):
    """From networks of any architectures to the first states of their graphs: statistics, probes, embedding.

    Args:
        spec: a spec or a family; networks of other specs may come if their graphs fit the frame.
        frame: what graphs fit into (:func:`graph_frame`).
        node_width, edge_width: sizes of the states.
        reverse_edges, fourier_features, fourier_std: see :class:`EdgeListEmbedding`.
        probes, probe_size, probe_file: see :func:`graph_probes`.
        standardize: subtract mean and divide by deviation (:class:`~wsl.nn.graph_standardize.GraphStandardize`).

    Shapes: batch → its graph; node states ``[ΣN, C]``; edge states ``[ΣE, C]``, or ``[2ΣE, C]`` with those of reversed
    edges behind (:meth:`EdgeListEmbedding.directed` says which directed edge has which).
    """

    log_degree: Tensor

    def __init__(
        self,
        spec: WeightSpec | SpecFamily,
        frame: GraphFrame,
        node_width: int,
        edge_width: int,
        *,
        reverse_edges: bool,
        probes: int,
        probe_size: int,
        probe_file: str,
        fourier_features: int,
        fourier_std: float,
        standardize: bool,
    ) -> None:
        super().__init__()
        self.frame = frame
        self.standardize = GraphStandardize(frame) if standardize else None
        if probe_file and not probes:
            raise UnsupportedSpecError(f"probe_file {probe_file!r} is read where probes > 0; set it or leave the file")
        self.probe_features = graph_probes(spec, frame, probes, node_width, probe_size, probe_file) if probes else None
        self.embed = EdgeListEmbedding(frame, node_width, edge_width, reverse_edges, fourier_features, fourier_std)
        degrees = [
            np.bincount(np.concatenate([e.target for e in graph.edges]), minlength=graph.num_nodes)
            for graph in (frame.graph(one) for one in specs_of(spec))
        ]
        self.register_buffer("log_degree", torch.tensor(np.log1p(np.concatenate(degrees)).mean()).float())

    def fit(self, batch: WeightBatch | MixedWeightBatch) -> None:
        """Take the statistics of values and of degrees (mean of log(degree + 1)) from training networks."""
        graph, mixed = edge_list(batch, self.frame), as_mixed(batch)
        if self.standardize is not None:
            self.standardize.fit(graph, mixed.values)
        self.log_degree.copy_(graph.row_pointer.diff().double().log1p().mean())

    def forward(self, batch: WeightBatch | MixedWeightBatch) -> tuple[EdgeList, Tensor, Tensor]:
        one_channel(batch)
        mixed = as_mixed(batch)
        graph = edge_list(mixed, self.frame, self.embed.reverse_edges)
        if self.standardize is None:
            on_nodes, on_edges = graph.node_cells.pick(mixed.values), graph.edge_cells.pick(mixed.values)
        else:
            on_nodes, on_edges = self.standardize(graph, mixed.values)
        features = None if self.probe_features is None else self.probe_features(graph, mixed)
        return graph, self.embed.nodes(graph, on_nodes, features), self.embed.edges(graph, on_edges)


def one_channel(batch: WeightBatch | MixedWeightBatch) -> None:
    """Raise ValueError if a batch has several values for each parameter, of which a graph has no place."""
    if batch.values.shape[-1] != 1:
        raise ValueError(f"a neural graph reads weights with one channel, this batch has {batch.values.shape[-1]}")


def output_states(graph: EdgeList, x: Tensor) -> Tensor:
    """States of the output nodes ``[B, outputs, C]``; zeros where a network has fewer than the frame."""
    return states_of(graph, x, "output")


def padded_states(graph: EdgeList, x: Tensor) -> tuple[Tensor, Tensor]:
    """Node states ``[B, N_max, C]`` and which of them there are, ``[B, N_max]`` bool."""
    sizes = graph.node_offsets.diff()
    width = int(sizes.max()) if len(graph) else 0
    present = torch.arange(width, device=x.device) < sizes.unsqueeze(-1)
    places = present.flatten().nonzero().squeeze(-1)
    out = x.new_zeros(len(graph) * width, x.shape[1]).index_copy(0, places, x)
    return out.view(len(graph), width, x.shape[1]), present
