"""A layer of the relational transformer: attention between the nodes of pairs that have states of their own.

Sources: Diao and Loynd, "Relational Attention: Generalizing Transformers for Graph-Structured Tasks"; with
multiplicative values, Kofinas et al., "Graph Neural Networks for Learning Equivariant Representations of Neural
Networks", equation 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsl.graphs.pairs import Pairs, Rectangle
from wsl.nn.pairs import kernels
from wsl.nn.pairs.attention import attend
from wsl.nn.pairs.update import update
from wsl.nn.recompute import recomputed_in_chunks

#: values of the widest array of a chunk; a handful of such arrays should fit the cache
CHUNK_VALUES = 2**19


class RelationalAttention(nn.Module):
    r"""Attention in which the state of a pair takes part in its query, key and value.

    .. math::
        q_{ij} &= W_q n_i + W'_q e_{ij}, \qquad k_{ij} = W_k n_j + W'_k e_{ij} \\
        v_{ij} &= (W_s e_{ij}) ⊙ (W_v n_j) + W'_v e_{ij} \\
        y_i &= O_2 O_1 \Big[ \sum_j \mathrm{softmax}_j \big( ⟨q_{ij}, k_{ij}⟩_h / \sqrt{A} \big)\, v_{ij} \Big]_h

    for every head h. The score is divided by the root of the whole width A of all heads, as published. Without
    ``modulation``, v = W_v n_j + W'_v e_ij. The last term is summed before its map: W'_v Σ_j α_ij e_ij.

    Args:
        node_width, edge_width: of n and e. width: A, divisible by heads.

    Shapes: nodes ``[N, C]`` and pairs ``[P, D]`` → ``[N, C]``; zeros for nodes without keys, before O₁.
    """

    def __init__(self, node_width: int, edge_width: int, width: int, heads: int, modulation: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"the width of attention, {width}, is not divisible by {heads} heads")
        self.heads, self.modulation = heads, modulation
        self.node_maps = nn.ModuleList(nn.Linear(node_width, width, bias=False) for _ in range(3))
        self.edge_maps = nn.ModuleList(nn.Linear(edge_width, width, bias=False) for _ in range(2 + modulation))
        self.edge_value = nn.Linear(edge_width, width, bias=False)
        self.out = nn.Sequential(nn.Linear(width, node_width), nn.Linear(node_width, node_width))

    def forward(self, nodes: Tensor, edges: Tensor, pairs: Pairs) -> Tensor:
        q, k, v = (linear(nodes) for linear in self.node_maps)
        if not len(pairs):
            return self.out(torch.zeros_like(q))
        rows = q.index_select(0, pairs.rows)
        maps: list[Tensor] = [linear.weight for linear in self.edge_maps]  # type: ignore[misc]
        if kernels.take(edges, rows, *maps):
            y, summed = attend(pairs, edges, rows, k, v, maps, self.heads)
        else:
            chunks = [
                (piece, piece.pair_slice, piece.row_slice)
                for rectangle in pairs.rectangles
                for piece in rectangle.cut(CHUNK_VALUES // q.shape[1])
            ]
            y, summed = recomputed_in_chunks(self._attend, chunks, (pairs.key, edges), (rows, k, v, *maps), len(rows))
        y = y + torch.einsum("rhd,hcd->rhc", summed, self.edge_value.weight.unflatten(0, (self.heads, -1))).flatten(1)
        return self.out(y.new_zeros(q.shape).index_copy(0, pairs.rows, y))

    def _attend(self, piece: Rectangle, cut: Sequence[Tensor], whole: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Of the rows of one piece: Σ_j α v without its last term ``[r, A]``, and Σ_j α e ``[r, H, D]``."""
        key, edges = cut
        rows, k, v, to_query, to_key, *to_scale = whole
        shape = (piece.rows, piece.degree)
        q = F.linear(edges, to_query).unflatten(0, shape) + rows[piece.row_slice].unsqueeze(1)
        k = (F.linear(edges, to_key) + k.index_select(0, key)).unflatten(0, shape)
        of_head = _indicator(self.heads, q)
        alpha = (F.linear(q * k, of_head) * q.shape[-1] ** -0.5).softmax(1)
        v = v.index_select(0, key)
        v = v * F.linear(edges, to_scale[0]) if to_scale else v
        y = (v.unflatten(0, shape) * (alpha @ of_head)).sum(1)
        return y, alpha.mT @ edges.unflatten(0, shape)


def _indicator(heads: int, like: Tensor) -> Tensor:
    """``[H, A]``, 1 where a channel belongs to a head: sums over heads and spreads over channels are products."""
    width = like.shape[-1]
    return torch.eye(heads, dtype=like.dtype, device=like.device).repeat_interleave(width // heads, 1)


class FeedForward(nn.Module):
    r"""LN(x + W₂ GELU(W₁ x) + b), dropout before the sum; W₁ has no bias. ``norm=False`` leaves out the layer norm."""

    def __init__(self, width: int, hidden: int, dropout: float, norm: bool = True) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width) if norm else None
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.applied(x, self.weights())

    def weights(self) -> list[Tensor]:
        """What :meth:`applied` takes."""
        return [self.widen.weight, self.narrow.weight, self.narrow.bias, *_norm_weights(self.norm)]

    def applied(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        widen, narrow, bias, *norm = weights
        step = F.linear(F.gelu(F.linear(x, widen)), narrow, bias)
        return _normed(x + F.dropout(step, self.dropout, self.training), norm)


class PairUpdate(nn.Module):
    r"""New states of pairs, from the states of both directions and both nodes.

    .. math::
        e'_{ij} &= \mathrm{LN}\big(e_{ij} + O\, \mathrm{GELU}(W_e [e_{ij}; e_{ji}] + W_1 n_i + W_2 n_j)\big) \\
        e''_{ij} &= \mathrm{LN}(e'_{ij} + \mathrm{FFN}(e'_{ij}))

    Args:
        hidden: width of the two hidden layers. dropout: on the results of O and of the FFN.
        norm: False leaves out both layer norms.

    Shapes: nodes ``[N, C]`` and pairs ``[P, D]`` → ``[P, D]``.
    """

    def __init__(self, node_width: int, edge_width: int, hidden: int, dropout: float, norm: bool = True) -> None:
        super().__init__()
        self.both = nn.Linear(2 * edge_width, hidden)
        self.query, self.key = nn.Linear(node_width, hidden), nn.Linear(node_width, hidden)
        self.out = nn.Linear(hidden, edge_width)
        self.norm = nn.LayerNorm(edge_width) if norm else None
        self.feed = FeedForward(edge_width, hidden, dropout, norm)
        self.dropout = dropout

    def forward(self, nodes: Tensor, edges: Tensor, pairs: Pairs) -> Tensor:
        if not len(pairs):
            return edges
        ends = (self.query(nodes), F.linear(nodes, self.key.weight, self.key.bias + self.both.bias))
        if kernels.take(edges, *ends, self.both.weight):
            widen, narrow, bias, *last = self.feed.weights()
            steps = (self.both.weight, self.out.weight, self.out.bias, widen, narrow, bias)
            norms = (*_norm_weights(self.norm), *last)
            return update(pairs, edges, *ends, steps, norms, self.dropout if self.training else 0.0)
        step = CHUNK_VALUES // self.out.in_features
        slices = [slice(start, min(start + step, len(pairs))) for start in range(0, len(pairs), step)]
        cut = (pairs.query, pairs.key, edges, edges.index_select(0, pairs.partner))
        whole = (*ends, self.both.weight, self.out.weight, self.out.bias, *_norm_weights(self.norm))
        chunks = [(None, s, s) for s in slices]
        (updated,) = recomputed_in_chunks(self._update, chunks, cut, (*whole, *self.feed.weights()), len(pairs))
        return updated

    def _update(self, _: None, cut: Sequence[Tensor], whole: Sequence[Tensor]) -> tuple[Tensor, ...]:
        query, key, edges, reverse = cut
        of_query, of_key, both, out, bias, *rest = whole
        norm, feed = rest[: -len(self.feed.weights())], rest[-len(self.feed.weights()) :]
        here, back = both.chunk(2, dim=1)
        z = F.linear(edges, here) + F.linear(reverse, back)
        z = z + of_query.index_select(0, query) + of_key.index_select(0, key)
        step = F.linear(F.gelu(z), out, bias)
        edges = _normed(edges + F.dropout(step, self.dropout, self.training), norm)
        return (self.feed.applied(edges, feed),)


class RelationalLayer(nn.Module):
    """One layer: attention and feed-forward on the nodes, then the update of the pairs, all post-norm.

    Args:
        hidden: width of the nodes' feed-forward. edge_hidden: of the pairs' update; 0 leaves the pairs as they are.

    Shapes: nodes ``[N, C]`` and pairs ``[P, D]`` → the same.
    """

    def __init__(
        self,
        node_width: int,
        edge_width: int,
        width: int,
        hidden: int,
        edge_hidden: int,
        heads: int,
        dropout: float = 0.0,
        modulation: bool = True,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.attention = RelationalAttention(node_width, edge_width, width, heads, modulation)
        self.norm = nn.LayerNorm(node_width) if norm else nn.Identity()
        self.feed = FeedForward(node_width, hidden, dropout, norm)
        self.dropout = nn.Dropout(dropout)
        self.update = PairUpdate(node_width, edge_width, edge_hidden, dropout, norm) if edge_hidden else None
        self.apply(_start)

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply the maps of values, of the attention's result and of the feed-forward layers (T-Fixup)."""
        attention, feeds = self.attention, [self.feed, *([self.update.feed] if self.update else [])]
        values = [attention.node_maps[2], attention.edge_value, *attention.out]
        for linear in (*values, *(m for feed in feeds for m in (feed.widen, feed.narrow))):
            linear.weight.mul_(factor)

    def forward(self, nodes: Tensor, edges: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        nodes = self.norm(nodes + self.dropout(self.attention(nodes, edges, pairs)))
        nodes = self.feed(nodes)
        return nodes, edges if self.update is None else self.update(nodes, edges, pairs)


def _start(module: nn.Module) -> None:
    """Xavier-uniform maps, biases at zero."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _norm_weights(norm: nn.LayerNorm | None) -> list[Tensor]:
    return [] if norm is None else [norm.weight, norm.bias]


def _normed(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[0], weights[1]) if weights else x
