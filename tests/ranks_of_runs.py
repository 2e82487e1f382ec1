"""Runs in processes of their own, with one rank or two, for tests of what several processes do together."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

import train
from wsl import build
from wsl.checkpoint import read_checkpoint
from wsl.results import Result

ROOT = Path(__file__).parents[1]
LOSS_ROW = {"epoch", "step", "train/loss_epoch"}
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")


def options(zoo: Path, *more: str) -> list[str]:
    """A small encoder on a zoo of 64 training rows, every step logged."""
    fixed = [f"data.path={zoo}", "data.build=''", "compare=[]", "logger=csv", "encoder=statnn"]
    return [*fixed, *more, "trainer.progress=none", "trainer.log_every_n_steps=1"]


def environment(**variables: str) -> dict[str, str]:
    """Of a process that no launcher has started, with one thread."""
    foreign = ("SLURM_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_", "WSL_RUN_FOLDER")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return clean | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | variables


def start(*arguments: str, program: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
    script = [] if any(word.endswith(".py") for word in program) else [str(ROOT / "train.py")]
    command = [*(program or (sys.executable,)), *script, *arguments]
    return subprocess.Popen(
        command, env=environment(**variables), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def end(process: subprocess.Popen[str], timeout: float = 600) -> tuple[int, str]:
    """Exit code, and everything that was said."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out + err


def finished(*arguments: str, program: tuple[str, ...] = (), **variables: str) -> str:
    code, said = end(start(*arguments, program=program, **variables))
    assert code == 0, said
    return said


def in_this_process(folder: Path, *arguments: str) -> None:
    """With one rank; a run that was begun in the folder is gone on with."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        run = build.config(compose("train", list(arguments)))
        train.run(build.continued(run, folder), folder)


def appears(path: Path, process: subprocess.Popen[str], seconds: float = 300) -> None:
    """Wait for a file of a running process."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.01)


def curve(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]


def same_curve(one: Path, other: Path) -> None:
    """To rounding: ranks add up in another order."""
    a, b = curve(one), curve(other)
    assert len(a) == len(b) and a[0].keys() == b[0].keys()
    for here, there in zip(a, b, strict=True):
        for name, value in here.items():
            assert bool(value) == bool(there[name]), (name, here, there)
            if value:
                assert abs(float(value) - float(there[name])) <= 2e-5 * max(1, abs(float(value))), (name, here, there)


def same_run(one: Path, other: Path, *, kills: int = 0) -> None:
    """To the last bit, times aside: weights, result, all numbers logged.

    An epoch's mean training loss is logged right after its checkpoint is written; signal 9 may fall between the two.
    So the other run may lack as many of these lines as it was killed.
    """
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert Result.read(one).test == Result.read(other).test
    rows, found = logged(one), logged(other)
    lost = [row for row in rows if row not in found]
    assert [row for row in rows if row not in lost] == found
    assert len(lost) <= kills and all({k for k, v in row.items() if v} == LOSS_ROW for row in lost), lost


def logged(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv but for wall-clock times."""
    return [{name: value for name, value in row.items() if not name.endswith("/seconds")} for row in curve(folder)]
