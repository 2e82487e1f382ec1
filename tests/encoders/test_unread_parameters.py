"""Every parameter of every encoder is read, but for those that are known; what is not read is told before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from graph_specs import random_batch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from ranks_of_runs import ROOT, TWO, finished, options
from specs import cnn_spec
from torch import Tensor, nn

import train
from wsl import build, run_config
from wsl.batch import WeightBatch
from wsl.config import validated
from wsl.encoders.statnn import StatNN
from wsl.graphs.node_graph import NodeBatch, NodeGraph, NodeGraphSpec
from wsl.spec import mlp_spec

OPTIONS = sorted(path.stem for path in (ROOT / "conf" / "encoder").glob("*.yaml"))
#: encoders whose last layer has functions of neurons that the readout does not look at
KNOWN = {"scale_gmn"}


def values_of(option: str) -> dict[str, Any]:
    values: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "encoder" / f"{option}.yaml"))  # type: ignore[assignment]
    if "defaults" not in values:
        return values
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return run_config._option("train", "encoder", option, key="encoder")


def networks(option: str) -> WeightBatch | NodeBatch:
    """One network of the kind that the option is for, or a graph."""
    if NodeGraphSpec in build.ENCODERS[values_of(option)["name"]].reads:
        graph = NodeGraph(torch.rand(12, 5), torch.randint(12, (2, 40)), torch.randint(3, (12,)))
        return NodeBatch(graph, torch.arange(12))
    spec = cnn_spec() if "cnn" in option else mlp_spec((2, 6, 5, 1), "sine", {"omega": 30.0}, output_offset=0.5)
    batch = random_batch(spec, 1)
    return batch.with_values(batch.values.float())


@pytest.mark.parametrize("option", OPTIONS)
def test_every_parameter_is_read(option: str) -> None:
    values, batch = values_of(option), networks(option)
    encoder = build._made(validated(run_config.encoder_schema(values["name"]), values), batch.spec, 2)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    random = torch.get_rng_state()
    unread = encoder.unread(batch)
    assert encoder.training and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    last = f"layers.{values.get('layers', 0) - 1}."
    known = [name for name in unread if values["name"] in KNOWN and name.startswith(last)]
    assert [name for name in unread if name not in known and encoder.get_parameter(name).numel()] == []


class WithSpare(StatNN):
    """Has a layer that it never uses."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.spare = nn.Linear(3, 2)
        self.spare_too = nn.Parameter(torch.zeros(4), requires_grad=False)


def test_what_is_not_read_is_told_before_training(
    small_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(build.ENCODERS, "statnn", WithSpare)
    given = [*options(small_zoo, "trainer.max_epochs=1")[:-2], "trainer.progress=lines"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        run = build.config(compose("train", given))
    encoder = build.encoder(run, build.data(run))
    assert encoder.unread_parameters == ("spare.weight", "spare.bias")
    train.run(run, tmp_path)
    said = capsys.readouterr().out.partition("trainer ")[0]
    assert "of which it never reads 8 (spare.weight, spare.bias): they stay as they begin" in said


def test_an_encoder_that_reads_nothing() -> None:
    class Deaf(StatNN):
        def forward(self, batch: WeightBatch) -> Tensor:
            return torch.zeros(len(batch), self.out_features)

    batch = random_batch(mlp_spec((2, 3, 1), "relu"), 1)
    encoder = Deaf(batch.spec, 2)
    assert encoder.unread(batch) == tuple(name for name, _ in encoder.named_parameters())


@pytest.mark.slow
def test_two_ranks_do_not_wait_for_what_is_not_read(small_zoo: Path, tmp_path: Path) -> None:
    more = ["encoder=scale_gmn", "encoder.width=8", "encoder.layers=2", "data.batch_size=16", "trainer.max_epochs=1"]
    finished(*options(small_zoo, *TWO, *more, f"folder={tmp_path / 'run'}"))
    assert (tmp_path / "run" / "result.json").exists()
