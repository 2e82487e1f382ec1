"""verify_zoo finds every planted fault and names its row, and finds nothing in a good zoo."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from zoo_files import SIREN, chunk_offset, create, flip, rows_of, write_mixed_zoo

from wsl.spec import mlp_spec
from wsl.zoo import Zoo, ZooWriter
from wsl.zoo.verify import Check, verify_zoo


def by_name(checks: list[Check]) -> dict[str, Check]:
    found = {check.name.partition(" (")[0]: check for check in checks}
    assert len(found) == len(checks)
    return found


def failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.status == "FAILED"}


def test_a_good_zoo_passes_every_check(zoo_path: Path) -> None:
    shares: list[float] = []
    checks = by_name(verify_zoo(zoo_path, 60, shares.append))
    assert {check.status for check in checks.values()} == {"ok"}
    assert set(checks) == {
        *("opens safely", "checksums", "digest of the content", "finite weights", "norms", "no copies across splits"),
        *("runs within one split", "images within one split", "runs again", "renders again"),
        *(f"column {name}" for name in Zoo(zoo_path).columns),
    }
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_a_mixed_zoo_is_run_as_far_as_its_specs_can_be(tmp_path: Path) -> None:
    path, _, _ = write_mixed_zoo(tmp_path / "m.h5")
    checks = by_name(verify_zoo(path))
    assert failed(checks) == set()
    assert checks["runs again"].status == "ok", "the GRU runs on sequences"
    assert checks["renders again"].skipped == "no column fit_mse or psnr"
    empty = by_name(verify_zoo(path, 0))
    assert empty["runs again"].skipped == empty["renders again"].skipped == "the sample is empty"


def test_a_spec_that_cannot_be_executed_is_skipped_with_the_reason(tmp_path: Path) -> None:
    data = mlp_spec((3, 4, 2), "relu").to_dict()
    for group in data["groups"]:
        group["activation"] = "unknown" if group["name"] == "hidden1" else group["activation"]
    data["labels"][1]["symmetries"] = ["permutation"]
    spec = type(SIREN).from_dict(data)
    with ZooWriter(tmp_path / "u.h5", spec, 4, {}) as writer:
        writer.write(0, rows_of(spec, 4))
    check = by_name(verify_zoo(tmp_path / "u.h5"))["runs again"]
    assert check.status == "skipped" and "unknown" in check.skipped


def _set(name: str, row: int, value: Any) -> Callable[[h5py.File], None]:
    def plant(file: h5py.File) -> None:
        file[name][row] = value

    return plant


def _scaled(row: int, factor: float) -> Callable[[h5py.File], None]:
    return lambda file: _set("params", row, file["params"][row] * np.float32(factor))(file)


def _copied(source: int, target: int) -> Callable[[h5py.File], None]:
    return lambda file: _set("params", target, file["params"][source])(file)


def _shifted(row: int) -> Callable[[h5py.File], None]:
    return lambda file: _set("params", row, file["params"][row] + np.float32(0.05))(file)


FAULTS: list[tuple[str, Callable[[h5py.File], Any], str, str]] = [
    ("nan", _set("params", 17, np.float32(np.nan)), "finite weights", "NaN or infinity in row 17"),
    ("zeros", _set("params", 23, np.float32(0)), "norms", "nothing but zeros in row 23"),
    ("huge", _scaled(31, 1e4), "norms", "norm above 100 or below 0.001 times the median in row 31"),
    ("tiny", _scaled(32, 1e-4), "norms", "norm above 100 or below 0.001 times the median in row 32"),
    ("copy", _copied(4, 55), "no copies across splits", r"rows 4 \(train\) and 55 \(test\) are identical"),
    ("run", _set("run_id", 58, 103), "runs within one split", "run 103: row 6 is in train, row 58 in test"),
    ("image", _set("columns/image_index", 41, 2), "images within one split", "image 2: row 4 is in train, row 41 in v"),
    ("label", _set("columns/label", 12, -1), "column label", "outside 0 to 9: row 12"),
    ("label beyond classes", _set("columns/label", 13, 10), "column label", "outside 0 to 9: row 13"),
    ("view", _set("columns/view", 14, -1), "column view", "outside at least 0: row 14"),
    ("index", _set("columns/image_index", 15, 30), "column image_index", "outside 0 to 29: row 15"),
    ("accuracy", _set("columns/test_accuracy", 16, 1.5), "column test_accuracy", "outside 0 to 1: row 16"),
    ("target", _set("columns/psnr", 18, np.nan), "column psnr", "NaN or infinity in row 18"),
    ("mse", _set("columns/fit_mse", 19, 0.01), "renders again", r"row 19: fit_mse is stored as 0\.01, rendered again"),
    ("psnr", _set("columns/psnr", 20, 10.0), "renders again", "row 20: psnr is stored as 10, rendered again"),
    ("weights", _shifted(21), "renders again", "row 21: fit_mse is stored as .*, rendered again"),
    ("pixels", _set("images", 11, 0), "renders again", "row 22: fit_mse"),
]


@pytest.mark.parametrize(("plant", "name", "message"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_planted_faults_are_found(zoo_path: Path, plant: Callable[[h5py.File], Any], name: str, message: str) -> None:
    with h5py.File(zoo_path, "r+", libver=("v110", "v110")) as file:
        plant(file)
    checks = by_name(verify_zoo(zoo_path, 60))
    assert {"digest of the content", name} <= failed(checks)
    assert any(re.search(message, line) for line in checks[name].failures), checks[name].failures


def test_the_digest_alone_finds_an_innocent_change(zoo_path: Path) -> None:
    with h5py.File(zoo_path, "r+", libver=("v110", "v110")) as file:
        file["columns/label"][5] = 6
    assert failed(by_name(verify_zoo(zoo_path))) == {"digest of the content"}


def test_a_label_of_another_type(zoo_path: Path) -> None:
    with h5py.File(zoo_path, "r+", libver=("v110", "v110")) as file:
        create(file, "columns/label", np.linspace(0, 1, 60))
    check = by_name(verify_zoo(zoo_path))["column label"]
    assert check.failures == ("is float64, expected integers",)


def test_damaged_chunks_are_listed_and_the_rest_is_checked(tmp_path: Path) -> None:
    path, spec, rows = tmp_path / "z.h5", mlp_spec((31, 63)), 300
    values = rows_of(spec, rows)
    values[7] = np.nan
    with ZooWriter(path, spec, rows, {}) as writer:
        writer.write(0, values, finite=False)
        writer.set_columns({"label": np.arange(rows)})
    for chunk in (1, 4):
        flip(path, chunk_offset(path, "params", chunk) + 100)
    flip(path, chunk_offset(path, "columns/label"))
    checks = by_name(verify_zoo(path))
    assert failed(checks) == {"checksums", "finite weights"}
    lines = "\n".join(checks["checksums"].failures)
    assert "rows 60 to 119" in lines and "rows 240 to 299" in lines and "'columns/label' is damaged" in lines
    assert len(checks["checksums"].failures) == 3
    assert checks["finite weights"].failures == ("NaN or infinity in row 7",)
    assert checks["digest of the content"].skipped


def test_a_symmetry_that_the_networks_do_not_have_is_found(tmp_path: Path) -> None:
    data = mlp_spec((2, 4, 3), "tanh").to_dict()
    data["labels"].append({"name": "z", "size": 3, "kind": "output", "symmetries": ["permutation"]})
    data["labels"] = [label for label in data["labels"] if label["name"] != "output"]
    for group in data["groups"]:
        group["label"] = "z" if group["label"] == "output" else group["label"]
    for tensor in data["tensors"]:
        tensor["axes"] = ["z" if axis == "output" else axis for axis in tensor["axes"]]
    spec = type(SIREN).from_dict(data)
    with ZooWriter(tmp_path / "s.h5", spec, 20, {}) as writer:
        writer.write(0, rows_of(spec, 20))
    check = by_name(verify_zoo(tmp_path / "s.h5"))["runs again"]
    assert re.match("row 0: outputs change by .* under a symmetry that its spec claims", check.failures[0])
    assert len(check.failures) == 11 and check.failures[10].endswith(" more")


def _script(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["verify_zoo.py", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "verify_zoo.py"), run_name="__main__")
    return int(done.value.code or 0)


def test_the_script_prints_a_table_and_fails_on_a_fault(
    tmp_path: Path, zoo_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _script(monkeypatch, str(zoo_path), "--sample", "5") == 0
    shown = capsys.readouterr().out
    assert "all 17 checks passed or skipped" in shown and "renders again (5 rows)" in shown
    with h5py.File(zoo_path, "r+", libver=("v110", "v110")) as file:
        file["params"][3] = np.nan
    assert _script(monkeypatch, str(zoo_path)) == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown and "NaN or infinity in row 3" in shown and "2 of 17 checks failed" in shown
    assert _script(monkeypatch, str(tmp_path / "absent.h5")) == 1
    assert "does not exist" in capsys.readouterr().out
    assert _script(monkeypatch, str(zoo_path), "--sample", "-1") == 2
