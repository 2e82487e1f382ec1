"""Tables and the metrics file."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from wsl.metrics_file import MetricsFile
from wsl.results import Result, mean_std, table
from wsl.run_folder import RunFolderError


def result(encoder: str, accuracy: float, seed: int) -> Result:
    values = {"accuracy": accuracy}
    return Result(encoder, 1234, "accuracy", values, values, 2, 5, 10.0, seed, "zoo.h5")


def test_mean_and_sample_deviation() -> None:
    assert mean_std([0.5]) == "0.5000"
    assert mean_std([0.4, 0.6]) == "0.5000 ± 0.1414"


def test_seeds_are_averaged_in_one_row() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table([result("a", 0.4, 0), result("b", 0.9, 0), result("a", 0.6, 1)]))
    text = console.export_text()
    assert "0.5000 ± 0.1414" in text and "0.9000" in text and "1,234" in text
    assert text.index(" a ") < text.index(" b ")


def test_results_are_read_back(tmp_path: Path) -> None:
    found = Result(**{**vars(result("a", 0.5, 0)), "compared": (result("b", 0.4, 0),)})
    found.write(tmp_path)
    assert Result.read(tmp_path) == found
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"result\.json"):
        Result.read(tmp_path)


def read(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_keep_their_rows_when_a_column_joins(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path)
    log.log_metrics({"a": 1.0, "epoch": 0}, step=0)
    log.save()
    log.log_metrics({"b": 2.0, "epoch": 1}, step=1)
    log.finalize("success")
    assert read(tmp_path) == [
        {"a": "1.0", "b": "", "epoch": "0", "step": "0"},
        {"a": "", "b": "2.0", "epoch": "1", "step": "1"},
    ]


def test_a_resumed_run_forgets_later_rows_and_goes_on(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path)
    for step in range(5):
        log.log_metrics({"a": float(step)}, step=step)
    log.save()
    again = MetricsFile(tmp_path)
    again.forget_after(3)
    again.log_metrics({"a": 30.0}, step=3)
    again.save()
    assert [(row["step"], row["a"]) for row in read(tmp_path)] == [
        ("0", "0.0"), ("1", "1.0"), ("2", "2.0"), ("3", "30.0"),
    ]  # fmt: skip
