"""Signals: one checkpoint, one exit code, and a resumed run that ends as if it had never been asked to leave."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ranks_of_runs import ROOT, TWO, appears, curve, end, finished, in_this_process, options, same_run, start

from wsl import preemption
from wsl.checkpoint import read_checkpoint
from wsl.command_line import INTERRUPTED
from wsl.preemption import EXIT_CODE, Preempted, watched

#: train.py in which the rank of SIGNALLED gets a signal in the middle of the step of STEP
SIGNALLED = """
import os, runpy, signal, sys
sys.path.insert(0, {root!r})
from wsl.tasks.base import Task
step = Task.training_step
def training_step(self, batch, number):
    loss = step(self, batch, number)
    if self.global_step == int(os.environ["STEP"]) and self.global_rank == int(os.environ["SIGNALLED"]):
        os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
    return loss
Task.training_step = training_step
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in the background
sys.argv[0] = {root!r} + "/train.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(zoo: Path, *more: str) -> list[str]:
    """Three epochs of 8 steps (4 with two ranks) with dropout and augmentation."""
    return options(zoo, "data.batch_size=8", "encoder.dropout=0.3", "data/augment=inr", "trainer.max_epochs=3", *more)


def signalled(tmp_path: Path, name: str, step: int, rank: int, *arguments: str) -> tuple[int, str]:
    """Exit code and words of a run whose rank gets the signal in that step."""
    script = tmp_path / "signalled.py"
    script.write_text(SIGNALLED.format(root=str(ROOT)))
    variables = {"STEP": str(step), "SIGNALLED": str(rank), "SIGNAL": name}
    return end(start(*arguments, program=(sys.executable, str(script)), **variables))


@pytest.mark.parametrize(
    ("name", "step", "kept"),
    [
        ("SIGUSR1", 12, 13),
        pytest.param("SIGUSR2", 0, 1, marks=pytest.mark.slow),
        pytest.param("SIGTERM", 9, 10, marks=pytest.mark.slow),
        pytest.param("SIGUSR1", 15, 16, marks=pytest.mark.slow),  # an epoch's last step: its validation is done first
        pytest.param("SIGTERM", 23, 24, marks=pytest.mark.slow),  # the last of all: only the test is left
    ],
)
def test_one_process(small_zoo: Path, tmp_path: Path, name: str, step: int, kept: int) -> None:
    folder = tmp_path / "part"
    code, said = signalled(tmp_path, name, step, 0, *run(small_zoo, f"folder={folder}"))
    assert code == EXIT_CODE == 75, said
    assert f"preempted by {name}" in said and str(folder / "checkpoints" / "last.ckpt") in said
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == kept
    assert len([row for row in curve(folder) if row["train/loss_step"]]) == kept, "the step's metrics are logged"
    in_this_process(tmp_path / "whole", *run(small_zoo))
    in_this_process(folder, *run(small_zoo))
    same_run(tmp_path / "whole", folder)


@pytest.mark.parametrize(("step", "words"), [(12, "go on with resume="), (3, "there is no checkpoint yet")])
def test_ctrl_c(small_zoo: Path, tmp_path: Path, step: int, words: str) -> None:
    """Lightning would end the program with code 1, and say nothing."""
    folder = tmp_path / "part"
    code, said = signalled(tmp_path, "SIGINT", step, 0, *run(small_zoo, f"folder={folder}"))
    assert code == INTERRUPTED == 130, said
    (line,) = [line for line in said.splitlines() if "interrupted" in line]
    assert line.startswith(f"interrupted; {words}") and "Traceback" not in said
    assert (line.endswith(f"resume={folder}")) == (folder / "checkpoints" / "last.ckpt").exists() == (step == 12)


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "step"), [(0, 5), (1, 5), (1, 7)])
def test_a_signal_to_one_rank_is_one_to_all(small_zoo: Path, tmp_path: Path, rank: int, step: int) -> None:
    folder = tmp_path / "part"
    if rank:  # Lightning starts the second rank by train.py itself, so the signal comes by torchrun's
        script = tmp_path / "signalled.py"
        script.write_text(SIGNALLED.format(root=str(ROOT)))
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script))
        variables = {"STEP": str(step), "SIGNALLED": "1", "SIGNAL": "SIGUSR1"}
        code, said = end(start(*run(small_zoo, *TWO, f"folder={folder}"), program=torchrun, **variables))
        assert code != 0 and "exitcode  : 75" in said, said
    else:
        code, said = signalled(tmp_path, "SIGUSR1", step, 0, *run(small_zoo, *TWO, f"folder={folder}"))
        assert code == EXIT_CODE, said
    assert said.count("preempted by SIGUSR1") == 1
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == step + 1
    finished(*run(small_zoo, *TWO, f"folder={folder}"))
    finished(*run(small_zoo, *TWO, f"folder={tmp_path / 'whole'}"))
    same_run(tmp_path / "whole", folder)


@pytest.mark.slow
def test_two_ranks_killed_within_an_epoch(small_zoo: Path, tmp_path: Path) -> None:
    """Signal 9 to one rank, in its sixth step; the other ends too, and the same command goes on from step 5."""
    more = (*TWO, "trainer.checkpoint_every_n_steps=1", "trainer.collective_timeout=20")
    code, said = signalled(tmp_path, "SIGKILL", 5, 0, *run(small_zoo, *more, f"folder={tmp_path / 'part'}"))
    assert code == -9, said
    deadline = time.monotonic() + 30
    while read_checkpoint(tmp_path / "part" / "checkpoints" / "last.ckpt")["global_step"] < 5:
        assert time.monotonic() < deadline
    finished(*run(small_zoo, *more, f"folder={tmp_path / 'part'}"))
    finished(*run(small_zoo, *more, f"folder={tmp_path / 'whole'}"))
    same_run(tmp_path / "whole", tmp_path / "part")


@pytest.mark.slow
def test_preempted_twice_and_while_resuming(small_zoo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "part"
    for step in (3, 4, 12):
        code, said = signalled(tmp_path, "SIGUSR1", step, 0, *run(small_zoo, f"folder={folder}"))
        assert code == EXIT_CODE, said
    finished(*run(small_zoo, f"folder={folder}"))
    finished(*run(small_zoo, f"folder={tmp_path / 'whole'}"))
    same_run(tmp_path / "whole", folder)


@pytest.mark.slow
def test_signalled_from_outside(small_zoo: Path, tmp_path: Path) -> None:
    process = start(*run(small_zoo, "trainer.max_epochs=4000", f"folder={tmp_path / 'run'}"))
    appears(tmp_path / "run" / "checkpoints" / "last.ckpt", process)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, said = end(process)
    assert code == EXIT_CODE and time.monotonic() - asked < 30, said


@pytest.fixture
def handlers() -> Iterator[None]:
    """A program that leaves hears no more; the one that runs the tests is to."""
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_while_nothing_is_trained_the_program_leaves_at_once() -> None:
    with pytest.raises(Preempted) as left, watched():
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(5)
    assert left.value.code == EXIT_CODE
    os.kill(os.getpid(), signal.SIGUSR1)  # and on its way out, hears no second one


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("error", [None, ValueError("of the program")])
def test_a_program_that_stays_has_its_handlers_back(error: Exception | None) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with contextlib.suppress(ValueError), watched():
        assert signal.getsignal(signal.SIGUSR1) is not before
        if error is not None:
            raise error
    assert signal.getsignal(signal.SIGUSR1) is before and signal.set_wakeup_fd(-1) == -1


@pytest.mark.usefixtures("handlers")
def test_a_job_in_a_watched_program_changes_nothing() -> None:
    with watched():
        mine = signal.getsignal(signal.SIGUSR1)
        preemption.defer(True)
        with watched():
            assert signal.getsignal(signal.SIGUSR1) is mine
            os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) is mine and preemption.received() is signal.SIGUSR1


@pytest.mark.usefixtures("handlers")
def test_a_second_signal_does_not_disturb_leaving() -> None:
    cleaned = False
    with pytest.raises(Preempted, match="SIGUSR1"), watched():
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            cleaned = True
    assert cleaned


@pytest.mark.usefixtures("handlers")
def test_a_run_that_has_only_to_be_tested_leaves_at_once(
    small_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(tmp_path, *run(small_zoo, "trainer.limit_train_batches=1"))
    (tmp_path / "result.json").unlink()

    def told(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(5)

    monkeypatch.setattr("wsl.tasks.base.Task.test_step", told)
    with pytest.raises(Preempted, match="SIGUSR1"), watched():
        in_this_process(tmp_path, *run(small_zoo, "trainer.limit_train_batches=1"))


@pytest.mark.usefixtures("handlers")
def test_while_training_it_is_only_noted() -> None:
    with pytest.raises(Preempted, match="SIGUSR2"), watched():
        preemption.defer(True)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert preemption.received() is signal.SIGUSR2
        preemption.defer(False)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("name", "times"), [("SIGUSR1", 1), ("SIGUSR2", 1), ("SIGTERM", 0)])
def test_submitit_is_asked_once(monkeypatch: pytest.MonkeyPatch, name: str, times: int) -> None:
    """It requeues a job of its own; SIGTERM is Slurm's own business."""
    calls: list[int] = []
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    before = signal.signal(signal.SIGUSR2, lambda number, frame: calls.append(number))
    try:
        with pytest.raises(Preempted), watched():
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(5)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert calls == [signal.SIGUSR2] * times


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file or directory: 'scontrol'"),
                                   subprocess.CalledProcessError(1, ["scontrol", "requeue", "7"])])  # fmt: skip
def test_a_job_that_submitit_cannot_queue_again_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    """Slurm's client is not in every container; the exit code says what happened all the same."""

    def requeue(number: int, frame: object) -> None:
        raise error

    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(Preempted) as left, watched():
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(5)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert left.value.code == EXIT_CODE
    said = capsys.readouterr().err
    assert "cannot put this job into the queue again" in said and "scontrol" in said and "give the sweep again" in said
