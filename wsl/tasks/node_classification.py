"""Which class does a node of the graph belong to?"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from wsl.encoders.node.base import NodeEncoder
from wsl.graphs.node_graph import NodeBatch, NodeGraphSpec
from wsl.tasks.classification import Classification


class NodeClassification(Classification):
    """Cross-entropy on the logits of the split's nodes; metric: accuracy on them, a fraction in [0, 1].

    The encoder sees the whole graph in every split, labels excepted (transductive learning); decoupled encoders take
    mini-batches of nodes.

    Args:
        label_smoothing: share of the target's probability that is spread over all classes, in [0, 1).
    """

    reads: ClassVar[tuple[type, ...]] = (NodeGraphSpec,)

    def output(self, batch: NodeBatch) -> Tensor:  # type: ignore[override]
        encoder = self.encoder
        return encoder.rows(batch) if isinstance(encoder, NodeEncoder) else encoder(batch)[batch.row_ids]
