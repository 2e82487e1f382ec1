"""ScaleGMN: message passing on the neural graph that respects scales, signs and phases of hidden neurons."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.encoders.base import Encoder, UnsupportedSpecError
from wsl.encoders.graph_embedding import graph_frame
from wsl.graphs.edge_list import as_mixed
from wsl.graphs.frame import GraphFrame
from wsl.graphs.network import GraphError, GraphOptions
from wsl.nn.phases import folded_with_signs
from wsl.nn.scale_gmn.field import ScaleField
from wsl.nn.scale_gmn.front import DenseFront, Embedding, ListFront, States
from wsl.nn.scale_gmn.graph import ListGraph, NotDenseError
from wsl.nn.scale_gmn.kinds import kind_table
from wsl.nn.scale_gmn.layer import ScaleGMNLayer
from wsl.nn.scale_gmn.pruning import MessageSieve
from wsl.nn.scale_gmn.reach import reaches
from wsl.nn.scale_gmn.readout import EndsReadout, FullReadout, Readout
from wsl.nn.standardize import Standardize
from wsl.ranges import PositiveFloat, PositiveInt, Rate
from wsl.spec import WeightSpec
from wsl.spec.family import SpecFamily, specs_of


class ScaleGMN(Encoder):
    """Reads networks by their neural graph: neurons are nodes, weights (or kernels) edges, biases node values.

    Every state has the factor of what it stands for: d_i at neuron i, d_i / d_j on the edge from j to i. Layers join
    states by products of linear maps and functions of canonical forms (:mod:`wsl.nn.scale_gmn`), so that factors pass
    through. The readout forgets them; a field keeps them (:mod:`wsl.nn.scale_gmn.field`). Which factors a neuron may
    have follows from its own activation: positive ones (ReLU), signs (tanh, sine), both (identity), none; layers of one
    network and networks of one zoo may differ. Sine biases are first folded into half a period (:mod:`wsl.nn.phases`).

    ``bidirectional=False`` is ScaleGMN, ``True`` ScaleGMN-B. Against the network an edge has the factor d_j / d_i, so
    its first state there is made of the reciprocal weight; with signs alone, d = 1/d, both directions share one state.

    Source: Kalogeropoulos et al., "Scale Equivariant Graph Metanetworks", NeurIPS 2024. The numbers of parameters are
    those of the published models. Other than in the published code, backward edges have reciprocals, phases are folded
    with the frequency of the sine, nothing is added to norms, and activations may differ within one network.

    Pruned by Unifews (:mod:`wsl.nn.scale_gmn.pruning`), the graph is an edge list, whatever ``form`` says.

    Args:
        spec: what the networks share, or the family of their specs. A network of a family may have a spec that the
            family has not, if its graph fits (:class:`~wsl.graphs.frame.GraphFrame`).
        out_features: number of features returned.
        width: C, size of node and edge states.
        layers: rounds of message passing.
        bidirectional: also let messages run from outputs to inputs.
        sign: how a vector forgets its sign: "symmetrised" ρ(x) + ρ(−x), or "abs" |x|.
        readout: "outputs" reads the output nodes (bidirectional: the inputs, too); "full" all nodes.
        end_functions: "shared" has one perceptron in each place for nodes without factors, "separate" one for inputs
            and one for the rest.
        norm: "layer" has layer norms in all perceptrons (on invariants); "none" has not.
        skip: add a linear map of a layer's node states to its result.
        edge_codes: learned codes of edges, beside those of nodes.
        codes_in_layers: functions of messages read the code of the sender, too, and node updates that of their node.
        dropout: rate on node states between layers, in training.
        fold_phases: fold sine biases; without, the encoder does not respect phases.
        normalize: divide each tensor by its root mean square over the training data (see :meth:`fit_statistics`).
        form: "blocks" (one architecture whose connections are all matrices) or "edges"; "auto" takes blocks if it can.
        flatten: see :class:`~wsl.graphs.network.GraphOptions`.
        equivariant: return a field over the parameters, ``out_features`` values for each, which transforms like
            differences of weights; always on an edge list. Set ``bidirectional``, for neurons to hear of the outputs.
        field_scale: start of the learned scales of the field.

    Shapes: batch of ``[B, P, 1]`` or a mixed one → ``[B, out_features]``; equivariant, ``[B, P, out_features]`` or
    ``[ΣP, out_features]``.

    Raises:
        UnsupportedSpecError: if a spec has no neural graph, one whose values do not have the factors of their places,
            no blocks though they are asked for (as they are not for fields), or no output neurons to be read.
    """

    symmetries: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling", "sign", "phase"})
    reads: ClassVar[tuple[type[Any], ...]] = (WeightSpec, SpecFamily)

    def __init__(
        self,
        spec: WeightSpec | SpecFamily,
        out_features: int,
        *,
        width: PositiveInt = 128,
        layers: PositiveInt = 4,
        bidirectional: bool = False,
        sign: Literal["symmetrised", "abs"] = "symmetrised",
        readout: Readout = "outputs",
        end_functions: Literal["shared", "separate"] = "shared",
        norm: Literal["layer", "none"] = "layer",
        skip: bool = False,
        edge_codes: bool = False,
        codes_in_layers: bool = False,
        dropout: Rate = 0.0,
        fold_phases: bool = True,
        normalize: bool = True,
        form: Literal["auto", "blocks", "edges"] = "auto",
        flatten: Literal["kernel", "repeat", "layer"] = "kernel",
        equivariant: bool = False,
        field_scale: PositiveFloat = 0.01,
    ) -> None:
        super().__init__(spec, out_features)
        held = {s for one in specs_of(spec) for label in one.labels for s in label.symmetries}
        self.folds = fold_phases and "phase" in held
        if not fold_phases:
            self.symmetries = self.symmetries - {"phase"}  # type: ignore[misc]  # of this one
        self.bidirectional, self.equivariant, self.coded = bidirectional, equivariant, codes_in_layers
        self.own_back = bidirectional and "scaling" in held
        frame = graph_frame(spec, GraphOptions(flatten), "ScaleGMN")
        if not frame.outputs and not equivariant:
            raise UnsupportedSpecError("ScaleGMN reads output neurons, and this spec has none that can be told apart")
        if equivariant and form == "blocks":
            raise UnsupportedSpecError("ScaleGMN returns fields on edge lists: set form=edges or form=auto")
        self.front = front(spec, frame, "edges" if equivariant else form)
        self.normalize = Standardize(spec, center=False) if normalize else None
        self.embed = Embedding(frame, width, edge_codes)
        symmetrised, layer_norm = sign == "symmetrised" and "sign" in held, norm == "layer"
        self.layers = nn.ModuleList(
            ScaleGMNLayer(
                width, 1 if end_functions == "shared" else 2, layer_norm, symmetrised, backward=bidirectional,
                own_back=self.own_back, update_edges=n + 1 < layers, skip=skip, coded=codes_in_layers,
            )
            for n in range(layers)
        )  # fmt: skip
        self.lists = ListFront(frame)  # blocks cannot leave out single edges
        prunable = not equivariant  # a field has a value for every edge
        self.pruners = nn.ModuleList(MessageSieve() for _ in self.layers if prunable)
        self.dropout = nn.Dropout(dropout)
        self.readout: EndsReadout | FullReadout | ScaleField
        if equivariant:
            self.readout = ScaleField(frame, width, out_features, layer_norm, symmetrised, field_scale)
        elif readout == "outputs":
            self.readout = EndsReadout(frame, width, out_features, layer_norm, bidirectional)
        else:
            self.readout = FullReadout(frame, width, out_features, layer_norm, symmetrised)

    def fit_statistics(self, batch: WeightBatch | MixedWeightBatch) -> None:
        """Set the scale of each parameter tensor from training data."""
        if self.normalize is not None:
            self.normalize.fit(self._folded(batch)[0])

    def forward(self, batch: WeightBatch | MixedWeightBatch) -> Tensor:
        if isinstance(self.spec, WeightSpec):
            self.check_spec(batch)
        if not len(batch):
            return self.of_no_networks(batch)
        folded, signs = self._folded(batch)
        graph, first, edges, back, codes = self._first(folded)
        side = codes if self.coded else None
        reach = reaches(graph, len(self.layers), self.readout.roles, self.bidirectional, self.own_back)
        x, whole = first, graph
        for number, layer in enumerate(self.layers):
            x = self.dropout(x) if number else x
            if isinstance(whole, ListGraph) and not self.open:
                along = reach[number].messages
                edges, back, graph = self.pruners[number](layer, x, edges, back, graph, whole, along)
            x, edges, back = layer(x, edges, back, graph, reach[number], side)
        if not isinstance(self.readout, ScaleField):
            return self.readout(x, graph)
        field = self.readout(graph, first, x, edges) * signs
        return field if isinstance(batch, MixedWeightBatch) else field.unflatten(0, (len(batch), -1))

    @property
    def open(self) -> bool:
        """Whether no layer prunes."""
        return all(pruner.sieve.open for pruner in self.pruners if isinstance(pruner, MessageSieve))

    def _folded(self, batch: WeightBatch | MixedWeightBatch) -> tuple[MixedWeightBatch, Tensor]:
        """The networks with folded biases, and the signs of weights before by after."""
        if batch.values.shape[-1] != 1:
            raise ValueError(f"ScaleGMN reads one channel, this batch has {batch.values.shape[-1]}")
        mixed = as_mixed(batch)
        return folded_with_signs(mixed) if self.folds else (mixed, torch.ones_like(mixed.values))

    def _first(self, batch: MixedWeightBatch) -> States:
        values = batch.values if self.normalize is None else self.normalize.flat(batch)
        if isinstance(self.front, DenseFront) and self.open:
            return self.front(values.view(len(batch), -1), self.embed, self.own_back)
        states: States = self.lists(batch.with_values(values), self.embed, self.own_back)
        return states


def front(spec: WeightSpec | SpecFamily, frame: GraphFrame, form: str) -> DenseFront | ListFront:
    """The form asked for, or blocks where they can hold the graph.

    Raises:
        UnsupportedSpecError: if they cannot though asked for, or a spec has values with other factors.
    """
    try:
        for one in specs_of(spec):
            kind_table(one, frame)
        if form != "edges" and isinstance(spec, WeightSpec):
            return DenseFront(spec, frame)
    except GraphError as error:
        raise UnsupportedSpecError(f"ScaleGMN cannot take this spec: {error}") from error
    except NotDenseError as error:
        if form == "blocks":
            raise UnsupportedSpecError(f"dense blocks cannot hold this spec: {error}; set form=edges") from error
    if form == "blocks" and isinstance(spec, SpecFamily):
        raise UnsupportedSpecError("dense blocks cannot hold a mixed zoo: set form=edges or form=auto")
    return ListFront(frame)
