"""Sparsification in whole runs: reports, reloading, resuming, baselines, refusals."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

import train
from wsl import build
from wsl.checkpoint import read_checkpoint
from wsl.config import ConfigError
from wsl.nn.sparse.dials import Dials
from wsl.sparsity import SparsityError

CONF = Path(__file__).parents[2] / "conf"


def config(*overrides: str) -> build.RunConfig:
    fixed = ["experiment=unifews_digits", "logger=csv", "trainer.progress=none", "encoder.hidden=16"]
    fixed += ["trainer.max_epochs=6", "trainer.check_val_every_n_epoch=1"]
    fixed += ["sparsity.ramp=2", "sparsity.monotone=3", "sparsity.freeze=5"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build.config(compose("train", [*fixed, *overrides]))


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def state(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.mark.parametrize("encoder", ["gcn", "gatv2_node"])
def test_a_run_reports_and_reloads_the_sparse_model(tmp_path: Path, encoder: str) -> None:
    run = config(f"encoder={encoder}", "encoder.norm=batch", "encoder.dropout=0.2")
    result = train.run(run, tmp_path)
    table = rows(tmp_path / "sparsity.csv")
    assert [float(row["epoch"]) for row in table] == list(range(6))
    assert float(table[-1]["edge_sparsity"]) == pytest.approx(0.9, abs=1e-3)
    assert float(table[-1]["weight_sparsity"]) == pytest.approx(0.8, abs=1e-2)
    assert int(float(table[-1]["macs"])) < 0.3 * int(float(table[-1]["dense_macs"]))
    assert {"val_true", "val_locked", "val_full", "seconds"} <= set(table[0])
    assert all(float(r["measured"]) <= float(r["messages"]) * 1.001 for r in rows(tmp_path / "sparsity_layers.csv"))
    assert (tmp_path / "figures" / "sparsity.png").read_bytes().startswith(b"\x89PNG")
    assert result.epoch >= 1, "an epoch before the target was reached is not chosen"

    data, exported = build.data(run), build.exported_encoder(tmp_path)
    nodes = data.rows["test"]
    right = exported(data.batch("test")).argmax(-1)[nodes] == data.graph.y[nodes]
    assert float(right.double().mean()) == pytest.approx(result.test["accuracy"])
    dials = Dials(exported)
    assert [sieve.kept is not None for sieve in (*dials.edges, *dials.weights)] == [True] * (len(dials))
    dials.view("full")
    assert not torch.equal(exported(data.batch("test")).argmax(-1)[nodes] == data.graph.y[nodes], right)


@pytest.mark.parametrize("choice", ["message", "drop_edge", "doubt"])
def test_a_resumed_run_is_the_same_sparse_model(tmp_path: Path, choice: str) -> None:
    options = [f"sparsity.edge_choice={choice}", "sparsity.warm_up=2", "sparsity.warm_up_edges=loops"]
    options += ["sparsity.rewind=true", "sparsity.placement=first"] if choice == "doubt" else []
    train.run(config(*options, "sparsity.freeze=5"), tmp_path / "whole")
    for stop in (1, 4):
        part = tmp_path / f"part{stop}"
        short = config(*options, "sparsity.freeze=5")
        short = short.model_copy(update={"trainer": short.trainer.model_copy(update={"max_steps": stop})})
        train.run(short, part)
        train.run(config(*options).model_copy(update={"resume": str(part)}), part)
        whole, again = state(tmp_path / "whole"), state(part)
        assert set(whole) == set(again)
        assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_warm_up_is_dense_and_baselines_are_as_sparse(tmp_path: Path) -> None:
    for choice in ("random", "magnitude"):
        options = [f"sparsity.edge_choice={choice}", f"sparsity.weight_choice={choice}", "sparsity.warm_up=2"]
        train.run(config(*options), tmp_path / choice)
        table = rows(tmp_path / choice / "sparsity.csv")
        assert [float(row["edge_sparsity"]) for row in table[:2]] == [0.0, 0.0]
        assert float(table[-1]["edge_sparsity"]) == pytest.approx(0.9, abs=1e-3)
        assert float(table[-1]["weight_sparsity"]) == pytest.approx(0.8, abs=1e-2)


def test_a_sparse_model_is_refused_another_graph(tmp_path: Path) -> None:
    train.run(config("trainer.max_epochs=6"), tmp_path)
    exported, other = build.exported_encoder(tmp_path), build.data(config("data.neighbours=3"))
    with pytest.raises(SparsityError, match=r"keeps some of .* edges, the graph has"):
        exported(other.batch("test"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sparsity.edge_target=1.0"], ["edge_target=1.0", "below 1"]),
        (["sparsity.weight_target=-0.5"], ["weight_target=-0.5"]),
        (["sparsity.edge_target=null", "sparsity.edge_threshold=-1.0"], ["edge_threshold=-1.0", "at least 0"]),
        (["sparsity.edge_choice=doubt"], ["edge_choice=doubt", "warm_up"]),
        (["sparsity.edge_choice=random", "sparsity.edge_target=null"], ["edge_choice=random", "edge_target"]),
        (["sparsity.weight_choice=random", "sparsity.weight_target=null"], ["weight_choice=random", "weight_target"]),
        (["encoder=gat"], ["GAT", "nothing that can be pruned"]),
        (["sparsity.warm_up=6"], ["warm_up=6", "max_epochs=6"]),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, overrides: list[str], words: list[str]) -> None:
    extra = ["~encoder.norm", "~encoder.input_dropout"] if overrides == ["encoder=gat"] else []
    with pytest.raises(SparsityError) as error:
        train.run(config(*overrides, *extra), tmp_path)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_compiled_encoders_are_refused() -> None:
    run = config("compile=true")
    with pytest.raises(ConfigError, match=r"compile=true.*sparsity=none"):
        build.encoder(run, build.data(run))


# -- networks ---------------------------------------------------------------------------------------------------------


def zoo_config(zoo: Path, *overrides: str) -> build.RunConfig:
    fixed = [f"data.path={zoo}", "data.build=''", "data.batch_size=16", "logger=csv", "trainer.progress=none"]
    fixed += ["compare=[]", "sparsity=unifews", "trainer.max_epochs=3", "encoder.width=8", "encoder.layers=2"]
    fixed += ["encoder.probes=0", "encoder.fourier_features=4"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build.config(compose("train", [*fixed, *overrides]))


@pytest.mark.parametrize("encoder", ["ng_gnn", "gatv2"])
def test_encoders_of_networks_are_pruned_and_reloaded(small_zoo: Path, tmp_path: Path, encoder: str) -> None:
    options = [f"encoder={encoder}", "sparsity.edge_target=0.5", "sparsity.weight_target=0.6"]
    run = zoo_config(small_zoo, *options)
    result = train.run(run, tmp_path)
    table = rows(tmp_path / "sparsity.csv")
    assert float(table[-1]["edge_sparsity"]) == pytest.approx(0.5, abs=0.05)
    assert float(table[-1]["weight_sparsity"]) == pytest.approx(0.6, abs=0.02)
    assert {"val_true", "val_full"} <= set(table[0]) and "val_locked" not in table[0]
    assert (tmp_path / "figures" / "sparsity.png").read_bytes().startswith(b"\x89PNG")

    data, exported = build.data(run), build.exported_encoder(tmp_path)
    data.setup("test")
    outputs = [(exported(batch).argmax(-1) == batch.target).double() for batch in data.test_dataloader()]
    assert float(torch.cat(outputs).mean()) == pytest.approx(result.test["accuracy"])
    dials = Dials(exported)
    assert len(dials.networks) == 2 and all(sieve.rule is not None for sieve in dials.networks)


def test_thresholds_prune_networks_by_default(small_zoo: Path, tmp_path: Path) -> None:
    train.run(zoo_config(small_zoo, "encoder=ng_gnn"), tmp_path)
    last = rows(tmp_path / "sparsity.csv")[-1]
    assert 0.1 < float(last["edge_sparsity"]) < 1.0 and 0.1 < float(last["weight_sparsity"]) < 1.0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sparsity.pruned_edge=zero", ["pruned_edge=zero", "no aggregation"]),
        ("sparsity.warm_up_edges=loops", ["warm_up_edges=loops", "no self loops"]),
    ],
)
def test_what_networks_cannot_have_is_refused(small_zoo: Path, tmp_path: Path, override: str, words: list[str]) -> None:
    with pytest.raises(SparsityError) as error:
        train.run(zoo_config(small_zoo, "encoder=ng_gnn", override), tmp_path)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_mixed_zoo_is_pruned_under_the_metric_of_its_task(varied_zoo: Path, tmp_path: Path) -> None:
    options = ["task=generalization", "data.target=test_accuracy", "encoder=ng_gnn", "encoder.readout=mean"]
    train.run(zoo_config(varied_zoo, *options, "sparsity.edge_target=0.6", "trainer.max_epochs=2"), tmp_path)
    last = rows(tmp_path / "sparsity.csv")[-1]
    assert float(last["edge_sparsity"]) == pytest.approx(0.6, abs=0.05) and -1 <= float(last["val_true"]) <= 1
