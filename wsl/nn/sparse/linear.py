"""A linear layer whose weights can be pruned."""

from __future__ import annotations

from torch import Tensor, nn

from wsl.nn.sparse.sieve import WeightSieve
from wsl.nn.sparse.sparse_input import SparseInput
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
        if glorot:
            nn.init.xavier_uniform_(self.weight)
            if bias:
                nn.init.zeros_(self.bias)

    def effective(self, x: Tensor | SparseInput) -> Tensor:
        """The weight as it is used, judged by the inputs ``x [N, F]``."""
        return self.sieve(self.weight, lambda: input_norms(x))

    def forward(self, x: Tensor | SparseInput) -> Tensor:
        weight = self.effective(x)
        watch(self.sieve, x, self.weight, weight)
        return apply_linear(x, weight, self.bias)


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
