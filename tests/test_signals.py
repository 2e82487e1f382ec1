"""Signals at any moment, to any process, and processes that are killed: nothing waits for ever, nothing is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ranks_of_runs import TWO, appears, end, finished, options, same_run, start

from wsl.preemption import EXIT_CODE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # bounds for a busy machine

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
#: exit codes of a process that a signal met before it could take it, or that Lightning ended with such a rank
TOO_EARLY = (-signal.SIGUSR1, -signal.SIGTERM, -signal.SIGKILL)


def children(process: int) -> list[int]:
    try:
        tasks = list((Path("/proc") / str(process) / "task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def tree(process: int) -> list[int]:
    """The process and all that it has started, directly or not."""
    return [process, *(below for child in children(process) for below in tree(child))]


def runs(process: int) -> bool:
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def tell(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def gone(processes: list[int], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while left := [process for process in processes if runs(process)]:
        assert time.monotonic() < deadline, f"processes {left} are still there"
        time.sleep(0.05)


def of_train(process: int) -> list[int]:
    """The ranks: the first one, and those that it has started."""
    return [p for p in tree(process) if "train.py" in (Path("/proc") / str(p) / "cmdline").read_text(errors="replace")]


TARGETS: dict[str, Callable[[int], list[int]]] = {
    "first": lambda process: [process],
    "others": lambda process: of_train(process)[1:],
    "all": tree,
}


def whole_run(zoo: Path, folder: Path, *more: str) -> tuple[list[str], float]:
    """Arguments without a folder, and the seconds that a run of them takes that nobody disturbs."""
    arguments = options(zoo, *TWO, "data.batch_size=8", "encoder.dropout=0.3", "data/augment=inr", *more)
    began = time.monotonic()
    finished(*arguments, f"folder={folder}")
    return arguments, time.monotonic() - began


def test_a_run_of_two_ranks_may_be_told_to_leave_at_any_moment(small_zoo: Path, tmp_path: Path) -> None:
    """Again and again, by another signal to other ranks; the same command then ends as if it had never been told."""
    arguments, seconds = whole_run(small_zoo, tmp_path / "whole", "trainer.max_epochs=20")
    rng = random.Random(0)
    for attempt in range(8):
        number, target = rng.choice([signal.SIGUSR1, signal.SIGTERM]), list(TARGETS)[attempt % len(TARGETS)]
        process, known = start(*arguments, f"folder={tmp_path / 'part'}"), []
        time.sleep(rng.uniform(0.1, 1.0) * seconds)
        if process.poll() is None:
            known = tree(process.pid)
            tell(TARGETS[target](process.pid), number)
        code, said = end(process, timeout=300)
        gone(known)
        assert code in (0, EXIT_CODE, *TOO_EARLY), f"{target}: {number.name}: {said}"
    finished(*arguments, f"folder={tmp_path / 'part'}")
    same_run(tmp_path / "whole", tmp_path / "part")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_workers_are_told_too_and_serve_on(small_zoo: Path, tmp_path: Path, number: signal.Signals) -> None:
    """A scheduler signals every process of a job."""
    process = start(*options(small_zoo, "data.workers=2", "trainer.max_epochs=4000", f"folder={tmp_path / 'run'}"))
    appears(tmp_path / "run" / "checkpoints" / "last.ckpt", process)
    known = tree(process.pid)
    assert len(known) >= 3, "the process and its workers"
    tell(known, number)
    code, said = end(process)
    assert code == EXIT_CODE and f"preempted by {number.name}" in said, said
    gone(known)


@pytest.mark.parametrize("lost", [0, 1])
def test_the_rank_that_was_killed_is_named(small_zoo: Path, tmp_path: Path, lost: int) -> None:
    """The other one ends within the timeout, and says whom it has lost."""
    folder = tmp_path / "run"
    arguments = options(small_zoo, *TWO, "data.batch_size=8", "trainer.max_epochs=4000", f"folder={folder}")
    process = start(*arguments, "trainer.collective_timeout=60")
    appears(folder / "checkpoints" / "last.ckpt", process)
    known, ranks = tree(process.pid), of_train(process.pid)
    assert len(ranks) == 2
    os.kill(ranks[lost], signal.SIGKILL)
    code, said = end(process, timeout=300)
    assert code != 0 and (f"lost rank {lost} " in said or f"[rank: {lost}]" in said), said
    gone(known)


@pytest.mark.parametrize(
    "more",
    [
        ["encoder=statnn", "encoder.dropout=0.3", "data.workers=1"],
        ["encoder=ng_gnn", "encoder.width=8", "encoder.layers=2", "encoder.probes=0", "encoder.fourier_features=4",
         "sparsity=unifews", "sparsity.edge_target=0.4", "sparsity.weight_target=0.5"],
    ],
    ids=["workers", "sparsity"],
)  # fmt: skip
def test_two_killed_ranks_go_on_bit_equal(small_zoo: Path, tmp_path: Path, more: list[str]) -> None:
    """Signal 9 to all processes at once, at some moment after the first checkpoints, more than once."""
    fixed = [a for a in options(small_zoo, *TWO) if not a.startswith("encoder=")]
    fixed += ["data.batch_size=8", "data/augment=inr", "trainer.max_epochs=6", "trainer.checkpoint_every_n_steps=1"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    finished(*fixed, *more, f"folder={whole}")
    for _ in range(2):
        process = start(*fixed, *more, f"folder={part}")
        before = steps(part)
        while steps(part) < before + 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        known = tree(process.pid)
        tell(known, signal.SIGKILL)
        code, _ = end(process)
        gone(known)
        assert code == -signal.SIGKILL and not (part / "result.json").exists(), "killed too late to show anything"
    finished(*fixed, *more, f"folder={part}")
    same_run(whole, part, kills=2)


def steps(folder: Path) -> int:
    """Lines of metrics so far."""
    path = folder / "metrics.csv"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_rank_of_torchrun_that_was_killed_ends_all(small_zoo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = options(small_zoo, *TWO, "data.batch_size=8", "trainer.max_epochs=4000", f"folder={folder}")
    process = start(*arguments, program=TORCHRUN)
    appears(folder / "checkpoints" / "last.ckpt", process)
    known = tree(process.pid)
    os.kill(of_train(process.pid)[-1], signal.SIGKILL)
    code, said = end(process, timeout=300)
    assert code != 0 and ("lost rank" in said or "Signal 9" in said), said
    gone(known)
