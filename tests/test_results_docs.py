"""The tables of docs/results.md are what the runs in docs/results make."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

from comparisons import ROOT  # isort: skip (it finds the scripts)
from comparing import tables

from wsl.results import mean_std

DOCS = ROOT / "docs"
Row = Mapping[str, str]


def table_after(command: str) -> list[dict[str, str]]:
    """The rows of the first table behind a command, those with a result."""
    _, _, text = (DOCS / "results.md").read_text().partition(f"{command} ")
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("| encoder | test | seeds"))
    cells = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells.append([cell.strip() for cell in line.strip("|").split("|")])
    rows = [dict(zip(tables.COLUMNS, row, strict=True)) for row in cells]
    return [row for row in rows if row["seeds"]]


def runs_of(path: Path) -> dict[str, list[Row]]:
    found = defaultdict(list)
    for row in csv.DictReader(path.read_text().splitlines()):
        found[row["encoder"]].append(row)
    return found


@pytest.mark.parametrize("path", sorted((DOCS / "results").glob("*.csv")), ids=lambda path: path.stem)
def test_the_table_is_what_the_runs_make(path: Path) -> None:
    runs, shown = runs_of(path), table_after(f"scripts/compare.py {path.stem}")
    assert {row["encoder"] for row in shown} == runs.keys()
    assert len({run["split"] for ran in runs.values() for run in ran}) == 1
    values = [float(row["test"].split()[0]) for row in shown]
    assert values == sorted(values, reverse=True)
    for row in shown:
        ran = runs[row["encoder"]]
        first = {run["rate"]: float(run["val"]) for run in ran if run["seed"] == "0"}
        assert first[row["rate"]] == max(first.values()), "validation with the first seed chooses the rate"
        chosen = [run for run in ran if run["rate"] == row["rate"]]
        assert sorted(run["seed"] for run in chosen) == [str(seed) for seed in range(int(row["seeds"]))]
        for column in ("test", "val"):
            assert row[column] == mean_std([float(run[column]) for run in chosen]), row
        losses = [statistics.fmean(float(run[column]) for run in chosen) for column in ("train_loss", "val_loss")]
        assert row["loss, train / val"] == " / ".join(f"{loss:.3f}" for loss in losses), row
        assert {int(row["parameters"].replace(",", ""))} == {int(run["parameters"]) for run in chosen}
        assert {row["epochs"]} == {run["epochs"] for run in chosen}
