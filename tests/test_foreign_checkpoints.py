"""Checkpoints of another model, release or place, and run folders that can no longer be written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from ranks_of_runs import ROOT, curve, options, weights
from unprivileged import unprivileged

import train
from wsl import build
from wsl.checkpoint import FORMAT, AtomicCheckpointIO, CheckpointError, previous_generation, read_checkpoint
from wsl.errors import UserError
from wsl.other_model import OtherModelError, differences
from wsl.results import Result
from wsl.run_folder import RunFolderError


def config(zoo: Path, *more: str) -> build.RunConfig:
    fixed = ["data.batch_size=16", "encoder=mlp", "encoder.hidden=[8]", "scheduler=constant"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return build.config(compose("train", options(zoo, *fixed, *more)))


def go_on(zoo: Path, folder: Path, *more: str) -> Result:
    """The same command again, for one epoch more."""
    return train.run(build.continued(config(zoo, "trainer.max_epochs=3", *more), folder), folder)


@pytest.fixture(scope="module")
def begun(small_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder after two epochs."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    train.run(config(small_zoo, "trainer.max_epochs=2"), folder)
    return folder


@pytest.fixture
def folder(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run"))


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def test_the_checkpoint_of_another_model(small_zoo: Path, folder: Path, tmp_path: Path) -> None:
    train.run(config(small_zoo, "trainer.max_epochs=1", "encoder.hidden=[12,5]"), tmp_path / "other")
    shutil.copy(last(tmp_path / "other"), last(folder))
    with pytest.raises(OtherModelError) as error:
        go_on(small_zoo, folder)
    said = str(error.value)
    assert str(last(folder)) in said and "start a new run" in said
    wide, narrow = weights(tmp_path / "other"), read_checkpoint(previous_generation(last(folder)))["state_dict"]
    changed = [name for name in wide if name in narrow and wide[name].shape != narrow[name].shape]
    added = [name for name in wide if name not in narrow]
    assert changed and added
    for name in changed:
        assert (
            f"{name}: there {list(wide[name].shape)} float32, in this model {list(narrow[name].shape)} float32" in said
        )
    assert all(f"{name}: there {list(wide[name].shape)} float32, in this model absent" in said for name in added)
    last(folder).unlink()  # as the message says
    with pytest.warns(UserWarning, match=r"going on from .*previous\.ckpt"):
        assert go_on(small_zoo, folder).epochs == 3


def test_few_of_many_differences_are_shown() -> None:
    lines = differences({str(i): torch.ones(i + 1) for i in range(40)}, {"3": torch.ones(4)}).splitlines()
    assert len(lines) == 7 and lines[-1] == "  … and 33 more"
    assert differences({"a": torch.ones(2)}, {"a": torch.zeros(2)}) == ""


def other_type(checkpoint: dict[str, Any]) -> None:
    checkpoint["state_dict"] = {name: tensor.double() for name, tensor in checkpoint["state_dict"].items()}


def later_format(checkpoint: dict[str, Any]) -> None:
    checkpoint["wsl"] = {"format": FORMAT + 1, "release": "9.9"}


FOREIGN: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "numbers of another type": (other_type, r"(?s)another type.*there \[8\] float64, in this model \[8\] float32"),
    "a later format": (
        later_format,
        rf"release 9\.9 in format {FORMAT + 1}; this release.* up to {FORMAT}.*go on with",
    ),
    "a mark of somebody else": (lambda checkpoint: checkpoint.update(wsl=[3]), r"in format None; this release"),
    "no tensor": (
        lambda checkpoint: checkpoint["state_dict"].update({next(iter(checkpoint["state_dict"])): 3}),
        r"(?s)another type.*there no tensor but int, in this model \[",
    ),
    "weights alone": (lambda checkpoint: checkpoint.pop("loops"), r"no checkpoint of a run \(loops missing\)"),
    "anything": (lambda checkpoint: checkpoint.clear(), r"no checkpoint of a run \(state_dict, global_step, "),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_checkpoint_of_this_release(small_zoo: Path, folder: Path, name: str) -> None:
    change, words = FOREIGN[name]
    checkpoint = read_checkpoint(last(folder))
    change(checkpoint)
    torch.save(checkpoint, last(folder))
    numbers = curve(folder)
    with pytest.raises(UserError, match=words) as error:
        go_on(small_zoo, folder)
    assert str(last(folder)) in str(error.value)
    assert name in ("numbers of another type", "no tensor") or curve(folder) == numbers, (
        "what was logged is not touched"
    )


def test_a_list_is_no_checkpoint(small_zoo: Path, folder: Path) -> None:
    torch.save([torch.ones(2)], last(folder))
    with pytest.raises(CheckpointError, match="no checkpoint of a run"):
        go_on(small_zoo, folder)


def test_a_run_folder_can_be_moved(small_zoo: Path, folder: Path, tmp_path: Path) -> None:
    """Lightning keeps full paths: without care the best checkpoint so far would be forgotten."""
    before = Result.read(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    found = go_on(small_zoo, moved, "optimizer.lr=0.003")
    state = next(s for key, s in read_checkpoint(last(moved))["callbacks"].items() if "val/" in key)
    assert found.val["accuracy"] >= before.val["accuracy"]
    assert Path(state["best_model_path"]).parent == moved / "checkpoints" and Path(state["best_model_path"]).exists()
    train.run(config(small_zoo, "trainer.max_epochs=3"), tmp_path / "whole")
    assert Result.read(tmp_path / "whole").test == found.test and Result.read(tmp_path / "whole").epoch == found.epoch


class AtStep(pl.Callback):
    """Does something after the sixth step, within the second epoch."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == 6:
            self.action()


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    original = build.trainer

    def plan(action: Callable[[], None]) -> None:
        def trainer(*given: object) -> pl.Trainer:
            made = original(*given)  # type: ignore[arg-type]
            made.callbacks.append(AtStep(action))  # type: ignore[attr-defined]
            return made

        monkeypatch.setattr(build, "trainer", trainer)

    return plan


Plan = Callable[[Callable[[], None]], None]


def test_a_folder_that_becomes_read_only(small_zoo: Path, tmp_path: Path, at_step: Plan) -> None:
    folder = tmp_path / "run"
    at_step(lambda: last(folder).parent.chmod(0o555))
    try:
        with (
            unprivileged(),
            pytest.raises(CheckpointError, match=r"last\.ckpt: .*Permission denied.*make the folder wr"),
        ):
            train.run(config(small_zoo, "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=3"), folder)
    finally:
        last(folder).parent.chmod(0o755)
    assert read_checkpoint(last(folder))["global_step"] == 4, "that of the first epoch"
    assert [p.name for p in last(folder).parent.iterdir()] == ["last.ckpt"]
    at_step(lambda: None)
    assert go_on(small_zoo, folder, "trainer.check_val_every_n_epoch=3").epochs == 3


def test_a_table_of_metrics_that_becomes_read_only(small_zoo: Path, tmp_path: Path, at_step: Plan) -> None:
    at_step(lambda: (tmp_path / "metrics.csv").chmod(0o444))
    with unprivileged(), pytest.raises(RunFolderError, match=r"metrics\.csv: Permission denied"):
        train.run(config(small_zoo, "trainer.max_epochs=3"), tmp_path)
    assert read_checkpoint(last(tmp_path))["global_step"] == 4


@pytest.mark.parametrize(("gone", "words"), [
    (".", r"run/metrics\.csv: the run folder is gone.*another folder"),
    ("checkpoints", r"last\.ckpt: its folder is gone; start the run again in another folder"),
])  # fmt: skip
def test_a_folder_that_vanishes_is_not_made_again(
    small_zoo: Path, tmp_path: Path, at_step: Plan, gone: str, words: str
) -> None:
    """A run that went on without its config could not be resumed, one without its best checkpoint not be tested."""
    folder = tmp_path / "run"
    at_step(lambda: shutil.rmtree(folder / gone))
    with pytest.raises(UserError, match=words):
        train.run(config(small_zoo, "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=3"), folder)
    assert not (folder / gone).exists()


def test_the_only_best_checkpoint_is_never_removed(
    small_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    original = AtomicCheckpointIO.remove_checkpoint

    def remove(self: AtomicCheckpointIO, path: Any) -> None:
        others = [p for p in Path(path).parent.glob("best-*.ckpt") if p != Path(path)]
        assert others and all(read_checkpoint(p)["state_dict"] for p in others), "a better one is whole already"
        removed.append(Path(path).name)
        original(self, path)

    monkeypatch.setattr(AtomicCheckpointIO, "remove_checkpoint", remove)
    train.run(config(small_zoo, "trainer.max_epochs=12", "optimizer.lr=0.003"), tmp_path)
    assert len(removed) >= 2, "the run got better"
    assert len(list((tmp_path / "checkpoints").glob("best-*.ckpt"))) == 1
