"""Progress of a build: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts fitted networks; shows how many per second, and the mean of what is measured of them. A context manager.

    Args:
        total: networks of the zoo.
        text: the mean in words, a format such as ``mean PSNR {:.1f} dB``.
        enabled: show anything at all.
    """

    def __init__(self, total: int, text: str, enabled: bool = True) -> None:
        self.total, self.text, self.enabled = total, text, enabled
        self.console = Console(stderr=True)
        self.done = self.fitted = 0
        self._sum, self._count = 0.0, 0
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
            self._print()

    @property
    def rate(self) -> str:
        """Networks per second of those fitted now (not of those found finished), and the mean over all."""
        speed = self.fitted / max(time.monotonic() - self._start, 1e-9)
        left_out = f", {self.done - self._count} left out (not finite)" if self._count < self.done else ""
        return f"{speed:.1f} networks/s, {self.text.format(self._sum / max(self._count, 1))}{left_out}"

    def advance(self, networks: int, measured: np.ndarray, now: bool = True) -> None:
        """Count networks, fitted ``now`` or found finished; ``measured`` has a value for each that is finite."""
        self.done += networks
        self.fitted += networks if now else 0
        self._sum += float(measured.sum(dtype=np.float64))
        self._count += len(measured)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=self.rate)
        elif self.enabled and now and time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self._print()

    def _print(self) -> None:
        self.console.print(f"{self.done} of {self.total} networks, {self.rate}", highlight=False)
