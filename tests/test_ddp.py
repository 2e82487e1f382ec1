"""Two ranks, for real: the curve of one, no hang where a rank's batch lacks an architecture, failures that are told."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from ranks_of_runs import ROOT, TWO, curve, end, finished, in_this_process, options, same_curve, start

from wsl.results import Result
from wsl.spec import mlp_spec
from wsl.zoo import ZooWriter

#: train.py in which the rank of FAILING_RANK does something else in its third step
FAILING = """
import os, runpy, sys, time
sys.path.insert(0, {root!r})
from wsl.tasks.base import Task
step = Task.training_step
def training_step(self, batch, number):
    if number == 2 and self.global_rank == int(os.environ["FAILING_RANK"]):
        {action}
    return step(self, batch, number)
Task.training_step = training_step
sys.argv[0] = {root!r} + "/train.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_two_ranks_give_the_curve_of_one(small_zoo: Path, tmp_path: Path) -> None:
    """Same seed, same global batch, augmentation on."""
    more = ["data/augment=inr", "trainer.max_epochs=2", "trainer.limit_train_batches=3"]
    in_this_process(tmp_path / "one", *options(small_zoo, *more, "data.batch_size=16"))
    finished(*options(small_zoo, *TWO, *more, "data.batch_size=8", f"folder={tmp_path / 'two'}"))
    same_curve(tmp_path / "one", tmp_path / "two")
    assert len(curve(tmp_path / "two")) == 2 * 3 + 2 + 2 + 1
    assert Result.read(tmp_path / "one").test == pytest.approx(Result.read(tmp_path / "two").test, rel=1e-5)


@pytest.mark.slow
def test_torchrun(small_zoo: Path, tmp_path: Path) -> None:
    """Also under torchrun, the run folder has one name on all ranks."""
    more = ["trainer.max_epochs=1", "data.eval_batch_size=3"]
    in_this_process(tmp_path / "one", *options(small_zoo, *more, "data.batch_size=8"))
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    finished(*options(small_zoo, *TWO, *more, "data.batch_size=4", f"run_root={tmp_path / 'runs'}"), program=torchrun)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("torchrun_")
    same_curve(tmp_path / "one", folder)


MIXED = ("data.target=test_accuracy", "task=generalization", "encoder=monomial", "trainer.limit_train_batches=10")


@pytest.mark.slow
def test_a_rank_whose_batch_lacks_an_architecture(cnn_zoo: Path, tmp_path: Path) -> None:
    """One network per rank and step: each rank lacks one of the two architectures in every step."""
    more = [*MIXED, "trainer.max_epochs=1"]
    in_this_process(tmp_path / "one", *options(cnn_zoo, *more, "data.batch_size=2"))
    finished(*options(cnn_zoo, *more, *TWO, "data.batch_size=1", f"folder={tmp_path / 'two'}"))
    same_curve(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_every_job_of_a_sweep_has_ranks_of_its_own(small_zoo: Path, tmp_path: Path) -> None:
    grid = ["seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    finished("--multirun", *options(small_zoo, *TWO, "data.batch_size=8", "trainer.max_epochs=1"), *grid)
    found = [Result.read(tmp_path / "sweep" / job) for job in ("0", "1")]
    assert [r.seed for r in found] == [0, 1] and found[0].val != {} and found[0].test != found[1].test


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["0", "1"])
def test_the_failing_rank_is_heard(small_zoo: Path, tmp_path: Path, failing: str) -> None:
    code = FAILING.format(root=str(ROOT), action="raise ValueError('the guilty rank')")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    script = tmp_path / "failing.py"
    script.write_text(code)
    start_time = time.monotonic()
    arguments = options(small_zoo, *TWO, "data.batch_size=8", f"folder={tmp_path / 'run'}")
    status, said = end(start(*arguments, program=(*torchrun, str(script)), FAILING_RANK=failing))
    assert status != 0 and time.monotonic() - start_time < 60
    assert "ValueError: the guilty rank" in said and "training_step" in said
    assert "the guilty rank" in (tmp_path / "run" / "failed" / f"rank{failing}.txt").read_text()


@pytest.mark.slow
def test_a_rank_that_does_not_come_is_waited_for_no_longer_than_allowed(small_zoo: Path, tmp_path: Path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING.format(root=str(ROOT), action="time.sleep(1000)"))
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    arguments = options(small_zoo, *TWO, "data.batch_size=8", f"folder={tmp_path / 'run'}")
    process = start(*arguments, "trainer.collective_timeout=5", program=(*torchrun, str(script)), FAILING_RANK="1")
    status, said = end(process, timeout=90)
    assert status != 0 and "rank 0 lost rank 1" in said and "collective_timeout" in said


#: train.py whose second rank streams rows from a damaged copy of the zoo
DAMAGED = """
import os, runpy, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from wsl import build
trainer = build.trainer
def damaged(config, task, data, folder):
    if os.environ["RANK"] == "1":
        data.path = Path({path!r})
    return trainer(config, task, data, folder)
build.trainer = damaged
sys.argv[0] = {root!r} + "/train.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_damaged_row_that_one_rank_reads_is_named_by_both(tmp_path: Path) -> None:
    """The other one does not wait for ever."""
    spec, path, copy = mlp_spec((31, 63)), tmp_path / "zoo.h5", tmp_path / "copy.h5"
    with ZooWriter(path, spec, 720, {}) as zoo:  # 60 rows in a chunk
        zoo.write(0, np.random.default_rng(0).normal(size=(720, spec.numel)).astype(np.float32))
        zoo.set_columns({"label": np.arange(720) % 2})
        zoo.set_splits({"train": np.arange(600), "val": np.arange(600, 660), "test": np.arange(660, 720)})
    with h5py.File(path) as file:
        offset = file["params"].id.get_chunk_info(4).byte_offset + 1000
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    copy.write_bytes(content)
    script = tmp_path / "damaged.py"
    script.write_text(DAMAGED.format(root=str(ROOT), path=str(copy)))
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script))
    more = ["data.memory_limit=0", "data.batch_size=10", "trainer.max_epochs=1", "trainer.collective_timeout=30"]
    begun = time.monotonic()
    code, said = end(start(*options(path, *TWO, *more, f"folder={tmp_path / 'run'}"), program=torchrun))
    assert code != 0 and time.monotonic() - begun < 280, said
    words = f"{copy}: rows 240 to 299 are damaged"
    (kept,) = (tmp_path / "run" / "failed").glob("rank*.txt")
    assert kept.name == "rank1.txt" and words in kept.read_text()
    assert f"error: {words}" in said, "the guilty one"
    assert "rank 0 ends because another one failed.\nrank 1 failed:" in said, "and the other one"
