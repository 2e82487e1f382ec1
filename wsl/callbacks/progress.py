"""Progress as plain lines, for logs of a scheduler or a pipe; on a terminal the rich bar is used instead."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from rich.console import Console


class PlainProgress(pl.Callback):
    """One line per validation, at most one every ``every`` seconds (the first and the last always)."""

    def __init__(self, every: float = 5.0) -> None:
        self.every, self._last, self._start = every, 0.0, time.monotonic()
        self._console = Console(highlight=False, soft_wrap=True)

    def on_fit_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._start, self._last = time.monotonic(), 0.0

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        now = time.monotonic()
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if not trainer.is_global_zero or (now - self._last < self.every and not last):
            return
        self._last = now
        self._console.print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {trainer.global_step}  "
            f"{_metrics(trainer.callback_metrics)}  {now - self._start:.0f} s"
        )


def _metrics(values: dict[str, Any]) -> str:
    shown = ("train/loss_epoch", "val/loss")
    keys = [k for k in shown if k in values] + sorted(k for k in values if k.startswith("val/") and k not in shown)
    return "  ".join(f"{key.removesuffix('_epoch')} {float(values[key]):.4f}" for key in keys)
