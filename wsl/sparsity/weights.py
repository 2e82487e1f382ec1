"""Which weights of a linear map to keep: small is what counts little for the inputs that the map has.

An entry is worth |W_ij| c_j with c_j = ‖X_:j‖, the norm of the input column that it multiplies.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 0.999
"""Thresholds are capped at this share of max |W|, so that the greatest entry stays."""
SILENT = 1e-8
"""An input whose ‖X‖_F / F is not above this says nothing about weights: nothing is pruned."""


def column_norms(x: Tensor) -> Tensor:
    """c ``[F]`` of inputs ``[…, F]``."""
    return x.reshape(-1, x.shape[-1]).norm(dim=0)


def thresholds(weight: Tensor, columns: Tensor, threshold: float, absolute: bool = False) -> Tensor:
    """What |W_:j| must reach, ``[F]``: δ (‖c‖ / F) / c_j, or δ / c_j with ``absolute``, at most 0.999 max |W|.

    Args:
        weight: ``[O, F]``. columns: ``[F]``. A column of norm 0 gets the cap: what multiplies nothing goes.
    """
    scale = threshold if absolute else threshold * columns.norm() / len(columns)
    return torch.clamp_max(scale / columns, LARGEST * weight.abs().max())


def keep_above(weight: Tensor, columns: Tensor, threshold: float, absolute: bool = False) -> Tensor:
    """Mask ``[O, F]`` bool: |W_ij| ≥ thr_j; all of it for δ = 0 or a silent input."""
    if threshold == 0 or columns.norm() / len(columns) <= SILENT:
        return torch.ones_like(weight, dtype=torch.bool)
    return weight.abs() >= thresholds(weight, columns, threshold, absolute)


def keep_share(weight: Tensor, columns: Tensor, sparsity: float) -> Tensor:
    """Mask that removes this share of all entries, the least |W_ij| c_j first; at least one entry stays."""
    return keep_greatest(weight.abs() * columns, sparsity)


def keep_greatest(worth: Tensor, sparsity: float) -> Tensor:
    """Mask of the greatest entries, of which exactly round(sparsity · numel) are left out (all but one at most)."""
    removed = min(round(sparsity * worth.numel()), worth.numel() - 1)
    keep = torch.ones(worth.numel(), dtype=torch.bool, device=worth.device)
    keep[torch.argsort(worth.flatten(), stable=True)[:removed]] = False
    return keep.view_as(worth)
