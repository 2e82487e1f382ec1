"""The update of pairs, compiled (``update.c``), with gradients.

The mathematics is that of :class:`wsl.nn.relational.PairUpdate`, where the same stands in torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsl.graphs.pairs import Pairs
from wsl.nn.pairs import kernels
from wsl.nn.pairs.kernels import POINTER, REAL, WHOLE, fields, in_threads, lanes_of, library, padded, ready

WEIGHTS = 10


class _Update(ctypes.Structure):
    """``Update`` of update.c."""

    _fields_ = [
        *fields(WHOLE, "edge hidden real"),
        *fields(WHOLE * 2, "seeds"),
        *fields(WHOLE, "below"),
        *fields(REAL, "kept"),
        *fields(POINTER, "query key partner edges of_query of_key"),
        *fields(POINTER * WEIGHTS, "weights transposed"),
        *fields(POINTER, "updated of_updated of_edges of_reverse of_query_nodes of_key_nodes"),
        *fields(POINTER * WEIGHTS, "of_weights"),
    ]


def update(
    pairs: Pairs,
    edges: Tensor,
    of_query: Tensor,
    of_key: Tensor,
    steps: Sequence[Tensor],
    norms: Sequence[Tensor],
    dropout: float,
) -> Tensor:
    """New states of pairs ``[P, D]``.

    Args:
        of_query, of_key: ``[N, F]``, the nodes' part of the hidden layer, with its bias.
        steps: B ``[F, 2D]``, O ``[D, F]``, its bias, then W ``[F, D]``, N ``[D, F]``, its bias.
        norms: scale and shift of both layer norms ``[D]``; or none.
        dropout: rate on both results; 0 outside of training.
    """
    lanes, real = lanes_of(edges.dtype), edges.shape[1]
    both, *others = steps
    both = padded(padded(both.unflatten(1, (2, real)), lanes).flatten(1).t(), lanes).t()
    weights = [both, *(padded(w, lanes, w.ndim) for w in (*others, *norms))]
    edges = padded(edges, lanes)
    nodes = (padded(x, lanes) for x in (of_query, of_key))
    updated: Tensor = _Updated.apply(pairs, real, _Dropout.of(dropout), edges, *nodes, *weights)
    return updated[:, :real]


@dataclass(frozen=True)
class _Dropout:
    """Seeds of the random bits of both steps, below what number of 32 bits they drop, the factor of what is kept."""

    seeds: tuple[int, int] = (0, 0)
    below: int = 0
    kept: float = 1.0

    @classmethod
    def of(cls, rate: float) -> _Dropout:
        if not rate:
            return cls()
        first, second = torch.randint(2**63 - 1, (2,)).tolist()
        return cls((first, second), min(round(rate * 2**32), 2**32 - 1), 1 / (1 - rate) if rate < 1 else 0.0)


class _Updated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: Pairs, real: int, dropout: _Dropout, edges: Tensor, *others: Tensor) -> Tensor:
        ctx.pairs, ctx.real, ctx.dropout = pairs, real, dropout
        ctx.save_for_backward(edges, *others)
        updated = torch.empty_like(edges)
        _update(pairs, real, dropout, (edges, *others), lambda _: ({"updated": updated}, ()), torch.get_num_threads())
        return updated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_updated: Tensor) -> tuple[Tensor | None, ...]:
        tensors: tuple[Tensor, ...] = ctx.saved_tensors
        edges, *shared = tensors
        of_edges, of_reverse, given = torch.empty_like(edges), torch.empty_like(edges), ready(of_updated)
        parts = kernels.parts_of(edges, shared)
        sums = [t.new_zeros(parts, *t.shape) for t in shared]

        def arrays(part: int) -> tuple[dict[str, Tensor], list[Tensor]]:
            of_query, of_key, *of_weights = (t[part] for t in sums)
            out = {"of_updated": given, "of_edges": of_edges, "of_reverse": of_reverse}
            return out | {"of_query_nodes": of_query, "of_key_nodes": of_key}, of_weights

        _update(ctx.pairs, ctx.real, ctx.dropout, tensors, arrays, parts)
        return None, None, None, of_edges.add_(of_reverse), *(t.sum(0) for t in sums)


def _update(
    pairs: Pairs,
    real: int,
    dropout: _Dropout,
    tensors: Sequence[Tensor],
    arrays: Callable[[int], tuple[dict[str, Tensor], Sequence[Tensor]]],
    parts: int,
) -> None:
    edges, of_query, of_key, *weights = map(ready, tensors)
    compiled = library(edges.dtype, 1)
    transposed = [w.t().contiguous() if w.ndim == 2 else w for w in weights]
    known = {"query": pairs.query, "key": pairs.key, "partner": pairs.partner}
    known |= {"edges": edges, "of_query": of_query, "of_key": of_key}

    def addresses(tensors: Sequence[Tensor]) -> ctypes.Array[Any]:
        return (POINTER * WEIGHTS)(*(t.data_ptr() for t in tensors))

    def piece(part: int) -> int:
        out, of_weights = arrays(part)
        problem = _Update(
            edges.shape[1], of_query.shape[1], real, (WHOLE * 2)(*dropout.seeds), dropout.below, dropout.kept,
            **{name: t.data_ptr() for name, t in (known | out).items()},
            weights=addresses(weights), transposed=addresses(transposed), of_weights=addresses(of_weights),
        )  # fmt: skip
        first, last = (len(pairs) * n // parts for n in (part, part + 1))
        failed: int = compiled.update(ctypes.byref(problem), first, last)
        return failed

    in_threads(piece, parts)
