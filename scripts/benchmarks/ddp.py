"""Throughput of DDP: ``train.py`` with two processes of one thread each against one process of one thread.

NG-GNN (the default encoder) on networks 2-32-32-1, 64 per process and step, gloo on the CPU; the seconds are those of
training as the run's own result.json has them (start-up excluded, validation of one batch and checkpoints included).
Beside them two runs of one process each at the same time, which share nothing but the machine: what two cores have to
give. The three are run in turn, medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from benchmarks.measure import Report  # noqa: E402
from wsl.results import Result  # noqa: E402
from wsl.spec import mlp_spec  # noqa: E402
from wsl.zoo import ZooWriter  # noqa: E402

BATCH, STEPS, REPEATS = 64, 100, 2
ALONE, RANKS, APART = "1", "2", "2, each on its own"


def run() -> Report:
    report = Report(f"{STEPS} steps of train.py, one thread per process", ("processes", "seconds", "networks/s"))
    seconds: dict[str, list[float]] = {ALONE: [], RANKS: [], APART: []}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as both:
        zoo = write(Path(folder) / "zoo.h5")
        for repeat in range(REPEATS):
            root = Path(folder) / str(repeat)
            seconds[ALONE].append(trained(zoo, root / "alone", 1))
            seconds[RANKS].append(trained(zoo, root / "ranks", 2))
            apart = both.map(lambda name, root=root: trained(zoo, root / name, 1), ("left", "right"))
            seconds[APART].append(statistics.mean(apart))
    rate = {
        name: (1 if name == ALONE else 2) * BATCH * STEPS / statistics.median(found) for name, found in seconds.items()
    }
    for name, found in seconds.items():
        report.rows.append((name, f"{statistics.median(found):.2f}", f"{rate[name]:,.0f}"))
        report.figures[f"seconds, {name}"] = found
    report.figures["throughput of 2 ranks to 2 runs apart"] = rate[RANKS] / rate[APART]
    report.goal("throughput of 2 processes to 1", rate[RANKS] / rate[ALONE], ">=", 1.7)
    return report


def write(path: Path) -> Path:
    spec, rows = mlp_spec((2, 32, 32, 1), "sine", {"omega": 30.0}), 2 * BATCH * STEPS + 2 * BATCH
    rng = np.random.default_rng(0)
    with ZooWriter(path, spec, rows, {}) as zoo:
        zoo.write(0, rng.normal(0, 0.1, (rows, spec.numel)).astype(np.float32))
        zoo.set_columns({"label": np.arange(rows) % 10})
        parts = np.split(np.arange(rows), [rows - 2 * BATCH, rows - BATCH])
        zoo.set_splits(dict(zip(("train", "val", "test"), parts, strict=True)))
    return path


def trained(zoo: Path, folder: Path, ranks: int) -> float:
    """Seconds of one epoch of STEPS steps."""
    arguments = [f"data.path={zoo}", "data.build=''", "compare=[]", "logger=csv", f"data.batch_size={BATCH}"]
    arguments += ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={ranks}", "trainer.max_epochs=1"]
    arguments += [f"trainer.limit_train_batches={STEPS}", "trainer.progress=none", f"folder={folder}"]
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return Result.read(folder).seconds
