"""The main job on a small zoo: what it leaves behind, that it repeats, resumes, and stops when it must."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir

import train
from wsl import build, report, run_config, run_folder
from wsl.batch import WeightBatch
from wsl.callbacks.finite import NonFiniteError
from wsl.checkpoint import CheckpointError, read_checkpoint
from wsl.config import ConfigError
from wsl.results import Result
from wsl.run_folder import RunFolderError
from wsl.spec import mlp_spec
from wsl.zoo import Zoo, ZooWriter

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"


def config(zoo: Path, *overrides: str) -> build.RunConfig:
    fixed = [f"data.path={zoo}", "data.build=''", "data.batch_size=16", "logger=csv", "trainer.progress=none"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build.config(compose("train", [*fixed, "compare=[]", "encoder=statnn", *overrides]))


def graph_config(*overrides: str) -> build.RunConfig:
    """A run on the embedded graph instead of a zoo."""
    fixed = ["data.path=digits_graph", "data.split=random", "compare=[]", "logger=csv"]
    fixed += ["trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build.config(compose("train", [*overrides, *fixed]))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]


def test_a_run_leaves_what_the_readme_says(small_zoo: Path, tmp_path: Path) -> None:
    run = config(small_zoo, "trainer.max_epochs=30", "optimizer.lr=1e-2", "logger=wandb")
    result = train.run(run, tmp_path)
    assert result.test["accuracy"] > 0.9, "the classes differ in the size of their weights"
    assert Result.read(tmp_path) == result
    expected = {"config.yaml", "result.json", "provenance.json", "metrics.csv", "model.safetensors", "model.json"}
    assert expected <= {p.name for p in tmp_path.iterdir()}
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        "learning_curve.png", "confusion_matrix.png", "inrs.png",
    }  # fmt: skip
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (tmp_path / "figures").iterdir())
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["encoder"]["name"] == "statnn"
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance[0]["data"]["digest"] == Zoo(small_zoo).digest
    identity = (tmp_path / "wandb_id.txt").read_text().strip()
    assert list((tmp_path / "wandb").glob(f"offline-run-*{identity}")), "an offline W&B run with our id"
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert "val/accuracy" in (csv.DictReader(file).fieldnames or [])


def test_the_exported_encoder_says_the_same(small_zoo: Path, tmp_path: Path) -> None:
    run = config(small_zoo, "trainer.max_epochs=2", "encoder=ng_gnn", "encoder.probes=3", "encoder.width=8")
    train.run(run, tmp_path)
    encoder = build.exported_encoder(tmp_path)
    best = next((tmp_path / "checkpoints").glob("best-*.ckpt"))
    state = {k.removeprefix("encoder."): v for k, v in read_checkpoint(best)["state_dict"].items()}
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_an_exported_wrapper_is_rebuilt_with_its_inner_encoder(small_zoo: Path, tmp_path: Path) -> None:
    inner = ["encoder@encoder.encoder=unf", "encoder.encoder.channels=4", "encoder.encoder.head=[8]"]
    run = config(small_zoo, "encoder=canonical", *inner, "trainer=debug", "trainer.progress=none")
    train.run(run, tmp_path)
    encoder = build.exported_encoder(tmp_path)
    assert type(encoder).__name__ == "Canonical" and type(encoder.encoder).__name__ == "UNF"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        same = run_config._resumed(tmp_path, [f"resume={tmp_path}"])
        assert same.encoder == run.encoder
        with pytest.raises(RunFolderError, match="encoder"):
            run_config._resumed(tmp_path, [f"resume={tmp_path}", "encoder@encoder.encoder=ng_gnn"])


def test_same_seed_same_numbers_other_seed_other_numbers(small_zoo: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train.run(config(small_zoo, f"seed={seed}", "trainer.max_epochs=2", "encoder.dropout=0.3"), tmp_path / name)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)
    assert (tmp_path / "a" / "metrics.csv").read_text() == (tmp_path / "b" / "metrics.csv").read_text()


@pytest.mark.parametrize("scheduler", ["warm_up", "plateau"])
def test_a_run_stopped_between_epochs_resumes_bit_equal(small_zoo: Path, tmp_path: Path, scheduler: str) -> None:
    options = ["encoder.dropout=0.3", f"scheduler={scheduler}"]
    options += ["scheduler.patience=1", "optimizer.lr=0.03"] if scheduler == "plateau" else []
    train.run(config(small_zoo, *options, "trainer.max_epochs=4"), tmp_path / "whole")
    train.run(config(small_zoo, *options, "trainer.max_epochs=2"), tmp_path / "part")
    resumed = config(small_zoo, *options, "trainer.max_epochs=4").model_copy(update={"resume": str(tmp_path / "part")})
    train.run(resumed, tmp_path / "part")
    whole, part = weights(tmp_path / "whole"), weights(tmp_path / "part")
    assert all(torch.equal(whole[k], part[k]) for k in whole)
    assert (tmp_path / "whole" / "metrics.csv").read_text() == (tmp_path / "part" / "metrics.csv").read_text()


def resumed(folder: Path, *given: str) -> build.RunConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return run_config._resumed(folder, [f"resume={folder}", *given])


def test_a_run_folder_from_before_sparsity_can_be_resumed(small_zoo: Path, tmp_path: Path) -> None:
    start = config(small_zoo, "trainer.max_epochs=1", "encoder=mlp")
    run_folder.write_config(tmp_path, {key: v for key, v in start.plain().items() if key != "sparsity"})
    assert resumed(tmp_path).sparsity.name == "none"
    with pytest.raises(RunFolderError, match=r"sparsity\.name: the run has 'none', you gave 'unifews'"):
        resumed(tmp_path, "sparsity=unifews")


def test_resuming_takes_what_is_given_and_nothing_else(small_zoo: Path, tmp_path: Path) -> None:
    start = config(small_zoo, "trainer.max_epochs=2", "scheduler=constant", "encoder=mlp", "encoder.dropout=0.1")
    first = train.run(start, tmp_path)
    again = resumed(tmp_path, "trainer.progress=lines")
    assert again.model_copy(update={"resume": None, "trainer": start.trainer}) == start
    assert train.run(again, tmp_path) == first, "a finished run is read, not made again"
    longer = train.run(resumed(tmp_path, "trainer.max_epochs=3", "encoder=mlp", "encoder.dropout=0.1"), tmp_path)
    assert longer.epochs == 3 and longer.seconds > first.seconds
    starts = json.loads((tmp_path / "provenance.json").read_text())
    assert len(starts) == 2
    assert run_config._resumed(tmp_path, ["compare=[]"]).compare == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["optimizer.lr=0.5"], ["optimizer.lr", "0.5", "0.003"]),
        (["encoder=mlp"], ["encoder.name", "mlp", "statnn"]),
        (["trainer.max_epochs=9"], ["trainer.max_epochs", "9", "1"]),  # the cosine is planned over the epochs
        (["compare=[mlp]"], ["compare", "mlp"]),
        (["trainer.devices=2"], ["trainer.devices: the run has 1, you gave 2"]),  # rows would fall into other batches
        (["data.workers=2"], ["data.workers: the run has 0, you gave 2"]),
        (["encoder.widht=3"], ["unknown key encoder.widht=3", "dropout"]),
    ],
)
def test_resuming_under_another_config_is_refused(
    small_zoo: Path, tmp_path: Path, given: list[str], words: list[str]
) -> None:
    run_folder.write_config(tmp_path, config(small_zoo, "trainer.max_epochs=1").plain())
    with pytest.raises((RunFolderError, ConfigError)) as error:
        resumed(tmp_path, *given)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_run_without_a_checkpoint_is_not_resumed(small_zoo: Path, tmp_path: Path) -> None:
    run_folder.write_config(tmp_path, config(small_zoo).plain())
    with pytest.raises(CheckpointError, match="start it again without resume"):
        train.run(resumed(tmp_path), tmp_path)


def test_a_run_is_not_resumed_on_other_data(small_zoo: Path, tmp_path: Path) -> None:
    train.run(config(small_zoo, "trainer.max_epochs=1", "scheduler=constant"), tmp_path)
    starts = json.loads((tmp_path / "provenance.json").read_text())
    starts[0]["data"]["digest"] = "0" * 64
    (tmp_path / "provenance.json").write_text(json.dumps(starts))
    for more in ([], ["trainer.max_epochs=2"]):  # nor is a finished one read
        with pytest.raises(RunFolderError, match=r"has changed since .*digest"):
            train.run(resumed(tmp_path, *more), tmp_path)


def test_a_finished_run_is_read_though_its_zoo_is_gone(small_zoo: Path, tmp_path: Path) -> None:
    zoo = tmp_path / "zoo.h5"
    zoo.write_bytes(small_zoo.read_bytes())
    first = train.run(config(zoo, "trainer.max_epochs=1"), tmp_path / "run")
    zoo.unlink()
    assert train.run(resumed(tmp_path / "run"), tmp_path / "run") == first and first.digest


def test_a_run_that_died_before_its_export_is_not_finished(
    small_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RunFolderError("no space left")

    start = config(small_zoo, "trainer.max_epochs=2")
    with monkeypatch.context() as patched:
        patched.setattr(report, "save_encoder", full)
        with pytest.raises(RunFolderError, match="no space left"):
            train.run(start, tmp_path / "run")
    again = train.run(resumed(tmp_path / "run"), tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").exists() and (tmp_path / "run" / "figures").exists()
    assert again.test == train.run(start, tmp_path / "whole").test


def test_a_run_without_validation_is_refused(small_zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="check_val_every_n_epoch=3"):
        config(small_zoo, "trainer.check_val_every_n_epoch=3", "trainer.max_epochs=2")
    with pytest.raises(ConfigError, match="without a validation"):
        train.run(config(small_zoo, "trainer.max_steps=1"), tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_loss_stops_the_run_and_names_step_and_rows(
    small_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    poisoned = 37
    from wsl.data.zoo_data import RowDataset

    original = RowDataset.__getitem__

    def getitem(self: RowDataset, positions: list[int]) -> WeightBatch:
        batch = original(self, positions)
        hit = (batch.row_ids == poisoned) & (len(positions) == 16)  # in training, not in the statistics
        values = batch.values.clone()
        values[hit] = value
        return batch.with_values(values)

    monkeypatch.setattr(RowDataset, "__getitem__", getitem)
    with pytest.raises(NonFiniteError) as error:
        train.run(config(small_zoo, "trainer.max_epochs=3", "encoder=mlp"), tmp_path)
    assert "step" in str(error.value) and str(poisoned) in str(error.value)


def test_splits_of_a_single_row(tmp_path: Path) -> None:
    spec = mlp_spec((2, 3, 1), "relu")
    with ZooWriter(tmp_path / "zoo.h5", spec, 4, {}) as zoo:
        zoo.write(0, torch.randn(4, spec.numel).numpy())
        zoo.set_columns({"label": [0, 1, 1, 0]})
        zoo.set_splits({"train": [0, 1], "val": [2], "test": [3]})
    result = train.run(config(tmp_path / "zoo.h5", "trainer.max_epochs=2"), tmp_path / "run")
    assert result.test["accuracy"] in (0.0, 1.0) and result.epochs == 2


def test_comparison_table_and_figure(small_zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = config(small_zoo, "trainer=debug", "trainer.progress=none", "compare=[mlp,probe_mlp]")
    results = [train.run(run, tmp_path)]
    results += [train.run(other, tmp_path / "compare" / name) for name, other in run.compared().items()]
    report.finish(tmp_path, results)
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("statnn", "mlp", "probe_mlp", "test accuracy", str(tmp_path)))
    assert (tmp_path / "figures" / "comparison.png").exists()
    assert [r.encoder for r in Result.read(tmp_path).compared] == ["mlp", "probe_mlp"]


def test_without_wandb_the_csv_remains(
    small_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    train.run(config(small_zoo, "trainer=debug", "trainer.progress=none", "logger=wandb"), tmp_path)
    assert "wandb is not installed" in capsys.readouterr().err
    assert (tmp_path / "metrics.csv").exists() and not (tmp_path / "wandb").exists()


@pytest.mark.parametrize("option", ["optimizer=adam", "optimizer=sgd", "scheduler=constant"])
def test_optimisers_and_schedulers(small_zoo: Path, tmp_path: Path, option: str) -> None:
    train.run(config(small_zoo, "trainer=debug", "trainer.progress=none", option), tmp_path)
    assert (tmp_path / "result.json").exists()


def test_plateau_steps_on_epochs_with_a_validation(small_zoo: Path, tmp_path: Path) -> None:
    options = ["scheduler=plateau", "scheduler.patience=1", "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=8"]
    train.run(config(small_zoo, *options, "optimizer.lr=1e-6"), tmp_path)
    (schedule,) = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["lr_schedulers"]
    assert schedule["last_epoch"] == 4, "one step for each of four validations"


def test_precision_clipping_and_accumulation(small_zoo: Path, tmp_path: Path) -> None:
    options = ["trainer.precision=bf16-mixed", "trainer.gradient_clip_val=0.1", "trainer.accumulate_grad_batches=2"]
    train.run(config(small_zoo, "trainer=debug", "trainer.progress=none", "encoder=ng_gnn", *options), tmp_path)
    assert Result.read(tmp_path).epochs == 1


def test_images_can_be_augmented_in_a_run(small_zoo: Path, tmp_path: Path) -> None:
    options = ["data/augment=inr", "data.augment.mixup=0.2", "data.augment.views=2", "data.augment.symmetries=[phase]"]
    result = train.run(config(small_zoo, *options, "trainer.max_epochs=1"), tmp_path)
    assert 0 <= result.test["accuracy"] <= 1


def experiments() -> list[str]:
    return sorted(f.stem for f in (CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", experiments())
def test_every_experiment_composes_and_runs_two_steps(
    name: str, small_zoo: Path, cnn_zoo: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The experiment's own data kind, encoder, task, optimiser and schedule; only size and place are changed."""
    short = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.check_val_every_n_epoch=1"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = build.config(compose("train", [f"experiment={name}", *short, "trainer.progress=none", "logger=csv"]))
    changes: dict[str, object] = {"compare": {}, "zoo": None}
    if run.data.name == "zoo":
        path = cnn_zoo if run.task.name == "generalization" else small_zoo
        changes["data"] = run.data.model_copy(update={"path": str(path), "build": ""})
    elif run.data.path not in ("digits_graph",):
        shared: Path = request.getfixturevalue("shared_data")  # skips where there are no graphs
        changes["data"] = run.data.model_copy(update={"path": str(shared / f"{name}.npz")})
    result = train.run(run.model_copy(update=changes), tmp_path)
    low, high = (0, 1e4) if run.task.name == "editing" else (-1, 1)  # 100 times a squared error, or a share
    assert result.epochs == 1 and low <= result.test[result.metric] <= high


def test_experiments_compare_and_are_documented() -> None:
    for name in experiments():
        assert (CONF / "experiment" / f"{name}.yaml").read_text().startswith("# @package _global_\n# "), name
