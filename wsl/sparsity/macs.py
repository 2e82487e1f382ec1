"""Multiply-accumulates of one forward pass, by one convention for dense and sparse models.

One MAC is one product that is added. A linear map costs rows × non-zero weights; a propagation costs channels as they
are propagated × edges used, self loops included on both sides of a comparison; attention scores cost 2 per edge, head
and channel. Biases, norms and activations are left out. Counts are Python integers, which do not overflow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerCost:
    """What one layer does, and what it would do without pruning.

    Attributes:
        rows: inputs of its linear maps. weights, all_weights: non-zero and stored entries of them.
        channels: numbers per edge that are multiplied. edges, all_edges: used and present in the graph, loops included.
        loops: of the edges used.
        all_rows: inputs that there would be without pruning, where that is another number (maps of edges).
    """

    rows: int
    weights: int
    all_weights: int
    channels: int = 0
    edges: int = 0
    all_edges: int = 0
    loops: int = 0
    all_rows: int | None = None

    @property
    def macs(self) -> int:
        return self.rows * self.weights + self.channels * self.edges

    @property
    def dense_macs(self) -> int:
        rows = self.rows if self.all_rows is None else self.all_rows
        return rows * self.all_weights + self.channels * self.all_edges


@dataclass(frozen=True)
class Cost:
    """A whole model: sums over layers, then ratios."""

    macs: int
    dense_macs: int
    edge_sparsity: float
    edge_sparsity_with_loops: float
    weight_sparsity: float


def total(layers: Iterable[LayerCost]) -> Cost:
    """Sparsities: sums over layers of what is left over sums of what there was; of edges with and without loops."""
    found = list(layers)
    weights, all_weights = sum(c.weights for c in found), sum(c.all_weights for c in found)
    edges, all_edges, loops = (sum(getattr(c, k) for c in found) for k in ("edges", "all_edges", "loops"))
    return Cost(
        macs=sum(c.macs for c in found),
        dense_macs=sum(c.dense_macs for c in found),
        edge_sparsity=_removed(edges - loops, all_edges - loops),
        edge_sparsity_with_loops=_removed(edges, all_edges),
        weight_sparsity=_removed(weights, all_weights),
    )


def _removed(left: int, there: int) -> float:
    return 1.0 - left / there if there else 0.0
