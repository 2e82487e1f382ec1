"""What W&B is told: read back from the files of offline runs, which ``wandb sync`` would send."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import pytest
import wandb_file
from hydra import compose, initialize_config_dir

import train
from wsl import run_config
from wsl.zoo import Zoo

CONF = Path(__file__).parents[1] / "conf"


def config(zoo: Path, *more: str) -> run_config.RunConfig:
    fixed = [f"data.path={zoo}", "data.build=''", "compare=[]", "encoder=statnn", "logger=wandb", "data.batch_size=16"]
    fixed += ["trainer.progress=none", "trainer.log_every_n_steps=1", "scheduler=constant", *more]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return run_config.config(compose("train", fixed))


def complete(file: Path) -> wandb_file.Run:
    """The run, when W&B's own process has written the last record."""
    deadline = time.monotonic() + 60
    while (told := wandb_file.read(file)).exit_code is None:
        assert time.monotonic() < deadline, told
        time.sleep(0.1)
    return told


def test_an_offline_run_tells_all_and_a_resumed_one_is_the_same(small_zoo: Path, tmp_path: Path) -> None:
    first = train.run(config(small_zoo, "trainer.max_epochs=2"), tmp_path)
    identity = (tmp_path / "wandb_id.txt").read_text().strip()
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    told = complete(file)
    assert told.identity == identity and told.exit_code == 0

    assert told.config["encoder"]["name"] == "statnn" and told.config["seed"] == 0
    assert told.config["data"]["path"] == str(small_zoo), "the resolved config"

    metrics = {key: value for row in told.history for key, value in row.items()}
    assert metrics["test/accuracy"] == pytest.approx(first.test["accuracy"])
    with open(tmp_path / "metrics.csv", newline="") as rows:
        losses = [float(row["train/loss_step"]) for row in csv.DictReader(rows) if row["train/loss_step"]]
    assert [row["train/loss_step"] for row in told.history if "train/loss_step" in row] == pytest.approx(losses)
    assert told.summary["test/accuracy"] == pytest.approx(first.test["accuracy"])

    shown = json.loads((file.parent / "files" / metrics["predictions/path"]).read_text())
    assert shown["columns"] == ["row", "target", "predicted", "probability"] and len(shown["data"]) == 16
    right = sum(target == predicted for _, target, predicted, _ in shown["data"]) / 16
    assert right == pytest.approx(first.test["accuracy"])
    assert {int(row[0]) for row in shown["data"]} == set(Zoo(small_zoo).splits["test"].tolist())
    assert metrics["figures/confusion_matrix/_type"] == "images/separated"

    model = told.artifacts["model"]
    assert {entry.path for entry in model.manifest.contents} == {"model.safetensors", "model.json"}
    assert {entry.size for entry in model.manifest.contents} >= {(tmp_path / "model.safetensors").stat().st_size}

    with initialize_config_dir(str(CONF), version_base="1.3"):
        longer = run_config._resumed(tmp_path, [f"resume={tmp_path}", "trainer.max_epochs=3"])
    train.run(longer, tmp_path)
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    again = complete(files[-1])
    assert len(files) == 2 and again.identity == identity == files[-1].stem.removeprefix("run-")
    steps = [row["trainer/global_step"] for row in again.history if "trainer/global_step" in row]
    assert min(steps) >= 8 and steps == sorted(steps), "it goes on where the first ended"


def test_the_id_is_there_before_the_first_step(
    small_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedError(Exception):
        pass

    def stopped(*_: object) -> None:
        assert (tmp_path / "wandb_id.txt").read_text().strip()
        raise StoppedError

    monkeypatch.setattr("wsl.tasks.base.Task.training_step", stopped)
    with pytest.raises(StoppedError):
        train.run(config(small_zoo, "trainer.max_epochs=1"), tmp_path)


def test_a_damaged_record_is_seen(small_zoo: Path, tmp_path: Path) -> None:
    """The reader's own negative control."""
    path = tmp_path / "run.wandb"
    content = b":W&B\xe1\xbe\x00" + b"\0\0\0\0\x05\x00\x01hello"
    path.write_bytes(content)
    with pytest.raises(AssertionError, match="damaged at byte 7"):
        list(wandb_file.records(path))
