"""Carrying out a job of any kind: several specs, rows that are not finite, resuming, and the card of the file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from wsl.spec import mlp_spec
from wsl.zoo import Zoo, ZooError
from wsl.zoo.build.job import Job, Shown, carry_out
from wsl.zoo.build.work_folder import WorkFolder
from wsl.zoo.card import card

SPECS = (mlp_spec((2, 3, 1)), mlp_spec((2, 5, 1), "tanh"))
SPEC_IDS = np.array([0, 1, 1, 0, 0, 1, 0])


def values_of(row: int) -> np.ndarray:
    return np.random.default_rng(row).normal(size=SPECS[SPEC_IDS[row]].numel).astype(np.float32)


def job(broken: tuple[int, ...] = (), **changes: Any) -> Job:
    def fit(block: range) -> dict[str, np.ndarray]:
        rows = [values_of(row) * (np.nan if row in broken else 1) for row in block]
        return {"values": np.concatenate(rows), "accuracy": np.array(block) / 10}

    fields: dict[str, Any] = {
        "description": {"config": {"seed": 0}},
        "specs": SPECS,
        "spec_ids": SPEC_IDS,
        "blocks": [range(3), range(3, 5), range(5, 7)],
        "fit": fit,
        "measured": ("accuracy",),
        "columns": {"activation": np.array(["relu", "tanh"])[SPEC_IDS]},
        "run_ids": np.array([0, 0, 1, 1, 2, 3, 3]),
        "splits": {"train": np.array([0, 1, 2, 3]), "val": np.array([4]), "test": np.array([5, 6])},
        "shown": Shown("accuracy", "mean accuracy {:.2f}"),
    }
    return Job(**fields | changes)


def build(job: Job, out: Path, threads: int = 1, progress: bool = False) -> Zoo:
    with WorkFolder(out, job.description) as folder:
        carry_out(job, folder, out, threads, progress)
        folder.remove()
    return Zoo(out)


def test_rows_of_several_specs_lie_where_the_plan_says(tmp_path: Path) -> None:
    with build(job(), tmp_path / "zoo.h5") as zoo:
        assert zoo.specs == SPECS and zoo.spec_ids.tolist() == SPEC_IDS.tolist()
        values, row_ptr, _ = zoo.read_mixed(0, 7)
        for row in range(7):
            np.testing.assert_array_equal(values[row_ptr[row] : row_ptr[row + 1]], values_of(row))
        np.testing.assert_allclose(zoo.column("accuracy"), np.arange(7) / 10)
        assert "left_out" not in zoo.recipe
    assert build(job(), tmp_path / "threads.h5", threads=3).path.read_bytes() == (tmp_path / "zoo.h5").read_bytes()


def test_rows_that_are_not_finite_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with build(job(broken=(2, 3, 4)), tmp_path / "zoo.h5", progress=True) as zoo:
        kept = [0, 1, 5, 6]
        assert zoo.recipe["left_out"] == [2, 3, 4]
        values, row_ptr, spec_ids = zoo.read_mixed(0, 4)
        assert spec_ids.tolist() == SPEC_IDS[kept].tolist()
        for position, row in enumerate(kept):
            np.testing.assert_array_equal(values[row_ptr[position] : row_ptr[position + 1]], values_of(row))
        assert {name: rows.tolist() for name, rows in zoo.splits.items()} == {"train": [0, 1], "test": [2, 3]}
        assert zoo.run_ids.tolist() == [0, 0, 3, 3]
        np.testing.assert_allclose(zoo.column("accuracy"), [0, 0.1, 0.5, 0.6])
    assert "mean accuracy 0.30, 3 left out (not finite)" in " ".join(capsys.readouterr().err.split())


def test_a_spec_of_which_no_row_is_left_goes_too(tmp_path: Path) -> None:
    with build(job(broken=(1, 2, 5)), tmp_path / "zoo.h5") as zoo:
        assert zoo.specs == SPECS[:1]
        np.testing.assert_array_equal(zoo.read(0, 4), np.stack([values_of(row) for row in (0, 3, 4, 6)]))


def test_nothing_finite_is_an_error_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"not one of 7 networks has finite weights"):
        build(job(broken=tuple(range(7))), tmp_path / "zoo.h5")
    assert not (tmp_path / "zoo.h5").exists()


def test_blocks_of_another_shape_are_fitted_again(tmp_path: Path) -> None:
    plan, fitted = job(), []

    def fit(block: range) -> dict[str, np.ndarray]:
        fitted.append(block)
        return plan.fit(block)

    with WorkFolder(tmp_path / "zoo.h5", plan.description) as folder:
        folder.save(0, plan.fit(plan.blocks[0]))
        folder.save(1, {"values": np.zeros(2, np.float32), "accuracy": np.zeros(2)})
        folder.save(2, {"values": plan.fit(plan.blocks[2])["values"]})
        carry_out(job(fit=fit), folder, tmp_path / "zoo.h5", 1, False)
    assert fitted == [range(3, 5), range(5, 7)]
    assert Zoo(tmp_path / "zoo.h5").digest == build(plan, tmp_path / "again.h5").digest


def test_card_shows_how_the_columns_spread(tmp_path: Path) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    with build(job(broken=(2,)), tmp_path / "zoo.h5") as zoo:
        console.print(card(zoo))
    text = console.export_text()
    for words in ("2 architectures, 13 to 21 parameters", "6 of 4 runs", "train 3, val 1, test 2", "relu 4, tanh 2"):
        assert words in text
    assert "mean 0.3167, 0 |█" in text and "left out" in text
