"""Attention between pairs of nodes and the update of pairs as compiled functions with gradients.

The mathematics is that of :mod:`wsl.nn.relational`, where the same functions stand in torch. Widths are padded here to
whole vectors of the processor, with weights of zero; the published sizes are whole vectors already. A thread adds to
gradients of its own what pairs of several threads share, and these are summed in order, so that a number of threads
gives the same bits every time.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsl import native
from wsl.graphs.pairs import Pairs

TYPES = {torch.float32: np.float32, torch.float64: np.float64}
HEADERS = ("tile.h", "../../vector.h")
WHOLE, REAL, POINTER = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
WEIGHTS = 10


def _fields(kind: Any, names: str) -> list[Any]:
    return [(name, kind) for name in names.split()]


class _Attention(ctypes.Structure):
    """``Attention`` of attention.c."""

    _fields_ = [
        *_fields(WHOLE, "heads head maps edge"),
        *_fields(REAL, "scale"),
        *_fields(POINTER, "key edges query keys values weight weight_t of_y of_summed y summed"),
        *_fields(POINTER, "of_edges of_query of_keys of_values of_weight"),
    ]


class _Update(ctypes.Structure):
    """``Update`` of update.c."""

    _fields_ = [
        *_fields(WHOLE, "edge hidden real"),
        *_fields(WHOLE * 2, "seeds"),
        *_fields(WHOLE, "below"),
        *_fields(REAL, "kept"),
        *_fields(POINTER, "query key partner edges of_query of_key"),
        *_fields(POINTER * WEIGHTS, "weights transposed"),
        *_fields(POINTER, "updated of_updated of_edges of_reverse of_query_nodes of_key_nodes"),
        *_fields(POINTER * WEIGHTS, "of_weights"),
    ]


def take(*tensors: Tensor) -> bool:
    """Whether the kernels can be built here and take these: all on a CPU and of one type, float32 or float64."""
    kinds = {(t.device.type, t.dtype) for t in tensors}
    ((device, dtype), *others) = kinds
    return not others and device == "cpu" and dtype in TYPES and _libraries(dtype) is not None


def attend(
    pairs: Pairs, edges: Tensor, rows: Tensor, keys: Tensor, values: Tensor, maps: Sequence[Tensor], heads: int
) -> tuple[Tensor, Tensor]:
    """Σ_j α v without its last term and Σ_j α e, of each row.

    Args:
        edges: ``[P, D]``. rows: ``[R, A]``, the queries' part. keys, values: ``[N, A]``.
        maps: of e to query, key and, with modulation, the factor of the value, each ``[A, D]``.

    Shapes: → ``[R, A]``, ``[R, H, D]``.
    """
    width, edge = maps[0].shape
    lanes = _lanes(edges.dtype)
    head = width // heads
    nodes = [_padded(x.unflatten(1, (heads, head)), lanes).flatten(1) for x in (rows, keys, values)]
    weight = torch.cat([_padded(m.unflatten(0, (heads, head)), lanes, 2).flatten(0, 1) for m in maps])
    y, summed = _Attend.apply(pairs, (heads, len(maps), width**-0.5), _padded(edges, lanes), *nodes, weight)
    return y.unflatten(1, (heads, -1))[..., :head].flatten(1), summed[..., :edge]


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
    lanes, real = _lanes(edges.dtype), edges.shape[1]
    both, *others = steps
    both = _padded(_padded(both.unflatten(1, (2, real)), lanes).flatten(1).t(), lanes).t()
    weights = [both, *(_padded(w, lanes, w.ndim) for w in (*others, *norms))]
    edges = _padded(edges, lanes)
    nodes = (_padded(x, lanes) for x in (of_query, of_key))
    updated: Tensor = _Updated.apply(pairs, real, _Dropout.of(dropout), edges, *nodes, *weights)
    return updated[:, :real]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: Pairs, shape: tuple[int, int, float], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        ctx.pairs, ctx.shape = pairs, shape
        ctx.save_for_backward(*tensors)
        edges, rows = tensors[0], tensors[1]
        y, summed = torch.empty_like(rows), edges.new_empty(len(rows), shape[0], edges.shape[1])
        _attend(pairs, shape, tensors, lambda _: {"y": y, "summed": summed}, torch.get_num_threads())
        return y, summed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_y: Tensor, of_summed: Tensor) -> tuple[Tensor | None, ...]:
        tensors: tuple[Tensor, ...] = ctx.saved_tensors
        edges, rows, *shared = tensors
        given = {"of_y": _ready(of_y), "of_summed": _ready(of_summed)}
        out = {"of_edges": torch.empty_like(edges), "of_query": torch.zeros_like(rows)}
        names = ("of_keys", "of_values", "of_weight")
        parts = _parts(edges, shared)
        sums = {name: t.new_zeros(parts, *t.shape) for name, t in zip(names, shared, strict=True)}

        def arrays(part: int) -> dict[str, Tensor]:
            return given | out | {name: t[part] for name, t in sums.items()}

        _attend(ctx.pairs, ctx.shape, tensors, arrays, parts)
        return None, None, *out.values(), *(t.sum(0) for t in sums.values())


def _attend(
    pairs: Pairs,
    shape: tuple[int, int, float],
    tensors: Sequence[Tensor],
    arrays: Callable[[int], dict[str, Tensor]],
    parts: int,
) -> None:
    heads, maps, scale = shape
    edges, rows, keys, values, weight = map(_ready, tensors)
    library = _library(edges.dtype, 0)
    rectangles = torch.tensor([[r.row, r.rows, r.pair, r.degree] for r in pairs.rectangles])
    known = {"key": pairs.key, "edges": edges, "query": rows, "keys": keys, "values": values, "weight": weight}
    known["weight_t"] = weight.t().contiguous()

    def piece(part: int) -> int:
        used = {name: t.data_ptr() for name, t in (known | arrays(part)).items()}
        problem = _Attention(heads, rows.shape[1] // heads, maps, edges.shape[1], scale, **used)
        failed: int = library.attend(ctypes.byref(problem), rectangles.data_ptr(), len(rectangles), part, parts)
        return failed

    _in_threads(piece, parts)


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
        of_edges, of_reverse, given = torch.empty_like(edges), torch.empty_like(edges), _ready(of_updated)
        parts = _parts(edges, shared)
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
    edges, of_query, of_key, *weights = map(_ready, tensors)
    library = _library(edges.dtype, 1)
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
        failed: int = library.update(ctypes.byref(problem), first, last)
        return failed

    _in_threads(piece, parts)


def _parts(edges: Tensor, shared: Sequence[Tensor]) -> int:
    """One for each of torch's threads, while the gradients of their own take at most four times what the edges take."""
    return max(1, min(torch.get_num_threads(), 4 * edges.numel() // sum(t.numel() for t in shared)))


def _in_threads(piece: Callable[[int], int], parts: int) -> None:
    """Run ``piece(part)`` for every part, each in a thread of its own.

    Raises:
        MemoryError: if one finds no memory.
    """
    if parts == 1:
        failed = [piece(0)]
    else:
        with ThreadPoolExecutor(parts) as pool:
            failed = list(pool.map(piece, range(parts)))
    if any(failed):
        raise MemoryError("no memory for a tile of pairs of nodes")


def _padded(x: Tensor, step: int, dims: int = 1) -> Tensor:
    """With zeros behind, so that each of the last ``dims`` sizes is a multiple of ``step``."""
    pads = [pad for size in reversed(x.shape[-dims:]) for pad in (0, -size % step)]
    return F.pad(x, pads) if any(pads) else x


def _ready(x: Tensor) -> Tensor:
    """Without gaps, and where vectors may begin."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % 64 else x


def _lanes(dtype: torch.dtype) -> int:
    """Numbers in the widest vector of any processor, 64 bytes."""
    return 64 // dtype.itemsize


def _library(dtype: torch.dtype, number: int) -> ctypes.CDLL:
    libraries = _libraries(dtype)
    if libraries is None:
        raise RuntimeError("the compiled kernels are not available; see kernels.take")
    return libraries[number]


@functools.cache
def _libraries(dtype: torch.dtype) -> tuple[ctypes.CDLL, ctypes.CDLL] | None:
    """Those of attention and update."""
    kind, what = np.dtype(TYPES[dtype]), "pairs of nodes are computed"
    attention = native.library(__file__, ("attention.c", *HEADERS), kind, what)
    updates = None if attention is None else native.library(__file__, ("update.c", "gelu.h", *HEADERS), kind, what)
    if attention is None or updates is None:
        return None
    attention.attend.argtypes, attention.attend.restype = [POINTER, POINTER, *[WHOLE] * 3], ctypes.c_int
    updates.update.argtypes, updates.update.restype = [POINTER, WHOLE, WHOLE], ctypes.c_int
    return attention, updates
