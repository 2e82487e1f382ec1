"""Signals by which a scheduler takes the machine away: SIGTERM, SIGUSR1, SIGUSR2.

While a run trains, a signal is only noted; :class:`wsl.callbacks.preempt.Preempt` writes one checkpoint at the next
step on which all ranks agree, and the program ends with :data:`EXIT_CODE`. At any other time (data are prepared, the
best checkpoint is tested) there is nothing to write that is not on disk, and the program ends at once with that code;
a main thread that cannot, as it waits for another rank, is ended by :mod:`wsl.watchdog`.

Who starts the job again is somebody else, and one only: submitit for a job of a sweep, else the batch script, which
sees the exit code (scripts/train.sbatch), else whoever reads the message.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wsl import ranks
from wsl.run_folder import first_rank
from wsl.watchdog import Watchdog

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
#: of a run that was preempted and can go on; EX_TEMPFAIL of sysexits.h
EXIT_CODE = 75

_received: signal.Signals | None = None
_deferred = False
_watched = False


class Preempted(SystemExit):
    """The run was asked to leave, and has; resuming it loses nothing that its checkpoint holds.

    Attributes:
        signal: what it was asked by.
        checkpoint: where it goes on from, or None.
    """

    def __init__(self, number: signal.Signals, checkpoint: Path | None = None) -> None:
        super().__init__(EXIT_CODE)
        self.signal, self.checkpoint = number, checkpoint

    def __str__(self) -> str:
        if self.checkpoint is None:
            return f"preempted by {self.signal.name}; start it again (resume=RUN_FOLDER if it had a checkpoint)"
        run = self.checkpoint.parents[1]
        return f"preempted by {self.signal.name}; the checkpoint is {self.checkpoint}; go on with resume={run}"


def received() -> signal.Signals | None:
    """The signal that came, if one did."""
    return _received


def defer(until_asked: bool) -> None:
    """True: only note signals from now on; False: leave at once, also for one that was noted."""
    global _deferred
    _deferred = until_asked
    if not until_asked and _received is not None:
        raise Preempted(_received)


@contextmanager
def watched() -> Iterator[None]:
    """A program, or a job of a sweep, in the main thread, that leaves as this module says.

    Within a watched program a second one changes nothing; a job that submitit runs has no such program around it.
    Handlers of before are put back at the end, but of a program that leaves, which is to hear no more.
    """
    global _received, _deferred, _watched
    if _watched:
        yield
        return
    _watched = True
    code = 0 if ranks.started_by_lightning() else EXIT_CODE  # the first rank, killed if others fail, says it for all
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _received, _deferred = None, False
    watchdog = Watchdog(SIGNALS, lambda: not _deferred, code, ranks.starter())
    for number in SIGNALS:
        signal.signal(number, _note)
    watchdog.start()
    try:
        yield
    except Preempted as left:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if first_rank():
            print(f"{left}; exit code {EXIT_CODE}", file=sys.stderr, flush=True)  # noqa: T201
        _resubmit(left.signal, before[signal.SIGUSR2])
        left.code = code
        raise
    except BaseException:
        _put_back(before)
        raise
    else:
        _put_back(before)
    finally:
        watchdog.stop()
        _received, _deferred, _watched = None, False, False


def _put_back(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _resubmit(number: signal.Signals, submitit: Any) -> None:
    """Have submitit queue the job again, if it is one of its own; SIGTERM is Slurm's, who then does it or was told not
    to."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm" or not callable(submitit) or number == signal.SIGTERM:
        return
    try:
        submitit(signal.SIGUSR2, None)
    except (
        OSError,
        subprocess.SubprocessError,
    ) as error:  # no scontrol in this container, or a controller that is busy
        advice = "its checkpoint is written: give the sweep again"
        print(f"submitit cannot put this job into the queue again ({error}); {advice}", file=sys.stderr)  # noqa: T201


def _note(number: int, frame: Any) -> None:
    global _received
    known, _received = _received is not None, signal.Signals(number)
    if not _deferred and not known:  # a second one is not to disturb how the program leaves
        raise Preempted(_received)
