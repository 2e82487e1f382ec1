"""A process that is asked to leave leaves, whatever its main thread waits for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks_of_runs import end, environment

from wsl.preemption import EXIT_CODE
from wsl.run_folder import FOLDER_VARIABLE, STARTER_VARIABLE

#: waits for a second rank, in C++, as the first one does at its start
WAITING = """
import sys
from datetime import timedelta
from torch.distributed import TCPStore
from wsl import preemption, watchdog
watchdog.GRACE = 1.0
with preemption.watched():
    preemption.defer(sys.argv[1] == "noted")
    print("ready", flush=True)
    try:
        TCPStore("127.0.0.1", 0, 2, True, timedelta(seconds=float(sys.argv[2])))
    except Exception:
        sys.exit(4)
"""


def waiting(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, *arguments], env=environment(**variables), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n", process.communicate()
    return process


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_rank_that_waits_for_another_leaves_when_asked(name: str) -> None:
    process = waiting("at once", "200")
    time.sleep(0.5)  # so that it waits already
    asked = time.monotonic()
    process.send_signal(getattr(signal, name))
    code, said = end(process, timeout=100)
    assert code == EXIT_CODE and name in said and time.monotonic() - asked < 100


def test_what_is_only_noted_ends_nothing() -> None:
    process = waiting("noted", "4")
    process.send_signal(signal.SIGUSR1)
    code, said = end(process, timeout=100)
    assert code == 4, "the store's own timeout; " + said


@pytest.mark.parametrize("asked", [False, True])
def test_a_rank_does_not_outlive_the_first_one_and_passes_on_what_it_is_asked(tmp_path: Path, asked: bool) -> None:
    """The starter here is a shell that waits, and says which signal it got."""
    shell = f"trap 'echo told >> {tmp_path}/said' USR1; while :; do sleep 0.1; done"
    starter = subprocess.Popen(["bash", "-c", f'"$0" -c "$1" "at once" 200 & echo $! > {tmp_path}/rank; {shell}',
                                sys.executable, f"import os; os.environ['{STARTER_VARIABLE}'] = str(os.getppid())"
                                + WAITING],
                               env=environment(**{FOLDER_VARIABLE: str(tmp_path), "LOCAL_RANK": "1"}),
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert starter.stdout is not None and starter.stdout.readline() == "ready\n"
        rank = int((tmp_path / "rank").read_text())
        if asked:
            os.kill(rank, signal.SIGUSR1)
        else:
            starter.kill()
        deadline = time.monotonic() + 100
        while _runs(rank) or (asked and not (tmp_path / "said").exists()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        starter.kill()
        starter.communicate()
    assert (tmp_path / "said").exists() == asked


def _runs(process: int) -> bool:
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
