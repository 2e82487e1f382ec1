"""What pruning does to a layer's output: the error that it makes, and the bound that the paper's argument gives.

For a linear propagation each removed edge takes at most its message away from one row of the output, so

    ‖ŷ − y‖_F ≤ ( Σ_rows ( Σ_{e removed from the row} ‖message_e‖ )² )^½ ≤ q_a δ_a,

the first by the triangle inequality in every row, the second because every one of the q_a removed messages is below the
threshold δ_a (Lemma 2 of the paper: they are ε-similar once q_a δ_a ≤ ε ‖p‖). For a linear map the same holds with
columns of the output and ‖W_ij X_:j‖ < δ_w: ‖X Ŵᵀ − X Wᵀ‖_F ≤ q_w δ_w (the term of Proposition 5 that weights add).
Both come before a 1-Lipschitz activation, which enlarges neither. Where the weights of kept edges change too (absent
edges), what an edge loses is |w_e − ŵ_e| ‖h_src‖.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerError:
    """Frobenius norms, relative to that of the layer's exact output.

    Attributes:
        measured: ‖ŷ − y‖. messages: the bound from every part removed. bound: q δ, the number removed times the
            greatest norm removed.
    """

    measured: float
    messages: float
    bound: float


def layer_error(exact: Tensor, pruned: Tensor, removed: Tensor, place: Tensor, places: int) -> LayerError:
    """Error of a layer output from which parts were left out.

    Args:
        exact, pruned: of the same shape. removed: ``[R]``, norms of the parts. place: ``[R]`` int64, the row (or
            column) of the output that each part belongs to, of ``places``.
    """
    size = exact.norm().clamp_min(torch.finfo(exact.dtype).tiny)
    greatest = removed.max() if len(removed) else removed.new_zeros(())
    per_place = removed.new_zeros(places).index_add_(0, place, removed)
    return LayerError(
        measured=float((pruned - exact).norm() / size),
        messages=float(per_place.norm() / size),
        bound=float(len(removed) * greatest / size),
    )
