"""Features that are mostly zero, as the first layer's input: its product costs what is not zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from wsl.nn.sparse.edge_set import csr, product

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Mask:
    """What is left of a weight ``[O, F]``: some of its rows, and which of their entries, as numbers 0 and 1.

    Attributes:
        rows: ``[R]`` int64, or None for all. value: ``[R, F]``. transposed: ``[F, R]``.
    """

    rows: Tensor | None
    value: Tensor
    transposed: Tensor

    @classmethod
    def of(cls, kept: Tensor, rows: Tensor | None, dtype: torch.dtype) -> Mask:
        """From a mask ``[O, F]`` bool."""
        value = (kept if rows is None else kept.index_select(0, rows)).to(dtype)
        return cls(rows, value, value.t().contiguous())


class _MaskedTranspose(torch.autograd.Function):
    """(W ∘ mask)ᵀ of the rows that a mask has; each way masks in place what had to be transposed anyway."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Mask) -> Tensor:
        ctx.mask, ctx.shape = mask, weight.shape
        part = weight if mask.rows is None else weight.index_select(0, mask.rows)
        return part.t().clone(memory_format=torch.contiguous_format).mul_(mask.transposed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        mask: Mask = ctx.mask
        part = grad.t().clone(memory_format=torch.contiguous_format).mul_(mask.value)
        return part if mask.rows is None else part.new_zeros(ctx.shape).index_copy_(0, mask.rows, part), None


@dataclass(frozen=True, eq=False)
class SparseInput:
    """X ``[N, F]`` by its entries, in the order of rows and of columns.

    Attributes:
        row, column, value: ``[nnz]``, rows ascend. by_column: ``[nnz]``, the entries in the order of their columns.
    """

    row: Tensor
    column: Tensor
    value: Tensor
    by_column: Tensor
    shape: tuple[int, int]

    @cached_property
    def matrices(self) -> tuple[Tensor, Tensor]:
        """X and Xᵀ, CSR."""
        n, f = self.shape
        c = self.by_column
        return (
            csr(self.row, self.column, self.value, (n, f)),
            csr(self.column[c], self.row[c], self.value[c], (f, n)),
        )

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """X by rows: pointers ``[N + 1]``, columns and values ``[nnz]``."""
        pointer = torch.zeros(self.shape[0] + 1, dtype=torch.int64, device=self.row.device)
        pointer[1:] = torch.bincount(self.row, minlength=self.shape[0]).cumsum(0)
        return pointer, self.column.contiguous(), self.value.contiguous()

    @cached_property
    def column_counts(self) -> Tensor:
        """Entries in each column ``[F]`` int64."""
        return torch.bincount(self.column, minlength=self.shape[1])

    def linear(self, weight: Tensor, mask: Mask | None = None) -> Tensor:
        """X Wᵀ, or X (W ∘ mask)ᵀ of the rows that a mask has; differentiable in W ``[O, F]``."""
        transposed = weight.t().contiguous() if mask is None else _MaskedTranspose.apply(weight, mask)
        return product(transposed, *self.matrices)

    def dropout(self, rate: float, training: bool) -> SparseInput:
        """Entries dropped and the others scaled; zeros need no dropping."""
        return replace(self, value=F.dropout(self.value, rate, training)) if training and rate > 0 else self

    def dense(self) -> Tensor:
        """X ``[N, F]`` with its zeros."""
        out = self.value.new_zeros(self.shape)
        out[self.row, self.column] = self.value
        return out

    @cached_property
    def column_norms(self) -> Tensor:
        """‖X_:j‖ ``[F]``."""
        return self._norms(self.column, self.shape[1])

    @cached_property
    def row_norms(self) -> Tensor:
        """‖X_i:‖ ``[N]``."""
        return self._norms(self.row, self.shape[0])

    def _norms(self, place: Tensor, size: int) -> Tensor:
        return self.value.new_zeros(size).index_add_(0, place, self.value**2).sqrt()


SPARSE = 1 / 8
"""Share of entries that are not zero up to which drawing for them alone is faster than drawing for all."""

_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_entries: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def sparse_input(x: Tensor) -> SparseInput:
    """The entries of ``x [N, F]``, remembered while that tensor lives."""

    def found() -> SparseInput:
        row, column = x.detach().nonzero().t().contiguous()
        by_column = torch.argsort(column, stable=True)
        return SparseInput(row, column, x.detach()[row, column], by_column, (x.shape[0], x.shape[1]))

    return _remembered(_known, x, found)


def dropout_of_features(x: Tensor, rate: float, training: bool) -> Tensor:
    """Dropout of the features of nodes ``[N, F]``, which draws only for what is not zero where that is little.

    Bags of words have one entry in a hundred to a thousand, and a draw takes longer than a product.
    """
    if not training or rate == 0 or x.requires_grad:
        return F.dropout(x, rate, training)
    if _remembered(_entries, x, lambda: int(x.count_nonzero())) > SPARSE * x.numel():
        return F.dropout(x, rate, training)
    return sparse_input(x).dropout(rate, training).dense()


def _remembered(known: WeakTensorKeyDictionary, x: Tensor, find: Callable[[], T]) -> T:
    """What was found for a tensor, until it changes or dies."""
    version = None if x.is_inference() else x._version
    if x not in known or known[x][0] != version:
        known[x] = version, find()
    found: T = known[x][1]
    return found
