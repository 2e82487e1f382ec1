"""Sparse features times sparse weights, for inference: what is zero on either side costs nothing."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wsl import native

TYPES = {torch.float32: np.float32, torch.float64: np.float64}
WORTHWHILE = 0.25
"""Share of the multiplications left below which this product is faster than one with a dense weight."""


@dataclass(frozen=True, eq=False)
class SparseWeight:
    """W ``[O, F]`` by columns: ``start [F + 1]`` int64, ``output [nnz]`` int32, ``value [nnz]``."""

    start: Tensor
    output: Tensor
    value: Tensor
    outputs: int

    def pays(self, entries: Tensor) -> bool:
        """Whether leaving out zeros is faster, for features with so many ``entries [F]`` in each column.

        Pruning by column norms leaves most weights in columns that are used most, so that their number says little.
        """
        work = float((entries * self.start.diff()).sum())
        return work < WORTHWHILE * self.outputs * float(entries.sum())

    @classmethod
    def of(cls, weight: Tensor, kept: Tensor) -> SparseWeight:
        """The entries of ``weight`` where ``kept`` holds."""
        column, output = kept.t().nonzero().unbind(1)
        start = torch.zeros(weight.shape[1] + 1, dtype=torch.int64)
        start[1:] = torch.bincount(column, minlength=weight.shape[1]).cumsum(0)
        return cls(start, output.int(), weight.detach()[output, column].contiguous(), len(weight))


def available(dtype: torch.dtype) -> bool:
    """Whether the kernel can be built here for numbers of this type."""
    return dtype in TYPES and _library(dtype) is not None


def product(row: Tensor, column: Tensor, value: Tensor, weight: SparseWeight) -> Tensor:
    """X Wᵀ ``[N, O]`` of CSR features: pointers ``row [N + 1]`` int64, ``column [nnz]`` int64, ``value [nnz]``."""
    library = _library(value.dtype)
    if library is None:
        raise RuntimeError("the compiled kernel is not available")
    nodes, threads = len(row) - 1, torch.get_num_threads()
    out = torch.empty(nodes, weight.outputs, dtype=value.dtype)
    tensors: Sequence[Tensor] = (row, column, value, weight.start, weight.output, weight.value, out)
    pointers = [tensor.data_ptr() for tensor in tensors]
    ends = [nodes * part // threads for part in range(threads + 1)]

    def piece(part: int) -> None:
        library.sparse_product(ends[part], ends[part + 1], weight.outputs, *pointers)

    if threads == 1:
        piece(0)
        return out
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(piece, range(threads)))
    return out


@functools.cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    library = native.library(
        __file__, ("sparse_product.c",), np.dtype(TYPES[dtype]), "sparse features meet pruned weights"
    )
    if library is not None:
        library.sparse_product.argtypes = [*[ctypes.c_int64] * 3, *[ctypes.c_void_p] * 7]
        library.sparse_product.restype = None
    return library
