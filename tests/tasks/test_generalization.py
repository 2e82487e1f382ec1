"""Predicting a share: Kendall's tau and its ceiling against brute force, losses, and whole runs on CNN zoos."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

import train
from wsl import build
from wsl.checkpoint import read_checkpoint
from wsl.config import ConfigError
from wsl.data.zoo_data import ZooData
from wsl.encoders.mlp import FlatMLP
from wsl.encoders.statnn import StatNN
from wsl.errors import UserError
from wsl.results import table
from wsl.tasks.gathered import Rows
from wsl.tasks.generalization import Generalization, rank_correlation
from wsl.tasks.optimisation import adam, constant

CONF = Path(__file__).parents[2] / "conf"


def config(zoo: Path, *overrides: str) -> build.RunConfig:
    fixed = [f"data.path={zoo}", "data.build=''", "data.batch_size=16", "logger=csv", "trainer.progress=none"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build.config(compose("train", ["experiment=cnn_digits", *fixed, "compare=[]", *overrides]))


def brute_force(a: list[float], b: list[float]) -> float:
    """Kendall's τ_b from its definition."""
    pairs = list(combinations(zip(a, b, strict=True), 2))
    order = sum(math.copysign(1, (x - u) * (y - v)) for (x, y), (u, v) in pairs if x != u and y != v)
    free = [sum(one[k] != other[k] for one, other in pairs) for k in (0, 1)]
    return order / math.sqrt(free[0] * free[1])


def test_tau_and_its_ceiling_agree_with_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 6, (30,), generator=generator).double() / 6
    predicted = (target + torch.randn(30, generator=generator) * 0.3).round(decimals=1).double()
    tau, ceiling = rank_correlation(predicted, target)
    assert tau == pytest.approx(brute_force(predicted.tolist(), target.tolist()), abs=1e-12)
    best = target + torch.arange(30) * 1e-6  # right order, no ties
    assert ceiling == pytest.approx(brute_force(best.tolist(), target.tolist()), abs=1e-12) and ceiling < 1
    assert rank_correlation(best, target)[0] == pytest.approx(ceiling, abs=1e-12)
    assert rank_correlation(-best, target)[0] == pytest.approx(-ceiling, abs=1e-12)
    assert rank_correlation(torch.zeros(30), target) == (0.0, ceiling)
    assert rank_correlation(torch.arange(5.0), torch.arange(5.0)) == pytest.approx((1, 1))


def test_what_cannot_be_ordered_is_refused() -> None:
    with pytest.raises(UserError, match="targets of all 4 rows are equal"):
        rank_correlation(torch.arange(4.0), torch.full((4,), 0.1))
    with pytest.raises(UserError, match="1 of 3 predictions are not finite"):
        rank_correlation(torch.tensor([0.0, math.nan, 1.0]), torch.arange(3.0))


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_losses_and_metrics(cnn_zoo: Path, loss: str) -> None:
    data = ZooData(path=str(cnn_zoo), target="test_accuracy")
    task = Generalization(StatNN(data.spec, 1, hidden=(4,)), adam(), constant(), loss=loss)  # type: ignore[arg-type]
    batch = data.dataset("val")[[0, 5, 9]]
    logits = task.output(batch)
    assert logits.shape == (3,)
    p, y = logits.detach().sigmoid(), batch.target
    assert y is not None
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean() if loss == "bce" else (p - y).square().mean()
    torch.testing.assert_close(task.loss(logits, batch), expected)
    found = task.metrics(Rows(torch.arange(3), logits.detach(), y))
    assert found["mse"] == pytest.approx(float((p - y).square().mean()), rel=1e-5)
    assert found["r2"] == pytest.approx(1 - found["mse"] / float(y.double().var(correction=0)), rel=1e-9)


@pytest.mark.parametrize("encoder", [StatNN, FlatMLP])
def test_what_a_run_leaves(cnn_zoo: Path, tmp_path: Path, encoder: type) -> None:
    """The size of the weights gives the accuracy away, and statistics see it."""
    name = "statnn" if encoder is StatNN else "mlp"
    run = config(cnn_zoo, f"encoder={name}", "encoder.hidden=[32]", "trainer.max_epochs=40", "optimizer.lr=1e-2")
    result = train.run(run, tmp_path)
    assert set(result.test) >= {"tau", "tau_ceiling", "r2", "mse"} and result.metric == "tau"
    assert result.test["tau"] <= result.test["tau_ceiling"] <= 1
    if encoder is StatNN:
        assert result.test["tau"] > 0.6 and result.test["r2"] > 0.6
    assert (tmp_path / "figures" / "predictions.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "result.json").read_text())["val"].keys() == {"tau"}
    columns = [column.header for column in table([result]).columns]
    assert columns[:5] == ["encoder", "parameters", "test tau", "ceiling", "test R²"]
    again = build.exported_encoder(tmp_path)
    assert type(again) is encoder and again.spec == build.data(run).spec


@pytest.mark.parametrize("override", ["data.where.activation=tanh", "task.loss=mse"])
def test_parts_and_losses_of_the_experiment(cnn_zoo: Path, tmp_path: Path, override: str) -> None:
    result = train.run(config(cnn_zoo, "trainer.max_epochs=1", override), tmp_path)
    assert -1 <= result.test["tau"] <= 1


def test_architectures_of_any_shape(varied_zoo: Path, tmp_path: Path) -> None:
    result = train.run(config(varied_zoo, "trainer.max_epochs=40", "optimizer.lr=1e-2"), tmp_path)
    assert result.test["tau"] > 0.6


def test_targets_that_are_no_shares_are_refused(small_zoo: Path, cnn_zoo: Path, tmp_path: Path) -> None:
    run = config(cnn_zoo, "data.target=epoch")
    data = build.data(run)
    data.target_range = (0.0, 9.0)
    with pytest.raises(ConfigError, match=r"predicts targets from 0 to 1, but data\.target=epoch ranges from 0 to 9"):
        build.encoder(run, data)
    with pytest.raises(ConfigError, match="needs classes"):
        run = config(cnn_zoo, "task=classification")
        build.encoder(run, build.data(run))


def test_a_run_with_augmentation_and_twins(cnn_zoo: Path, tmp_path: Path) -> None:
    """The test says of every network and its twin; an encoder without the symmetry answers for them differently."""
    options = ["encoder=mlp", "encoder.hidden=[16]", "data/augment=twins", "data.augment.noise=0.1"]
    run = config(cnn_zoo, *options, "data.augment.symmetries=[permutation]", "trainer.max_epochs=2")
    data = build.data(run)
    encoder = build.encoder(run, data)
    task = build.task(run, encoder)
    trainer = build.trainer(run, task, data, tmp_path)
    trainer.fit(task, data)
    trainer.test(task, data, verbose=False)
    assert task.tested is not None and task.tested.row_ids.tolist() == [*range(100, 120), *range(220, 240)]
    assert torch.equal(task.tested.target[:20], task.tested.target[20:])
    assert not torch.allclose(task.tested.output[:20], task.tested.output[20:])
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance[0]["data"]["split"] == data.split_digest


def test_augmented_runs_repeat_and_resume_bit_equal(cnn_zoo: Path, tmp_path: Path) -> None:
    options = ["data.augment.noise=0.2", "data.augment.dropout=0.1", "data.augment.mixup=0.5", "scheduler=constant"]
    whole = config(cnn_zoo, *options, "trainer.max_epochs=4")
    result = train.run(whole, tmp_path / "whole")
    train.run(config(cnn_zoo, *options, "trainer.max_epochs=2"), tmp_path / "part")
    train.run(whole.model_copy(update={"resume": str(tmp_path / "part")}), tmp_path / "part")
    states = [
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("whole", "part")
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert result.split == build.data(whole).split_digest
