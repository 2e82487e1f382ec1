"""A linear layer whose weights can be pruned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsl.nn.sparse import sparse_product
from wsl.nn.sparse.sieve import WeightSieve
from wsl.nn.sparse.sparse_input import SparseInput
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
        self._known: tuple[Tensor, int, SparseWeight] | None = None
        if glorot:
            nn.init.xavier_uniform_(self.weight)
            if bias:
                nn.init.zeros_(self.bias)

    def effective(self, x: Tensor | SparseInput) -> Tensor:
        """The weight as it is used, judged by the inputs ``x [N, F]``."""
        return self.sieve(self.weight, lambda: input_norms(x))

    def forward(self, x: Tensor | SparseInput) -> Tensor:
        if isinstance(x, SparseInput) and self._few_are_left():
            out = sparse_product.product(*x.rows, self._sparse_weight())
            return out if self.bias is None else out + self.bias
        weight = self.effective(x)
        watch(self.sieve, x, self.weight, weight)
        return apply_linear(x, weight, self.bias)

    def _few_are_left(self) -> bool:
        """Whether to multiply by what is left of the weight alone: inference on the CPU, most of it pruned."""
        kept, weight = self.sieve.kept, self.weight
        if kept is None or self.training or torch.is_grad_enabled() or weight.is_cuda or self.sieve.errors is not None:
            return False
        return self._sparse_weight().few and sparse_product.available(weight.dtype)

    def _sparse_weight(self) -> SparseWeight:
        """Made once for each state of weight and mask."""
        kept = self.sieve.kept
        assert kept is not None
        version = self.weight._version
        if self._known is None or self._known[0] is not kept or self._known[1] != version:
            self._known = kept, version, SparseWeight.of(self.weight, kept)
        return self._known[2]


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
