"""Attention between pairs of nodes, compiled (``attention.c``), with gradients.

The mathematics is that of :class:`wsl.nn.relational.RelationalAttention`, where the same stands in torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsl.graphs.pairs import Pairs
from wsl.nn.pairs import kernels
from wsl.nn.pairs.kernels import POINTER, REAL, WHOLE, fields, in_threads, lanes_of, library, padded, ready


class _Attention(ctypes.Structure):
    """``Attention`` of attention.c."""

    _fields_ = [
        *fields(WHOLE, "heads head maps edge"),
        *fields(REAL, "scale"),
        *fields(POINTER, "key edges query keys values weight weight_t of_y of_summed y summed"),
        *fields(POINTER, "of_edges of_query of_keys of_values of_weight"),
    ]


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
    lanes = lanes_of(edges.dtype)
    head = width // heads
    nodes = [padded(x.unflatten(1, (heads, head)), lanes).flatten(1) for x in (rows, keys, values)]
    weight = torch.cat([padded(m.unflatten(0, (heads, head)), lanes, 2).flatten(0, 1) for m in maps])
    y, summed = _Attend.apply(pairs, (heads, len(maps), width**-0.5), padded(edges, lanes), *nodes, weight)
    return y.unflatten(1, (heads, -1))[..., :head].flatten(1), summed[..., :edge]


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
        given = {"of_y": ready(of_y), "of_summed": ready(of_summed)}
        out = {"of_edges": torch.empty_like(edges), "of_query": torch.zeros_like(rows)}
        names = ("of_keys", "of_values", "of_weight")
        parts = kernels.parts_of(edges, shared)
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
    edges, rows, keys, values, weight = map(ready, tensors)
    compiled = library(edges.dtype, 0)
    rectangles = torch.tensor([[r.row, r.rows, r.pair, r.degree] for r in pairs.rectangles])
    known = {"key": pairs.key, "edges": edges, "query": rows, "keys": keys, "values": values, "weight": weight}
    known["weight_t"] = weight.t().contiguous()

    def piece(part: int) -> int:
        used = {name: t.data_ptr() for name, t in (known | arrays(part)).items()}
        problem = _Attention(heads, rows.shape[1] // heads, maps, edges.shape[1], scale, **used)
        failed: int = compiled.attend(ctypes.byref(problem), rectangles.data_ptr(), len(rectangles), part, parts)
        return failed

    in_threads(piece, parts)
