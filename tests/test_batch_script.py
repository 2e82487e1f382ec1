"""scripts/train.sbatch by itself: who is asked to requeue a job, how often, and what is said where nobody can be."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ranks_of_runs import ROOT

SCRIPT = ROOT / "scripts" / "train.sbatch"
#: a client of Slurm that writes down each call, an argument per line, and ends with a given code
CLIENT = """#!/bin/bash
printf '%s\\n' call "$@" >> {folder}/{name}.calls
exit {code}
"""


def client(folder: Path, name: str, code: int) -> None:
    (folder / name).write_text(CLIENT.format(folder=folder, name=name, code=code))
    (folder / name).chmod(0o755)


def calls(folder: Path, name: str) -> list[list[str]]:
    path = folder / f"{name}.calls"
    text = path.read_text() if path.exists() else ""
    return [call.splitlines() for call in text.split("call\n")[1:]]


def job(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The script with these clients alone on its path."""
    return subprocess.run(
        ["/bin/bash", str(SCRIPT), *arguments], env={"PATH": str(folder), "SLURM_SUBMIT_DIR": "/here", **variables},
        capture_output=True, text=True, timeout=60, check=False, cwd=folder,
    )  # fmt: skip


@pytest.mark.parametrize("code", [75, 138])
def test_a_preempted_job_is_requeued_once(tmp_path: Path, code: int) -> None:
    client(tmp_path, "srun", code)
    client(tmp_path, "scontrol", 0)
    done = job(tmp_path, SLURM_JOB_ID="7")
    assert done.returncode == code and calls(tmp_path, "scontrol") == [["requeue", "7"]], done


def test_a_job_of_an_array_is_requeued_alone(tmp_path: Path) -> None:
    client(tmp_path, "srun", 75)
    client(tmp_path, "scontrol", 0)
    job(tmp_path, SLURM_JOB_ID="9", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="2")
    assert calls(tmp_path, "scontrol") == [["requeue", "7_2"]], "its own number would do, the array's would requeue all"


@pytest.mark.parametrize("code", [0, 1, 143])
def test_other_ends_are_ends(tmp_path: Path, code: int) -> None:
    client(tmp_path, "srun", code)
    client(tmp_path, "scontrol", 0)
    done = job(tmp_path, SLURM_JOB_ID="7")
    assert done.returncode == code and calls(tmp_path, "scontrol") == []


@pytest.mark.parametrize("there", [False, True])
def test_a_client_that_is_missing_or_refuses_is_told(tmp_path: Path, there: bool) -> None:
    client(tmp_path, "srun", 75)
    if there:
        client(tmp_path, "scontrol", 1)
    done = job(tmp_path, SLURM_JOB_ID="7")
    assert done.returncode == 75, "the scheduler still learns what it was"
    assert "cannot be put into the queue again" in done.stderr and "folder=RUN_FOLDER" in done.stderr
    assert there or "scontrol: command not found" in done.stderr


def test_arguments_reach_the_program_as_they_are(tmp_path: Path) -> None:
    """No shell looks into them."""
    client(tmp_path, "srun", 0)
    given = ["run_root=a b", "label=$(touch owned)", "`touch owned`", "x; touch owned", "*", ""]
    job(tmp_path, *given, PYTHON="python")
    assert calls(tmp_path, "srun") == [["--kill-on-bad-exit=0", "python", "/here/train.py", *given]]
    assert not (tmp_path / "owned").exists()
