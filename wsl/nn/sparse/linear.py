"""A linear layer whose weights can be pruned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsl.nn.sparse import sparse_product
from wsl.nn.sparse.sieve import WeightSieve
from wsl.nn.sparse.sparse_input import Mask, SparseInput
from wsl.nn.sparse.sparse_product import SparseWeight
from wsl.sparsity.bound import layer_error
from wsl.sparsity.weights import column_norms


class SparseLinear(nn.Linear):
    """y = x (W ∘ mask)ᵀ + b; the mask is that of ``sieve``. Open, it is ``nn.Linear``; biases are never pruned.

    Args:
        glorot: initialise the weight uniformly in ±√(6 / (I + O)) and the bias with 0.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, glorot: bool = False) -> None:
        super().__init__(in_features, out_features, bias)
        self.sieve = WeightSieve()
        self._known: tuple[tuple[object, ...], Tensor, SparseWeight | None] | None = None
        self._known_mask: tuple[tuple[object, ...], Mask] | None = None
        if glorot:
            nn.init.xavier_uniform_(self.weight)
            if bias:
                nn.init.zeros_(self.bias)

    def effective(self, x: Tensor | SparseInput) -> Tensor:
        """The weight as it is used, judged by the inputs ``x [N, F]``."""
        return self.sieve(self.weight, lambda: input_norms(x))

    @property
    def left(self) -> int:
        """Number of weights that are not pruned."""
        return self.weight.numel() if self.sieve.kept is None else int(self.sieve.kept.sum())

    @property
    def judging(self) -> bool:
        """Whether its inputs matter beyond the product: a mask is being chosen by them, or errors are measured."""
        return (self.training and self.sieve.pruning) or self.sieve.errors is not None

    def forward(
        self,
        x: Tensor | SparseInput,
        inputs: Tensor | None = None,
        outputs: Tensor | None = None,
        *,
        with_bias: bool = True,
    ) -> Tensor:
        """y ``[N, O]``, or only its channels ``outputs``; with ``inputs``, x holds only these of its channels.

        In evaluation nothing is made twice: a masked weight is kept until weight or mask change.
        """
        bias: Tensor | None = self.bias if with_bias else None
        bias = bias if bias is None or outputs is None else bias[outputs]
        if not self._settled:
            return self._chosen(x, inputs, outputs, bias)
        weight, entries = self._kept_weight(inputs, outputs, isinstance(x, SparseInput))
        if entries is not None and isinstance(x, SparseInput) and entries.pays(x.column_counts):
            out = sparse_product.product(*x.rows, entries)
            return out if bias is None else out + bias
        return apply_linear(x, weight, bias)

    def _chosen(
        self, x: Tensor | SparseInput, inputs: Tensor | None, outputs: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        if isinstance(x, SparseInput) and inputs is None and self._unchanged:
            out = x.linear(self.weight, self._mask(outputs))
            return out if bias is None else out + bias
        if inputs is not None or outputs is not None:
            weight = self.weight if self.sieve.kept is None else self.weight * self.sieve.kept
            return apply_linear(x, part(weight, inputs, outputs), bias)
        weight = self.effective(x)
        watch(self.sieve, x, self.weight, weight)
        return apply_linear(x, weight, bias)

    @property
    def _settled(self) -> bool:
        """Whether a masked weight is used as it is, without gradients."""
        sieve = self.sieve
        return sieve.kept is not None and not (self.training or torch.is_grad_enabled()) and sieve.errors is None

    @property
    def _unchanged(self) -> bool:
        """Whether there is a mask, and it stays as it is in this forward."""
        return self.sieve.kept is not None and not self.judging

    def _mask(self, rows: Tensor | None) -> Mask:
        """The mask of some rows as numbers; made once for each state of it."""
        kept = self.sieve.kept
        assert kept is not None
        key = (kept, rows, self.weight.dtype)
        if self._known_mask is None or not all(_same(a, b) for a, b in zip(self._known_mask[0], key, strict=True)):
            self._known_mask = key, Mask.of(kept, rows, self.weight.dtype)
        return self._known_mask[1]

    def _kept_weight(
        self, inputs: Tensor | None, outputs: Tensor | None, by_column: bool
    ) -> tuple[Tensor, SparseWeight | None]:
        """The masked weight, and its entries where the kernel can run; made once for each state of weight and mask.

        It lies in memory by column where asked for, which is how sparse features read it.
        """
        kept = self.sieve.kept
        assert kept is not None
        key = (kept, self.weight._version, self.weight.dtype, self.weight.device, inputs, outputs, by_column)
        if self._known is None or not all(_same(a, b) for a, b in zip(self._known[0], key, strict=True)):
            weight, mask = part(self.weight.detach() * kept, inputs, outputs), part(kept, inputs, outputs)
            if by_column:
                weight = weight.t().contiguous().t()
            compiled = not weight.is_cuda and sparse_product.available(weight.dtype)
            self._known = key, weight, SparseWeight.of(weight, mask) if compiled else None
        return self._known[1], self._known[2]


def _same(a: object, b: object) -> bool:
    return a is b if isinstance(a, Tensor) or isinstance(b, Tensor) else a == b


def part(weight: Tensor, inputs: Tensor | None, outputs: Tensor | None) -> Tensor:
    """The rows ``outputs`` and columns ``inputs`` of ``weight [O, F]``; None: all of them."""
    weight = weight if outputs is None else weight.index_select(0, outputs)
    return weight if inputs is None else weight.index_select(1, inputs)


def apply_linear(x: Tensor | SparseInput, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b for inputs of either kind."""
    if isinstance(x, Tensor):
        return nn.functional.linear(x, weight, bias)
    return x.linear(weight) if bias is None else x.linear(weight) + bias


def input_norms(x: Tensor | SparseInput) -> Tensor:
    """‖X_:j‖ ``[F]``."""
    return column_norms(x.detach()) if isinstance(x, Tensor) else x.column_norms


def watch(sieve: WeightSieve, x: Tensor | SparseInput, stored: Tensor, used: Tensor) -> None:
    """What leaving out entries of ``stored`` does to its product with ``x``, if the sieve is asked to tell."""
    if sieve.errors is None or used is stored:
        return
    lost = (stored - used).abs() * input_norms(x)
    place = (lost > 0).nonzero()[:, 0]
    exact, pruned = apply_linear(x, stored, None), apply_linear(x, used, None)
    sieve.errors.append(layer_error(exact, pruned, lost[lost > 0], place, len(stored)))
