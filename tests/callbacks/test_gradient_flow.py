"""The callback in whole runs: any encoder, resuming, accumulation, runs that break down, and nothing when off."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

import train
from wsl import build
from wsl.callbacks.finite import NonFiniteError
from wsl.callbacks.gradient_flow import GradientFlow
from wsl.nn.gatv2_conv import GATv2Conv

CONF = Path(__file__).parents[2] / "conf"
ON = ["callbacks=gradient_flow", "callbacks.gradient_flow.every=2"]
ANY_ENCODER = {"gradient_rms", "relative_gradient", "relative_update", "depth_factor", "jacobian_gain", "direction"}


def config(zoo: Path, *overrides: str) -> build.RunConfig:
    fixed = [f"data.path={zoo}", "data.build=''", "data.batch_size=16", "logger=csv", "trainer.progress=none"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build.config(compose("train", [*fixed, "compare=[]", "encoder=statnn", *overrides]))


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "gradient_flow.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "encoder",
    [["statnn"], ["mlp"], ["ng_gnn", "width=8", "probes=3"], ["gatv2", "width=8", "heads=2", "probes=3", "layers=3"]],
    ids=lambda e: e[0],
)
def test_any_encoder_can_be_watched(encoder: list[str], small_zoo: Path, tmp_path: Path) -> None:
    name, *options = encoder
    chosen = [f"encoder={name}", *(f"encoder.{option}" for option in options)]
    train.run(config(small_zoo, *chosen, *ON, "trainer.max_epochs=2"), tmp_path)
    rows = table(tmp_path)
    found = {row["quantity"] for row in rows}
    assert found >= ANY_ENCODER
    assert ("entropy" in found) == (name == "gatv2")
    assert {int(row["step"]) for row in rows} == {0, 2, 4, 6}
    assert (tmp_path / "figures" / "gradient_flow.png").read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "metrics.csv", newline="") as file:
        columns = csv.DictReader(file).fieldnames or []
    assert any(c.startswith("gradient_flow/relative_update/") for c in columns)
    assert not any(c.endswith((".weight", ".bias")) for c in columns), "parameters are in the table, not in the log"


def test_a_resumed_run_has_the_table_of_a_whole_one(small_zoo: Path, tmp_path: Path) -> None:
    options = [*ON, "scheduler=warm_up", "encoder.hidden=[8]"]
    train.run(config(small_zoo, *options, "trainer.max_epochs=4"), tmp_path / "whole")
    train.run(config(small_zoo, *options, "trainer.max_epochs=2"), tmp_path / "part")
    resumed = config(small_zoo, *options, "trainer.max_epochs=4").model_copy(update={"resume": str(tmp_path / "part")})
    train.run(resumed, tmp_path / "part")
    whole, part = (
        {(r["step"], r["quantity"], r["place"]): r["value"] for r in table(tmp_path / n)} for n in ("whole", "part")
    )
    assert part.items() <= whole.items()
    missing = [(quantity, place) for _, quantity, place in whole.keys() - part.keys()]
    assert missing in ([], [("direction", "all parameters")]), "at the seam, where the step before is not known"


def test_accumulated_gradients_are_read_once_per_step(small_zoo: Path, tmp_path: Path) -> None:
    train.run(config(small_zoo, *ON, "trainer.max_epochs=4", "trainer.accumulate_grad_batches=2"), tmp_path)
    steps = [int(r["step"]) for r in table(tmp_path) if r["quantity"] == "depth_ratio"]
    updates = [int(r["step"]) for r in table(tmp_path) if (r["quantity"], r["place"]) == ("relative_update", "net.0")]
    assert steps == updates == [0, 2, 4, 6]


def test_a_run_that_breaks_down_leaves_what_was_read(
    small_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(self: torch.nn.Module, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("nan")

    original = build.encoder

    def encoder(*given: object) -> torch.nn.Module:
        made = original(*given)  # type: ignore[arg-type]
        next(made.parameters()).register_hook(lambda g: poisoned(made, g))
        return made

    monkeypatch.setattr(build, "encoder", encoder)
    with pytest.raises(NonFiniteError):
        train.run(config(small_zoo, *ON, "trainer.max_epochs=2"), tmp_path)
    rows = [r for r in table(tmp_path) if r["quantity"] == "gradient_rms"]
    assert {r["place"] for r in rows if r["value"] == "inf"}, "the poisoned parameter is in the table"
    assert {r["place"] for r in rows if r["value"] != "inf"}, "and others are not accused"


def test_off_means_absent(small_zoo: Path, tmp_path: Path) -> None:
    run = config(small_zoo, "encoder=gatv2", "encoder.width=8", "encoder.heads=2", "encoder.probes=0")
    data = build.data(run)
    encoder = build.encoder(run, data)
    trainer = build.trainer(run, build.task(run, encoder), data, tmp_path)
    assert not [c for c in trainer.callbacks if isinstance(c, GradientFlow)]
    assert all(m.probe is None for m in encoder.modules() if isinstance(m, GATv2Conv))


def test_nothing_stays_attached(small_zoo: Path, tmp_path: Path) -> None:
    run = config(
        small_zoo,
        "encoder=gatv2",
        "encoder.width=8",
        "encoder.heads=2",
        "encoder.probes=0",
        "trainer.max_epochs=1",
        *ON,
    )
    data = build.data(run)
    encoder = build.encoder(run, data)
    task = build.task(run, encoder)
    trainer = build.trainer(run, task, data, tmp_path)
    trainer.fit(task, data)
    assert all(m.probe is None for m in encoder.modules() if isinstance(m, GATv2Conv))
    assert not any(m._forward_hooks for m in encoder.modules())
