"""Leave when asked to: all ranks at the same step, with one checkpoint."""

from __future__ import annotations

import contextlib
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from wsl import preemption
from wsl.preemption import Preempted


class Preempt(Checkpoint):
    """Ends a run that the scheduler takes the machine from (:mod:`wsl.preemption`).

    After each optimiser step the ranks take the maximum of the signal that each has seen, so that a signal to one of
    them is one to all, at the same step. Until the first step it is noted too: a rank that left at once would be waited
    for by the others. Within an epoch ``last.ckpt`` is written there; at an epoch's last step its
    validation is done first and the epoch's own checkpoint is the one. The run leaves a little later, when the metrics
    of the step are logged. (Lightning calls callbacks of this type last, so after those that change the weights.)

    Args:
        folder: the run folder.
        timeout: seconds that a rank waits for the others.
    """

    def __init__(self, folder: Path, timeout: float) -> None:
        self.last = folder / "checkpoints" / "last.ckpt"
        self._timeout = timedelta(seconds=timeout)
        self._group: Any = None
        self._step = 0
        self._leaving: signal.Signals | None = None

    def setup(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if trainer.world_size > 1:  # over the host's network: asking must not wait for the GPU
            self._group = torch.distributed.new_group(backend="gloo", timeout=self._timeout)
        preemption.defer(True)

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._step = trainer.global_step
        number = self._agreed(trainer)
        if number is not None:
            raise Preempted(number, self.last if self.last.exists() else None)

    def on_train_epoch_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._leave()

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self._leave()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.is_last_batch or trainer.global_step == self._step:  # the epoch's end comes; gradients accumulate
            return
        self._step = trainer.global_step
        self._leaving = self._agreed(trainer)
        if self._leaving is not None:
            trainer.save_checkpoint(self.last)

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._step = trainer.global_step
        self._leaving = self._agreed(trainer)

    def on_train_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._leaving = self._leaving or self._agreed(trainer)
        self._leave()
        preemption.defer(False)

    def teardown(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        if stage == "fit":  # also when nothing was left to train
            preemption.defer(False)

    def on_exception(self, trainer: pl.Trainer, task: pl.LightningModule, exception: BaseException) -> None:
        with contextlib.suppress(Preempted):  # something else ends this run
            preemption.defer(False)

    def _agreed(self, trainer: pl.Trainer) -> signal.Signals | None:
        """The signal that any rank has seen, the same on all."""
        number = int(preemption.received() or 0)
        if trainer.world_size > 1:
            seen = torch.tensor(number)
            torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MAX, group=self._group)
            number = int(seen)
        return signal.Signals(number) if number else None

    def _leave(self) -> None:
        if self._leaving is not None:
            raise Preempted(self._leaving, self.last)
