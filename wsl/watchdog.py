"""Ends a process from beside when its main thread cannot leave.

A handler of Python runs in the main thread, between two steps of the interpreter. A main thread that waits for another
rank (a rendezvous, a collective operation) is in C++ until that rank comes, and a signal that asks it to leave would
wait as long. So the byte that Python writes for every signal at once (``signal.set_wakeup_fd``) is read here.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Collection

#: seconds that a process has for leaving by itself
GRACE = 15.0
#: seconds between two looks at the process that started this one
PERIOD = 1.0


class Watchdog(threading.Thread):
    """Sees to it that a process which is asked to leave has left after :data:`GRACE` seconds.

    A rank that another process of this machine has started leaves also when that one is gone, and passes on to it what
    it is asked itself.

    Args:
        signals: that ask a process to leave.
        at_once: whether they ask so now, or are only taken note of.
        code: the exit code of a process that is ended here.
        starter: the process that has started this rank, or None.
    """

    def __init__(
        self, signals: Collection[signal.Signals], at_once: Callable[[], bool], code: int, starter: int | None
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._signals, self._at_once, self._code, self._starter = signals, at_once, code, starter
        self._over = threading.Event()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._before = -1

    def start(self) -> None:
        """From the main thread."""
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        super().start()

    def stop(self) -> None:
        """From the main thread."""
        self._over.set()
        signal.set_wakeup_fd(self._before)
        self.join()
        os.close(self._reader)
        os.close(self._writer)

    def run(self) -> None:
        while not self._over.is_set():
            number = self._received()
            if number in self._signals and self._at_once():
                if self._starter is not None and os.getppid() == self._starter:
                    os.kill(self._starter, number)
                self._end(f"{signal.Signals(number).name} was not followed within {GRACE:.0f} seconds", self._at_once)
            elif self._starter is not None and os.getppid() != self._starter:
                self._end("the process that started this rank is gone", lambda: True)

    def _received(self) -> int:
        """The signal that has come, or 0 after a while."""
        ready, _, _ = select.select([self._reader], [], [], PERIOD)
        return os.read(self._reader, 1)[0] if ready else 0

    def _end(self, why: str, still: Callable[[], bool]) -> None:
        if not self._over.wait(GRACE) and still():
            print(f"{why}; exit code {self._code}", file=sys.stderr, flush=True)  # noqa: T201
            os._exit(self._code)
