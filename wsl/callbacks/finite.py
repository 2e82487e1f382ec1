"""Stop before a non-finite loss or gradient can reach the weights."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from wsl.errors import UserError


class NonFiniteError(UserError, FloatingPointError):
    """Loss or gradients are NaN or infinite; the message names the step and the rows."""


class StopOnNonFinite(pl.Callback):
    """Raise :class:`NonFiniteError` when a training loss or the gradient's norm is not finite.

    The check comes before the optimiser step, so the weights are those of the step before. With 16-bit mixed precision
    infinite gradients are the gradient scaler's business and only the loss is checked.
    """

    def __init__(self) -> None:
        self._row_ids: Tensor | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self._row_ids = getattr(batch, "row_ids", None)

    def on_before_backward(self, trainer: pl.Trainer, task: pl.LightningModule, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise NonFiniteError(self._message(trainer, f"the loss is {loss.item()}"))

    def on_before_optimizer_step(self, trainer: pl.Trainer, task: pl.LightningModule, optimizer: Optimizer) -> None:
        if trainer.precision == "16-mixed":
            return
        gradients = [p.grad for p in task.parameters() if p.grad is not None]
        norms = torch._foreach_norm(gradients)
        if gradients and not torch.isfinite(torch.stack(list(norms)).sum()):
            names = [n for n, p in task.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
            raise NonFiniteError(self._message(trainer, f"the gradients of {', '.join(names)} are not finite"))

    def _message(self, trainer: pl.Trainer, what: str) -> str:
        rows = "unknown" if self._row_ids is None else ", ".join(map(str, self._row_ids.tolist()))
        return (
            f"step {trainer.global_step} (epoch {trainer.current_epoch}): {what}; the weights are still those of the "
            f"step before. Rows of the last batch: {rows}. Look at these rows (scripts/verify_zoo.py), "
            "lower optimizer.lr, or set trainer.gradient_clip_val"
        )
