"""One graph whose nodes are to be classified: what an encoder must know of it, and a batch of its nodes.

The whole graph is one input: a batch names the nodes that count, and carries the graph for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

FORMAT = "node-graph"


@dataclass(frozen=True)
class NodeGraphSpec:
    """What graphs share that an encoder can be used on: ``features`` numbers per node."""

    features: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"format": FORMAT, "features": self.features}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NodeGraphSpec:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: on anything else.
        """
        if dict(data) != {"format": FORMAT, "features": data.get("features")} or not isinstance(data["features"], int):
            raise ValueError(f"not the description of a graph's nodes: {dict(data)!r}")
        return cls(data["features"])


@dataclass(frozen=True, eq=False)
class NodeGraph:
    """Features ``x [N, F]``, edges source → target ``edge_index [2, E]`` int64, labels ``y [N]`` int64."""

    x: Tensor
    edge_index: Tensor
    y: Tensor

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.x.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> NodeGraph:
        return NodeGraph(*(t.to(device, non_blocking=non_blocking) for t in (self.x, self.edge_index, self.y)))


@dataclass(frozen=True, eq=False)
class NodeBatch:
    """Nodes ``row_ids [R]`` int64 of a graph; predictions for all others are ignored.

    The names are those of :class:`wsl.batch.WeightBatch`, so that one task can serve both: a row is a node here.
    """

    graph: NodeGraph
    row_ids: Tensor

    def __len__(self) -> int:
        return self.row_ids.shape[0]

    @property
    def spec(self) -> NodeGraphSpec:
        return NodeGraphSpec(self.graph.x.shape[1])

    @property
    def target(self) -> Tensor:
        """Labels ``[R]`` of the nodes that count."""
        return self.graph.y[self.row_ids]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> NodeBatch:
        return replace(self, graph=self.graph.to(device, non_blocking), row_ids=self.row_ids.to(device))
