"""The processes of one run: who started them, and what is said when one of them fails.

Three ways to get R ranks, told apart by what the launcher leaves in the environment:

* ``torchrun``: it starts them, ``RANK`` and ``WORLD_SIZE`` number them;
* ``srun``: Slurm starts them, ``SLURM_PROCID`` and ``SLURM_NTASKS`` number them;
* nothing: the program is the first rank and Lightning starts the others of this machine, numbered by ``LOCAL_RANK``.
"""

from __future__ import annotations

import os
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed
from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from wsl.errors import UserError
from wsl.run_folder import FOLDER_VARIABLE, STARTER_VARIABLE, first_rank, write_text

#: how long a rank that lost the others waits for them to say why
PATIENCE = 3.0
#: what communication says when a rank is gone: words of gloo, NCCL, the store
LOST = (
    "closed by peer", "reset by peer", "broken pipe", "timed out", "nccl", "gloo", "connection refused",
    "socket closed", "failed to recv", "wait timeout",
)  # fmt: skip


class RanksError(UserError, RuntimeError):
    """The processes of a run do not fit its config, or some were lost; the message says which and what to do."""


def under_torchrun() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()


def under_srun() -> bool:
    """Whether Slurm started this process as a task of a step; the script that ``sbatch`` runs is no such task."""
    return "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ and "SLURM_NTASKS" in os.environ


def launcher() -> str:
    """Who numbers the ranks of this run, in a word."""
    return "torchrun" if under_torchrun() else "srun" if under_srun() else "Lightning"


def started_by_lightning() -> bool:
    """Whether this process is a rank that the first one of this machine has started."""
    return FOLDER_VARIABLE in os.environ and int(os.environ.get("LOCAL_RANK", 0)) > 0 and not under_torchrun()


def starter() -> int | None:
    """The process that has started this rank, if it is one that Lightning has."""
    return int(os.environ[STARTER_VARIABLE]) if started_by_lightning() and STARTER_VARIABLE in os.environ else None


def launched_name() -> str | None:
    """What all ranks that were started from outside can call their run; stays the same when Slurm requeues the job.

    Raises:
        RanksError: if torchrun numbers ranks, but gives the run no name.
    """
    if under_torchrun():
        name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        if name == "none":
            raise RanksError(
                "torchrun gave this run no name that its ranks could agree on; "
                "start it with torchrun --standalone or --rdzv-id=NAME, or give folder=RUN_FOLDER"
            )
        return f"torchrun_{name}"
    if under_srun() and "SUBMITIT_EXECUTOR" not in os.environ:
        job = os.environ.get("SLURM_JOB_ID", "0")
        if "SLURM_ARRAY_JOB_ID" in os.environ:
            job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        return f"slurm_{job}.{os.environ['SLURM_STEP_ID']}"
    return None


def environment(devices: int, num_nodes: int) -> ClusterEnvironment:
    """Where Lightning finds the ranks. Requeueing is never Lightning's business (docs/cluster.md).

    Raises:
        RanksError: if the processes that were started are not those that the config asks for.
    """
    wanted = f"trainer.devices={devices} on trainer.num_nodes={num_nodes}"
    world = devices * num_nodes
    if under_torchrun():
        if (started := int(os.environ["WORLD_SIZE"])) != world:
            raise RanksError(f"torchrun started {started} processes, the config asks for {wanted}; make the two agree")
        return TorchElasticEnvironment()
    if os.environ.get("SUBMITIT_EXECUTOR") == "local" and world > 1:
        raise RanksError(f"submitit's local executor starts one process, {wanted} needs {world}; use launcher=slurm")
    if under_srun():
        if (started := int(os.environ["SLURM_NTASKS"])) != world:
            raise RanksError(
                f"srun started {started} tasks, the config asks for {wanted}; "
                f"use --nodes={num_nodes} --ntasks-per-node={devices}"
            )
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices))  # Lightning wants it, srun may not set it
        return SLURMEnvironment(auto_requeue=False)
    if num_nodes > 1 and "NODE_RANK" not in os.environ:
        raise RanksError(f"{wanted}: other machines' ranks must be started there; use srun or torchrun")
    return LightningEnvironment()


@contextmanager
def failures_told(folder: Path, ranks: int) -> Iterator[None]:
    """Let the rank that failed be heard: its traceback is kept in ``FOLDER/failed/rankR.txt``, and a rank that only
    lost the connection to it ends with that text instead of its own error.

    Raises:
        RanksError: in place of an error of communication.
    """
    told = folder / "failed"
    if first_rank():
        shutil.rmtree(told, ignore_errors=True)
    if ranks == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        told.mkdir(exist_ok=True)
        if not _lost(error):
            write_text(told / f"rank{_rank()}.txt", "".join(traceback.format_exception(error)))
            raise
        (told / f"rank{_rank()}.lost").touch()
        raise RanksError(_what_others_said(told, ranks, error)) from error


def _lost(error: Exception) -> bool:
    communication = isinstance(error, torch.distributed.DistError) or type(error) is RuntimeError
    return communication and any(word in str(error).lower() for word in LOST)


def _what_others_said(told: Path, ranks: int, error: Exception) -> str:
    deadline = time.monotonic() + PATIENCE
    while not (files := sorted(told.glob("rank*.txt"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    if not files:
        silent = [rank for rank in range(ranks) if rank != _rank() and not (told / f"rank{rank}.lost").exists()]
        who = f"rank {', '.join(map(str, silent))}" if silent else "another rank for a while"
        return (
            f"rank {_rank()} lost {who} (of {ranks}), which has said nothing: it was killed, or did not come within "
            f"trainer.collective_timeout seconds. Communication says: {str(error).splitlines()[0]}"
        )
    said = "\n".join(f"rank {path.stem.removeprefix('rank')} failed:\n{path.read_text()}" for path in files)
    return f"rank {_rank()} ends because another one failed.\n{said}"


def _rank() -> int:
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", 0))))
