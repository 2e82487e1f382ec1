"""Progress of a build: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts fitted networks; shows how many per second, and their mean PSNR. A context manager.

    Args:
        total: networks of the zoo.
        enabled: show anything at all.
    """

    def __init__(self, total: int, enabled: bool = True) -> None:
        self.total, self.enabled = total, enabled
        self.console = Console(stderr=True)
        self.done = self.fitted = 0
        self._sum_psnr = 0.0
        self._start = self._last = time.monotonic()
        columns = (TextColumn("fitting"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        self._bar = Bar(*columns, TimeRemainingColumn(), console=self.console) if self._fancy else None

    @property
    def _fancy(self) -> bool:
        return self.enabled and self.console.is_terminal

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.enabled and self.fitted:
            self.console.print(f"{self.done} of {self.total} networks, {self.rate}", highlight=False)

    @property
    def rate(self) -> str:
        """Networks per second of those fitted now (not of those found finished), and the mean PSNR of all."""
        speed = self.fitted / max(time.monotonic() - self._start, 1e-9)
        return f"{speed:.1f} networks/s, mean PSNR {self._sum_psnr / max(self.done, 1):.1f} dB"

    def advance(self, mse: np.ndarray, fitted: bool = True) -> None:
        """Count networks with these errors; ``fitted`` now, or found finished."""
        self.done += len(mse)
        self.fitted += len(mse) if fitted else 0
        self._sum_psnr += float(-10 * np.log10(np.maximum(mse, 1e-12)).sum())
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=self.rate)
        elif self.enabled and fitted and time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self.console.print(f"{self.done} of {self.total} networks, {self.rate}", highlight=False)
