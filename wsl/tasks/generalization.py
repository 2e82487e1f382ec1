"""How well does a network do what it was trained for? Predict a share (test accuracy, success rate) from weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from torch import Tensor

from wsl.data.rows import Batch
from wsl.encoders.base import Encoder
from wsl.errors import UserError
from wsl.tasks.base import Task
from wsl.tasks.gathered import Rows
from wsl.tasks.optimisation import MakeOptimizer, MakeScheduler


class Generalization(Task):
    """Sigmoid of the encoder's one output against a target in [0, 1]; metrics on all rows of a split at once.

    ``tau`` is Kendall's τ_b between outputs and targets, the share of pairs of networks in the right order minus that
    in the wrong one; ``tau_ceiling`` is the largest τ_b of outputs that are all different, since pairs with equal
    targets have no order: √(1 − t/n₀) with t of n₀ pairs tied. ``r2`` is 1 − MSE / variance of the target. (Unterthiner
    et al., "Predicting Neural Network Accuracy from Weights"; Kendall's τ as in Zhou et al., "Permutation Equivariant
    Neural Functionals", section 4.2.)

    Args:
        loss: "bce" takes the target as a probability, "mse" the squared error of the sigmoid.
    """

    monitor = "val/tau"
    mode = "max"
    target_range: ClassVar[tuple[float, float] | None] = (0.0, 1.0)

    def __init__(
        self,
        encoder: Encoder,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler,
        seed: int = 0,
        *,
        loss: Literal["bce", "mse"] = "bce",
    ) -> None:
        super().__init__(encoder, optimizer, scheduler, seed)
        self.loss_name = loss

    @classmethod
    def out_features(cls, classes: int, options: Mapping[str, Any]) -> int:
        return 1

    def output(self, batch: Batch) -> Tensor:
        """Logits ``[B]``."""
        return self.encoder(batch).squeeze(-1)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        assert batch.target is not None, "a zoo's batches carry their targets"
        target = batch.target.to(output)
        if self.loss_name == "bce":
            return F.binary_cross_entropy_with_logits(output, target)
        return F.mse_loss(output.sigmoid(), target)

    def metrics(self, rows: Rows) -> dict[str, float]:
        """Raises as :func:`rank_correlation`."""
        target, logits = rows.target.double(), rows.output.double()
        error = (logits.sigmoid() - target).square().mean().item()
        tau, ceiling = rank_correlation(logits, target)
        variance = target.var(correction=0).item()
        return {"tau": tau, "tau_ceiling": ceiling, "r2": 1 - error / variance, "mse": error}


def rank_correlation(predicted: Tensor, target: Tensor) -> tuple[float, float]:
    """Kendall's τ_b, and the largest that predictions without ties could reach against these targets.

    Predictions that are all equal put nothing in order: their τ is 0.

    Raises:
        UserError: if all targets are equal, so that there is nothing to order, or a prediction is not finite.
    """
    if not torch.isfinite(predicted).all():
        raise UserError(
            f"{int((~torch.isfinite(predicted)).sum())} of {len(predicted)} predictions are not finite, so they cannot "
            "be ordered; lower optimizer.lr"
        )
    _, counts = np.unique(target.numpy(), return_counts=True)
    if len(counts) < 2:
        raise UserError(
            f"the targets of all {len(target)} rows are equal: there is no order to predict; choose another data.target"
        )
    pairs, tied = len(target) * (len(target) - 1) / 2, float((counts * (counts - 1) / 2).sum())
    varies = bool((predicted != predicted[0]).any())
    tau = float(kendalltau(predicted.numpy(), target.numpy()).statistic) if varies else 0.0
    return tau, math.sqrt(1 - tied / pairs)
