"""The pairs of nodes that attend to each other, laid out as rectangles: every query of one has as many keys.

A relational transformer has a state for each ordered pair (query i, key j). Two choices of pairs:

    dense    all pairs of nodes of a network, N² of them, each node with itself too
    sparse   the edges of the graph and their reverses

Pairs are listed row by row, a row being the pairs of one query, and rows with equally many keys stand together. So a
softmax over keys is one over an axis, for networks of any sizes, and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from wsl.batch import ragged


@dataclass(frozen=True)
class Rectangle:
    """Rows ``row … row + rows − 1``, each of ``degree`` pairs; the first pair is ``pair``."""

    row: int
    rows: int
    pair: int
    degree: int

    @property
    def row_slice(self) -> slice:
        return slice(self.row, self.row + self.rows)

    @property
    def pair_slice(self) -> slice:
        return slice(self.pair, self.pair + self.rows * self.degree)

    def cut(self, most: int) -> Iterator[Rectangle]:
        """The same rows in pieces of at most ``most`` pairs (and at least one row)."""
        step = max(1, most // self.degree)
        for first in range(0, self.rows, step):
            rows = min(step, self.rows - first)
            yield Rectangle(self.row + first, rows, self.pair + first * self.degree, self.degree)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Ordered pairs of nodes of a batch of graphs.

    Attributes:
        rows: ``[R]`` int64, the query of each row; a node without a key has none.
        key: ``[P]`` int64, the key of each pair. ``query``: ``[P]`` int64, its query.
        partner: ``[P]`` int64, the pair (j, i) of the pair (i, j).
        rectangles: of all rows, in order.
        along, against: ``[E]`` int64, the pair (source, target) of each edge, and the pair (target, source).
    """

    rows: Tensor
    query: Tensor
    key: Tensor
    partner: Tensor
    rectangles: tuple[Rectangle, ...]
    along: Tensor
    against: Tensor

    def __len__(self) -> int:
        """P."""
        return self.key.shape[0]


def dense_pairs(owner: Tensor, source: Tensor, target: Tensor) -> Pairs:
    """All pairs of nodes of each network. Edges that join the same two nodes share a pair.

    Args:
        owner: ``[N]`` int64, the network of each node. source, target: ``[E]`` int64, the ends of each edge.
    """
    nodes = owner.argsort(stable=True)
    sizes = owner.bincount()
    order = sizes.argsort(stable=True)
    first = sizes.cumsum(0) - sizes
    rank, row_owner, _ = ragged(first[order], sizes[order])
    degree = sizes[order][row_owner]
    key, row, _ = ragged(first[order][row_owner], degree)
    squares = sizes[order].square()
    start = torch.empty_like(sizes).index_copy(0, order, squares.cumsum(0) - squares)
    place = torch.empty_like(nodes).index_copy(0, nodes, torch.arange(len(nodes), device=nodes.device)) - first[owner]

    def number(i: Tensor, j: Tensor) -> Tensor:
        """The pair (i, j) of two nodes of one network."""
        return start[owner[i]] + place[i] * sizes[owner[i]] + place[j]

    rows = nodes[rank]
    query, key = rows[row], nodes[key]
    along, against = number(source, target), number(target, source)
    return Pairs(rows, query, key, number(key, query), _rectangles(degree), along, against)


def sparse_pairs(owner: Tensor, source: Tensor, target: Tensor) -> Pairs:
    """One pair for each edge, and one for its reverse; arguments as for :func:`dense_pairs`."""
    query, key = torch.cat([source, target]), torch.cat([target, source])
    degree = query.bincount(minlength=len(owner))
    rows = degree.argsort(stable=True)
    rows = rows[degree[rows] > 0]
    row_of = torch.zeros_like(degree).index_copy(0, rows, torch.arange(len(rows), device=rows.device))
    order = row_of[query].argsort(stable=True)
    place = torch.empty_like(order).index_copy(0, order, torch.arange(len(order), device=order.device))
    along, against = place.chunk(2) if len(place) else (place, place)
    partner = torch.empty_like(order).index_copy(0, place, torch.cat([against, along]))
    return Pairs(rows, query[order], key[order], partner, _rectangles(degree[rows]), along, against)


def _rectangles(degree: Tensor) -> tuple[Rectangle, ...]:
    """Of rows with these numbers of pairs, ascending."""
    values, counts = degree.unique_consecutive(return_counts=True)
    out, row, pair = [], 0, 0
    for d, n in zip(values.tolist(), counts.tolist(), strict=True):
        out.append(Rectangle(row, n, pair, d))
        row, pair = row + n, pair + n * d
    return tuple(out)
