"""A run that was killed within an epoch ends as if it had not been: bit-equal weights, the same metrics file."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from ranks_of_runs import ROOT, same_run

import train
from wsl import build, run_config
from wsl.checkpoint import read_checkpoint
from wsl.run_config import RunConfig

CONF = ROOT / "conf"

#: train.py, but killed with signal 9 in the middle of the step that KILL_AT names, before its optimiser has moved; or
#: there in another of the task's methods, which KILL_IN names
KILLED = """
import os, runpy, signal, sys
sys.path.insert(0, {root!r})
from wsl.tasks.base import Task
name = os.environ.get("KILL_IN", "training_step")
method = getattr(Task, name)
def killed(self, *arguments):
    done = method(self, *arguments)
    if self.global_step == int(os.environ["KILL_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return done
setattr(Task, name, killed)
runpy.run_path({root!r} + "/train.py", run_name="__main__")
"""


def options(zoo: Path, *more: str) -> list[str]:
    """64 training rows in 8 batches; a checkpoint after every third step, so after the steps 3 and 6 of an epoch."""
    fixed = [f"data.path={zoo}", "data.build=''", "data.batch_size=8", "compare=[]", "encoder=statnn", "logger=csv"]
    fixed += ["encoder.dropout=0.3", "trainer.max_epochs=3", "trainer.checkpoint_every_n_steps=3"]
    return [*fixed, "trainer.progress=none", "trainer.log_every_n_steps=1", *more]


def config(zoo: Path, *more: str) -> RunConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return run_config.config(compose("train", options(zoo, *more)))


def killed(zoo: Path, folder: Path, step: int, *more: str) -> Path:
    """The folder of a run that was killed in this step."""
    command = [sys.executable, "-c", KILLED.format(root=str(ROOT)), *options(zoo, *more), f"run_root={folder}"]
    done = subprocess.run(
        command, cwd=folder.parent, env=os.environ | {"KILL_AT": str(step)}, capture_output=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr.decode()
    (run,) = folder.iterdir()
    return run


def resume(folder: Path) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        train.run(run_config._resumed(folder, [f"resume={folder}"]), folder)


@pytest.mark.parametrize(
    ("step", "kept", "more"),
    [
        (13, 12, []),
        pytest.param(13, 12, ["data.workers=2"], marks=pytest.mark.slow),
        (13, 12, ["data.memory_limit=0", "data.buffer=1"]),
        pytest.param(13, 12, ["data.memory_limit=0", "data.buffer=1", "data.workers=2"], marks=pytest.mark.slow),
        pytest.param(2, None, [], marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_killed_within_an_epoch(small_zoo: Path, tmp_path: Path, step: int, kept: int | None, more: list[str]) -> None:
    """Steps 0 to 7 are the first epoch, 8 to 15 the second; the last checkpoint before step 13 is after step 12."""
    train.run(config(small_zoo, *more), tmp_path / "whole")
    run = killed(small_zoo, tmp_path / "part", step, *more)
    last = run / "checkpoints" / "last.ckpt"
    if kept is None:  # there is nothing to go on from, and that is said
        assert not last.exists()
        return
    assert read_checkpoint(last)["global_step"] == kept
    resume(run)
    same_run(tmp_path / "whole", run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "step"),
    [("lr_scheduler_step", 13), ("validation_step", 16), ("on_save_checkpoint", 15), ("on_validation_epoch_end", 16)],
)
def test_killed_between_steps(
    small_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, step: int
) -> None:
    """Between optimiser and schedule, in a validation, while a checkpoint is made."""
    train.run(config(small_zoo), tmp_path / "whole")
    monkeypatch.setenv("KILL_IN", method)
    run = killed(small_zoo, tmp_path / "part", step)
    resume(run)
    same_run(tmp_path / "whole", run)


@pytest.mark.parametrize("steps", [1, 8])
def test_a_checkpoint_at_the_end_of_an_epoch_is_one_with_its_validation(
    small_zoo: Path, tmp_path: Path, steps: int
) -> None:
    """Every step, or only an epoch's last: no interval leaves a checkpoint between training and validation."""
    more = [f"trainer.checkpoint_every_n_steps={steps}", "trainer.max_epochs=1", "scheduler=constant"]
    train.run(config(small_zoo, *more), tmp_path)
    state = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert state["global_step"] == 8 and state["ZooData"]["place"] is None
    assert state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 1


def test_the_mean_loss_of_an_epoch_counts_all_its_batches(small_zoo: Path, tmp_path: Path) -> None:
    train.run(config(small_zoo), tmp_path)
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss_step"]) for row in rows if row["train/loss_step"]]
    means = [float(row["train/loss_epoch"]) for row in rows if row["train/loss_epoch"]]
    assert len(losses) == 24 and len(means) == 3
    for epoch, mean in enumerate(means):
        assert mean == pytest.approx(sum(losses[8 * epoch : 8 * epoch + 8]) / 8, rel=1e-6)


def test_the_way_of_reading_survives_resuming(small_zoo: Path) -> None:
    """Which way is right depends on the memory that is free, the order of rows on the way."""
    first = build.data(config(small_zoo, "data.memory_limit=0"))
    assert first.streamed()
    later = build.data(config(small_zoo))
    later.load_state_dict(first.state_dict())
    assert later.streamed()
