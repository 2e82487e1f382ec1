"""Non-finite steps: all ranks stop together and name the rows, or pass over a counted number of steps."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from ranks_of_runs import ROOT, TWO, end, options, start
from torch import Tensor

import train
from wsl import build
from wsl.batch import WeightBatch
from wsl.callbacks.finite import NonFiniteError
from wsl.checkpoint import read_checkpoint
from wsl.tasks.classification import Classification

POISONED = 37  # a training row

#: train.py in which the loss of a batch with the row of POISONED is not finite
ONE_RANK = """
import runpy, sys
sys.path.insert(0, {root!r})
from wsl.tasks.classification import Classification
loss = Classification.loss
def poisoned(self, output, batch):
    return loss(self, output, batch) * (float("nan") if self.training and {row} in batch.row_ids else 1.0)
Classification.loss = poisoned
sys.argv[0] = {root!r} + "/train.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def config(zoo: Path, *more: str) -> build.RunConfig:
    """Four steps of 16 rows in each epoch."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return build.config(compose("train", options(zoo, "data.batch_size=16", "scheduler=constant", *more)))


Loss = Callable[[Classification, Tensor, WeightBatch], Tensor]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is not a number whenever the row comes in training."""
    original: Loss = Classification.loss

    def loss(self: Classification, output: Tensor, batch: WeightBatch) -> Tensor:
        assert batch.row_ids is not None
        hit = self.training and POISONED in batch.row_ids
        return original(self, output, batch) * (float("nan") if hit else 1.0)

    monkeypatch.setattr(Classification, "loss", loss)


class Watch(pl.Callback):
    """Steps whose batch held the row, and the weights before and after each step."""

    def __init__(self) -> None:
        self.hit: list[int] = []
        self.changed: list[bool] = []
        self._before: Tensor | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch: WeightBatch, _: int) -> None:
        assert batch.row_ids is not None
        if POISONED in batch.row_ids:
            self.hit.append(trainer.global_step)
        self._before = torch.nn.utils.parameters_to_vector(task.parameters()).detach().clone()

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *_: object) -> None:
        after = torch.nn.utils.parameters_to_vector(task.parameters())
        assert self._before is not None and after.isfinite().all()
        self.changed.append(not torch.equal(after, self._before))


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watching, original = Watch(), build.trainer

    def trainer(*given: object) -> pl.Trainer:
        made = original(*given)  # type: ignore[arg-type]
        made.callbacks.append(watching)  # type: ignore[attr-defined]
        return made

    monkeypatch.setattr(build, "trainer", trainer)
    return watching


@pytest.mark.usefixtures("poisoned")
def test_a_step_that_is_passed_over_changes_nothing(
    small_zoo: Path, tmp_path: Path, watch: Watch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither weights nor momentum nor decay, though others follow and precede."""
    more = ["trainer.max_epochs=3", "optimizer=adamw", "optimizer.weight_decay=0.1", "callbacks.skip_non_finite=3"]
    train.run(config(small_zoo, *more), tmp_path)
    assert len(watch.hit) == 3, "once in each epoch"
    assert [step for step, changed in enumerate(watch.changed) if not changed] == watch.hit
    said = capsys.readouterr().err
    assert said.count("the step is passed over") == 3 and "(3 of callbacks.skip_non_finite=3)" in said
    assert f"step {watch.hit[0]} (epoch 0): the loss is nan, of the rows " in said and f"{POISONED}," in said
    last = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert last["callbacks"]["StopOnNonFinite"] == {"passed": 3}
    counts = {int(state["step"]) for state in last["optimizer_states"][0]["state"].values()}
    assert counts == {12 - 3}, "the optimiser has not counted these steps"
    with open(tmp_path / "metrics.csv", newline="") as file:
        passed = [(int(row["step"]), float(row["train/passed_over"])) for row in csv.DictReader(file)
                  if row["train/passed_over"]]  # fmt: skip
    assert passed == [(step, count + 1.0) for count, step in enumerate(watch.hit)]


@pytest.mark.usefixtures("poisoned")
def test_no_more_steps_than_allowed_are_passed_over_also_across_a_restart(
    small_zoo: Path, tmp_path: Path, watch: Watch
) -> None:
    more = ["trainer.max_epochs=3", "callbacks.skip_non_finite=1"]
    with pytest.raises(NonFiniteError, match=r"epoch 1.*nan.*after 1 steps that were passed over.*verify_zoo"):
        train.run(config(small_zoo, *more), tmp_path)
    resumed = build.continued(config(small_zoo, *more), tmp_path)
    with pytest.raises(NonFiniteError, match=r"epoch 1.*after 1 steps"):
        train.run(resumed, tmp_path)
    assert len(watch.hit) == 3


@pytest.mark.usefixtures("poisoned")
def test_of_accumulated_batches_the_guilty_one_is_named(small_zoo: Path, tmp_path: Path) -> None:
    more = ["trainer.max_epochs=1", "trainer.accumulate_grad_batches=4"]
    with pytest.raises(NonFiniteError, match=rf"step 0 .*the loss is nan, of the rows ([^;]*\b{POISONED}\b)") as error:
        train.run(config(small_zoo, *more), tmp_path)
    rows = str(error.value).partition("of the rows ")[2].partition(".")[0].split(", ")
    assert len(rows) == 16


def test_a_norm_that_overflows_is_told_as_such(
    small_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradients are finite, so there is none to name."""
    original: Loss = Classification.loss
    monkeypatch.setattr(Classification, "loss", lambda *given: original(*given) * 1e25)
    with pytest.raises(NonFiniteError, match="every gradient is finite, but too large for their norm to be, of the r"):
        train.run(config(small_zoo, "trainer.max_epochs=1"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [0, 4])
def test_two_ranks_take_the_verdict_together(small_zoo: Path, tmp_path: Path, allowed: int) -> None:
    """One rank's loss is not finite: both say the same error at once, or both pass over the step."""
    script = tmp_path / "poisoned.py"
    script.write_text(ONE_RANK.format(root=str(ROOT), row=POISONED))
    more = ["data.batch_size=8", "trainer.max_epochs=2", f"callbacks.skip_non_finite={allowed}"]
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script))
    folder = tmp_path / "run"
    code, said = end(start(*options(small_zoo, *TWO, *more, f"folder={folder}"), program=torchrun), timeout=200)
    if allowed:
        assert code == 0, said
        assert said.count("the step is passed over") == 2, "once in each epoch, said by the first rank alone"
        weights = read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
        assert all(tensor.isfinite().all() for tensor in weights.values())
        return
    assert code != 0
    kept = [(folder / "failed" / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    errors = {text[text.index("NonFiniteError") :] for text in kept}
    assert len(errors) == 1, "the same words on both ranks"
    (words,) = errors
    assert "the loss is nan" in words and words.count("on rank") == 1
    rows = words.partition("of the rows ")[2].partition(".")[0].split(", ")
    assert str(POISONED) in rows and len(rows) == 8, "those of one rank"
