"""Who started the ranks, what they are called, and what is said when one is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from wsl import ranks
from wsl.ranks import RanksError, environment, failures_told, launched_name

SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "mine", "WORLD_SIZE": "4", "RANK": "1"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No launcher's variables, whatever runs the tests."""
    for name in (*SRUN, *TORCHRUN, "SLURM_ARRAY_JOB_ID", "SUBMITIT_EXECUTOR", "NODE_RANK", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def given(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_lightning_starts_the_ranks_of_one_machine(launched: pytest.MonkeyPatch) -> None:
    assert isinstance(environment(2, 1), LightningEnvironment) and launched_name() is None
    assert ranks.launcher() == "Lightning"
    launched.setenv("SLURM_JOB_ID", "7")  # the batch script itself, not a task of srun
    launched.setenv("SLURM_NTASKS", "1")
    assert isinstance(environment(2, 1), LightningEnvironment) and launched_name() is None
    with pytest.raises(RanksError, match=r"num_nodes=2.*srun or torchrun"):
        environment(1, 2)


def test_srun(launched: pytest.MonkeyPatch) -> None:
    given(launched, SRUN)
    launched.setenv("SLURM_NTASKS_PER_NODE", "2")
    found = environment(2, 2)
    assert isinstance(found, SLURMEnvironment) and not found.auto_requeue and found.global_rank() == 1
    assert launched_name() == "slurm_7.0" and ranks.launcher() == "srun"
    given(launched, {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"})
    assert launched_name() == "slurm_5_2.0"
    with pytest.raises(RanksError, match=r"4 tasks.*devices=3 on trainer.num_nodes=1.*--ntasks-per-node=3"):
        environment(3, 1)


def test_torchrun(launched: pytest.MonkeyPatch) -> None:
    given(launched, SRUN | TORCHRUN)  # torchrun inside a Slurm job: it is torchrun that numbers
    assert isinstance(environment(4, 1), TorchElasticEnvironment)
    assert launched_name() == "torchrun_mine" and ranks.launcher() == "torchrun"
    with pytest.raises(RanksError, match="started 4 processes"):
        environment(2, 1)
    launched.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(RanksError, match="--standalone"):
        launched_name()


def test_the_local_executor_of_submitit_cannot(launched: pytest.MonkeyPatch) -> None:
    launched.setenv("SUBMITIT_EXECUTOR", "local")
    with pytest.raises(RanksError, match=r"launcher=slurm"):
        environment(2, 1)
    assert isinstance(environment(1, 1), LightningEnvironment)


def test_a_failure_is_kept_and_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="mine"), failures_told(tmp_path, 2):
        raise ValueError("mine")
    kept = (tmp_path / "failed" / "rank0.txt").read_text()
    assert "ValueError: mine" in kept and "test_ranks.py" in kept
    monkeypatch.setenv("LOCAL_RANK", "1")  # the first rank starts with a clean slate, the others do not touch it
    with pytest.raises(RanksError, match=r"rank 0 failed(.|\n)*ValueError: mine"), failures_told(tmp_path, 2):
        raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(RuntimeError, match="shapes"), failures_told(tmp_path, 2):
        raise RuntimeError("shapes cannot be multiplied")


def test_a_silent_loss_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "PATIENCE", 0.0)
    with pytest.raises(RanksError, match=r"rank 0 lost rank 1 .*collective_timeout"), failures_told(tmp_path, 2):
        raise RuntimeError("Timed out waiting 5000ms for recv operation to complete")
    (tmp_path / "failed" / "rank2.lost").touch()  # it has lost another one too
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(RanksError, match="rank 1 lost rank 3 "), failures_told(tmp_path, 4):
        raise RuntimeError("Connection closed by peer")
    monkeypatch.delenv("LOCAL_RANK")
    with failures_told(tmp_path, 1):
        pass
    assert not (tmp_path / "failed").exists()
