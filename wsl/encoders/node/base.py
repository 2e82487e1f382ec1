"""What all node classifiers share: a stack of layers with dropout before and a nonlinearity between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from wsl.encoders.base import Encoder, UnsupportedSpecError
from wsl.graphs.node_graph import NodeBatch, NodeGraphSpec
from wsl.nn.sparse.sparse_input import dropout_of_features

Activation = Literal["relu", "elu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "elu": F.elu}


class NodeEncoder(Encoder):
    """x ← layer(dropout(x), edges) through all layers, with the activation after all but the last.

    Every layer sees the whole graph, so an output depends on the neighbourhood of as many steps as there are layers.
    Relabelling the nodes relabels the outputs and changes nothing else.

    Args:
        layers: called with ``x [N, F]`` and ``edge_index [2, E]``.
        activation: "relu" or "elu".
        dropout: rate on the input of every layer, in training.

    Shapes: :class:`NodeBatch` of N nodes → ``[N, out_features]``, for every node of the graph.

    Raises:
        UnsupportedSpecError: if the spec describes anything but the nodes of a graph.
    """

    reads: ClassVar[tuple[type[Any], ...]] = (NodeGraphSpec,)

    def __init__(
        self,
        spec: NodeGraphSpec,
        out_features: int,
        layers: Sequence[nn.Module],
        activation: Activation,
        dropout: float,
    ) -> None:
        super().__init__(spec, out_features)  # type: ignore[arg-type]
        self.layers = nn.ModuleList(layers)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: NodeBatch) -> Tensor:  # type: ignore[override]
        if batch.spec != self.spec:
            raise ValueError(f"this encoder was built for {self.spec}, the batch holds {batch.spec}")
        x = self.first_layer(batch)
        for layer in self.layers[1:]:
            x = layer(self.dropout(ACTIVATIONS[self.activation](x)), batch.graph.edge_index)
        return x

    def first_layer(self, batch: NodeBatch) -> Tensor:
        """What the first layer makes of the features."""
        x = dropout_of_features(batch.graph.x, self.dropout.p, self.training)
        out: Tensor = self.layers[0](x, batch.graph.edge_index)
        return out

    def rows(self, batch: NodeBatch) -> Tensor:
        """Outputs ``[R, out_features]`` of the batch's own nodes."""
        return self(batch)[batch.row_ids]


def widths(spec: NodeGraphSpec, out_features: int, hidden: int, layers: int) -> list[tuple[int, int]]:
    """(in, out) of each of ``layers`` layers, ``hidden`` features between them."""
    if not isinstance(spec, NodeGraphSpec):
        raise UnsupportedSpecError(
            f"a node classifier reads the nodes of a graph, not {spec!r}; choose data=digits_graph"
        )
    inner = [spec.features, *[hidden] * (layers - 1), out_features]
    return list(pairwise(inner))
