"""How long a run has trained, over all the processes that it took."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl


class Stopwatch(pl.Callback):
    """Seconds of training and validation. They are kept in checkpoints, so a resumed run counts on.

    Attributes:
        seconds: until now, or until training ended.
    """

    def __init__(self) -> None:
        self._before = self._loaded = 0.0
        self._start: float | None = None

    @property
    def seconds(self) -> float:
        return self._before + (0.0 if self._start is None else time.monotonic() - self._start)

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._before, self._start = self._loaded, time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._before, self._start = self.seconds, None

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loaded = state["seconds"]  # for training that follows; testing a checkpoint loads its state too
