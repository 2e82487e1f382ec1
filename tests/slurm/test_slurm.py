"""A real Slurm of two nodes: jobs on both, preemption, time limit, a lost node, a sweep as a job array."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing
from ranks_of_runs import ROOT, environment, finished, options, same_run
from test_cluster_docs import commands, here

from wsl.results import Result

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.timeout(900)]

EPOCHS = 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm")) as running:
        running.environment = environment(**{k: running.environment[k] for k in ("SLURM_CONF", "MASTER_ADDR")}) | {
            "PYTHON": sys.executable,
            "WSL_HOME": str(ROOT),
        }
        yield running


def arguments(zoo: Path, folder: Path) -> list[str]:
    """Two ranks on two nodes, with dropout and augmentation."""
    ranks = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.num_nodes=2", "trainer.devices=1"]
    more = ["encoder.dropout=0.3", "data/augment=inr", "data.batch_size=8", f"trainer.max_epochs={EPOCHS}"]
    return options(zoo, *ranks, *more, f"run_root={folder}")


def submit(cluster: Cluster, *more: str) -> str:
    """The number of a job of two nodes that runs scripts/train.sbatch."""
    fixed = ["--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={cluster.folder}/job_%j.log"]
    slurm, ours = [m for m in more if m.startswith("--")], [m for m in more if not m.startswith("--")]
    return cluster.run("sbatch", *fixed, *slurm, str(ROOT / "scripts" / "train.sbatch"), *ours)


def test_the_commands_of_the_documentation(cluster: Cluster, small_zoo: Path, tmp_path: Path) -> None:
    job_line, sweep_line = commands()[3], commands()[5]
    slurm = [word for word in shlex.split(job_line) if word.startswith("--n")]
    job = submit(cluster, *slurm, *here(job_line, small_zoo, tmp_path))
    assert cluster.completed(job)["JobState"] == "COMPLETED", log(cluster, job)
    more = ["hydra.launcher.timeout_min=5", "hydra.launcher.cpus_per_task=1"]
    variables = {name: cluster.environment[name] for name in ("SLURM_CONF", "MASTER_ADDR")}
    finished(*here(sweep_line, small_zoo, tmp_path), *more, **variables)
    assert len(list((tmp_path / "runs").glob("*/*/result.json"))) == 6


def log(cluster: Cluster, job: str) -> str:
    return (cluster.folder / f"job_{job}.log").read_text()


def run_folder(root: Path) -> Path:
    (folder,) = root.iterdir()
    return folder


@pytest.fixture(scope="module")
def uninterrupted(cluster: Cluster, small_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    job = submit(cluster, *arguments(small_zoo, root))
    found = cluster.completed(job)
    assert found["JobState"] == "COMPLETED", log(cluster, job)
    assert found["NumNodes"] == "2" and found["Restarts"] == "0"
    return run_folder(root)


@contextlib.contextmanager
def held(cluster: Cluster, root: Path, job: str) -> Iterator[list[int]]:
    """The processes on the second node of a job that has trained for some epochs.

    They are stopped, and the first node waits for them: on no machine does the job end before what is to happen to it.
    """

    def trained() -> bool:
        found = list(root.glob("*/metrics.csv"))
        return bool(found) and len(found[0].read_text().splitlines()) > 60

    cluster.wait(trained, 120, f"job {job}")
    tasks = processes(SLURM_JOB_ID=job, SLURMD_NODENAME="n2")
    with stopped(tasks):
        yield tasks


@contextlib.contextmanager
def stopped(tasks: list[int]) -> Iterator[None]:
    assert tasks, "the job ended before it could be stopped"
    try:
        for task in tasks:
            os.kill(task, signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while not all(status(task)["State"].startswith("T") for task in tasks):  # each thread of theirs
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield
    finally:
        for task in tasks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(task, signal.SIGCONT)


def told(task: int) -> bool:
    """Whether a stopped process has been sent SIGUSR1; at a time limit Slurm makes it go on as well."""
    try:
        now = status(task)
    except FileNotFoundError:
        return True
    return not now["State"].startswith("T") or bool(int(now["ShdPnd"], 16) >> (signal.SIGUSR1 - 1) & 1)


def status(process: int) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in (Path("/proc") / str(process) / "status").read_text().splitlines())


def test_two_nodes(uninterrupted: Path) -> None:
    assert uninterrupted.name.startswith("slurm_")
    assert Result.read(uninterrupted).epochs == EPOCHS


def test_preempted_by_a_signal(cluster: Cluster, uninterrupted: Path, small_zoo: Path, tmp_path: Path) -> None:
    job = submit(cluster, *arguments(small_zoo, tmp_path))
    with held(cluster, tmp_path, job) as tasks:
        cluster.run("scancel", "--signal=USR1", job)
        cluster.wait(lambda: all(told(task) for task in tasks), 60, "the signal")
    found = cluster.completed(job)
    said = log(cluster, job)
    assert found["JobState"] == "COMPLETED" and found["Restarts"] == "1", said
    assert said.count("preempted by SIGUSR1") == 1 and "exit code 75" in said
    same_run(uninterrupted, run_folder(tmp_path))


def test_preempted_by_the_time_limit(cluster: Cluster, uninterrupted: Path, small_zoo: Path, tmp_path: Path) -> None:
    """Two minutes, of which the last are after the signal, for a run that would take more."""
    job = submit(cluster, "--time=2", "--signal=USR1@55", *arguments(small_zoo, tmp_path))
    with held(cluster, tmp_path, job) as tasks:
        cluster.wait(lambda: all(told(task) for task in tasks), 120, "the signal before the limit")
    found = cluster.completed(job, seconds=500)
    said = log(cluster, job)
    assert found["JobState"] == "COMPLETED", said
    assert int(found["Restarts"]) >= 1 and "exit code 75" in said
    same_run(uninterrupted, run_folder(tmp_path))


def test_a_node_is_lost(cluster: Cluster, uninterrupted: Path, small_zoo: Path, tmp_path: Path) -> None:
    """The second node's daemon and its task die at once; Slurm itself requeues the job when it notices."""
    job = submit(cluster, *arguments(small_zoo, tmp_path))
    with held(cluster, tmp_path, job) as tasks:
        cluster.daemons["n2"].kill()
        cluster.daemons["n2"].wait()
        for process in (*{parent(task) for task in tasks}, *tasks):  # the step's daemon first: it must not report
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    cluster.wait(lambda: int(cluster.job(job)["Restarts"]) > 0 or over(cluster, job), 90, "the lost node's job")
    cluster.begin("n2", "slurmd", "-D", "-N", "n2")
    cluster.wait(lambda: "down" not in "".join(cluster.states()), 60, "the node to come back")
    found = cluster.completed(job)
    assert found["JobState"] == "COMPLETED" and int(found["Restarts"]) >= 1, log(cluster, job)
    same_run(uninterrupted, run_folder(tmp_path), kills=1)


def over(cluster: Cluster, job: str) -> bool:
    return cluster.job(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def processes(**wanted: str) -> list[int]:
    """Those with these environment variables that a step's daemon started."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = dict(v.split("=", 1) for v in (process / "environ").read_text().split("\0") if "=" in v)
        except (OSError, UnicodeDecodeError):
            continue
        if wanted.items() <= variables.items():
            found[int(process.name)] = parent(int(process.name))
    return [process for process, above in found.items() if above not in found]


def parent(process: int) -> int:
    return int((Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[1])


def test_a_sweep_is_a_job_array(cluster: Cluster, small_zoo: Path, tmp_path: Path) -> None:
    """Preempted by SIGUSR1, a job is requeued by submitit alone; given again, the sweep repeats nothing."""
    sweep = [sys.executable, str(ROOT / "train.py"), "--multirun", "launcher=slurm", "seed=0,1"]
    sweep += options(small_zoo, "data.batch_size=16", f"trainer.max_epochs={EPOCHS}")
    sweep += [f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra.launcher.timeout_min=5", "hydra.launcher.cpus_per_task=1"]
    process = subprocess.Popen(
        sweep, env=cluster.environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    cluster.wait(lambda: len(list((tmp_path / "sweep").glob("1/metrics.csv"))) > 0, 300, "the sweep's second job")
    (array,) = set(cluster.run("squeue", "-h", "-o", "%F").split())
    with stopped(processes(SLURM_ARRAY_JOB_ID=array, SLURM_ARRAY_TASK_ID="1")):
        cluster.run("scancel", "--signal=USR1", f"{array}_1")
    try:
        said, _ = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0, said
    found = [Result.read(tmp_path / "sweep" / job) for job in ("0", "1")]
    assert [r.seed for r in found] == [0, 1] and [r.epochs for r in found] == [EPOCHS, EPOCHS]
    logs = "".join(p.read_text() for p in (tmp_path / "sweep").glob(".submitit/*/*_log.*"))
    assert logs.count("preempted by SIGUSR1") == 1 and cluster.job(f"{array}_1")["Restarts"] == "1"
    before = (tmp_path / "sweep" / "0" / "metrics.csv").stat().st_mtime_ns
    subprocess.run(sweep, env=cluster.environment, cwd=tmp_path, check=True, capture_output=True, timeout=200)
    assert (tmp_path / "sweep" / "0" / "metrics.csv").stat().st_mtime_ns == before
