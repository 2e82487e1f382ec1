"""What encoders share that read neural graphs in two forms: dense blocks of one architecture, or an edge list."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.encoders.base import Encoder, UnsupportedSpecError
from wsl.encoders.graph_embedding import EdgeListFront, graph_frame, one_channel
from wsl.encoders.graph_field import refuse_readout
from wsl.encoders.neural_graph import NeuralGraphEmbedding, fits_blocks, neural_graph, one_spec
from wsl.graphs.blocks import BlockGraph
from wsl.graphs.frame import GraphFrame
from wsl.graphs.network import GraphOptions
from wsl.nn.standardize import Standardize
from wsl.spec import WeightSpec
from wsl.spec.family import SpecFamily


class Reading(NamedTuple):
    """How an encoder reads networks; see the arguments of :class:`~wsl.encoders.ng_gnn.NGGNN`."""

    width: int
    reverse_edges: bool
    probes: int
    probe_size: int
    probe_file: str
    fourier_features: int
    fourier_std: float
    standardize: bool
    readout: str
    options: GraphOptions


class GraphEncoder(Encoder):
    """Reads networks of one spec whose connections are all linear as dense blocks, all others as an edge list.

    Attributes:
        graph: the blocks, with ``embed`` and ``standardize``; None on an edge list, whose parts are in ``front``.
    """

    symmetries: ClassVar[frozenset[str]] = frozenset({"permutation"})
    reads: ClassVar[tuple[type[Any], ...]] = (WeightSpec, SpecFamily)
    graph: BlockGraph | None = None

    def read_as(
        self, name: str, form: Literal["auto", "blocks", "edges"], reading: Reading, field: bool = False
    ) -> tuple[int, GraphFrame | None]:
        """Build what makes first states of nodes and edges; the number of output nodes, and the frame of an edge list.

        Args:
            name: of the encoder, for the sentence in which it refuses a spec.
            field: whether a field is returned, which needs an edge list and no output nodes.

        Raises:
            UnsupportedSpecError: as the encoders say.
        """
        spec, frame = self.spec, None
        plain = not reading.probe_file and not field
        if form == "blocks" and reading.probe_file:
            raise UnsupportedSpecError(f"{name} reads probe_file on edge lists: set form=edges or form=auto")
        if field:
            refuse_readout(name, reading.readout)
        if form == "blocks" or (form == "auto" and plain and fits_blocks(spec, reading.readout)):
            one = one_spec(spec, reading.readout)
            self.graph, self.outputs = neural_graph(one, reading.reverse_edges, name)
            self.standardize = Standardize(one) if reading.standardize else None
            self.embed = NeuralGraphEmbedding(
                one, self.graph, reading.width, reading.probes, reading.fourier_features, reading.fourier_std
            )
            outputs = sum(nodes.size for nodes in self.outputs)
        else:
            frame = graph_frame(spec, reading.options, name)
            self.front = EdgeListFront(
                spec, frame, reading.width, reading.width, reverse_edges=reading.reverse_edges, probes=reading.probes,
                probe_size=reading.probe_size, probe_file=reading.probe_file,
                fourier_features=reading.fourier_features, fourier_std=reading.fourier_std,
                standardize=reading.standardize,
            )  # fmt: skip
            outputs = frame.outputs
        if reading.readout == "outputs" and not outputs and not field:
            raise UnsupportedSpecError(
                f"{name} reads the states of output neurons, and this spec has none that can be told apart; "
                "choose another readout"
            )
        return outputs, frame

    def fit_statistics(self, batch: WeightBatch | MixedWeightBatch) -> None:
        """Set mean and deviation of weights and biases from training data; on an edge list, also that of degrees."""
        if self.graph is None:
            self.front.fit(batch)
        elif self.standardize is not None:
            self.standardize.fit(batch)

    def block_states(self, batch: WeightBatch | MixedWeightBatch) -> tuple[Tensor, Tensor]:
        """First states of the blocks' nodes ``[B, N, C]`` and edges ``[B, E, C]``."""
        one_channel(batch)
        if isinstance(batch, MixedWeightBatch):
            batch = WeightBatch(batch.specs[0], batch.stacked())
        values = batch.values if self.standardize is None else self.standardize(batch.values)
        return self.embed(batch, values)
