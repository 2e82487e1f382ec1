"""One run of a comparison: measured once, resumed as it was begun, shortened to its budget, errors with their place."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest

from comparisons import ROOT, order, result  # isort: skip (it finds the scripts)
from comparing import one_run, tables
from comparing.one_run import Curves, outcome_of
from comparing.outcome import Outcome, outcome_if_known

from wsl.errors import UserError


def test_a_run_is_measured_once_and_read_again(tmp_path: Path, small_zoo: Path) -> None:
    wanted = order(tmp_path / "statnn", small_zoo, "statnn")
    found = outcome_of(wanted)
    assert found.result is not None and found.result.epochs == 2 and found.result.encoder == "statnn"
    assert found.step_units > 0 and found.peak_mib > 10 and found.symmetries == ("permutation",)
    assert 0 < found.to_95 <= found.result.seconds
    assert all(0 < loss < 3 for loss in found.losses)
    assert outcome_if_known(wanted) == found
    stamp = (wanted.folder / "outcome.json").stat().st_mtime_ns
    assert outcome_of(wanted) == found
    assert (wanted.folder / "outcome.json").stat().st_mtime_ns == stamp


def test_an_interrupted_run_begins_again(tmp_path: Path, small_zoo: Path) -> None:
    wanted = order(tmp_path / "run", small_zoo, "statnn")
    wanted.folder.mkdir()
    (wanted.folder / "config.yaml").write_text("half written")
    assert outcome_of(wanted).result is not None


def test_an_interrupted_run_goes_on_for_as_long_as_it_was_begun_for(
    tmp_path: Path, small_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = order(tmp_path / "run", small_zoo, "statnn")
    whole = outcome_of(wanted)
    for name in ("outcome.json", "result.json"):
        (wanted.folder / name).unlink()
    monkeypatch.setattr(one_run, "within_budget", lambda order, step, batches: {"max_epochs": 1})  # a slow moment
    again = outcome_of(wanted)
    assert again.result is not None and whole.result is not None
    assert again.result.epochs == 2 and again.result.test == whole.result.test
    for name in ("outcome.json", "result.json"):
        (wanted.folder / name).unlink()
    with pytest.raises(UserError, match="belongs to another config"):
        outcome_of(dataclasses.replace(wanted, overrides=(*wanted.overrides, "data.batch_size=8")))


def test_a_run_that_another_process_is_at_is_left_alone(tmp_path: Path, small_zoo: Path) -> None:
    wanted = order(tmp_path / "run", small_zoo, "statnn")
    wanted.folder.mkdir()
    (wanted.folder / "metrics.csv").write_text("of the other")
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from wsl.run_folder import owned
with owned(Path({str(wanted.folder)!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as other:  # type: ignore[call-overload]
        assert other.stdout.readline().strip() == b"held"
        with pytest.raises(UserError, match="is in use by process"):
            outcome_of(wanted)
        other.stdin.close()
    assert (wanted.folder / "metrics.csv").read_text() == "of the other"


def test_a_zoo_that_cannot_be_read_is_nobodys_refusal(tmp_path: Path) -> None:
    wanted = order(tmp_path / "run", tmp_path / "nope.h5", "statnn")
    with pytest.raises(UserError, match=r"nope\.h5"):
        outcome_of(wanted)
    assert outcome_if_known(wanted).stopped == "not run"


def test_who_refused_is_asked_again(tmp_path: Path, small_zoo: Path) -> None:
    wanted = order(tmp_path / "run", small_zoo, "statnn")
    wanted.folder.mkdir()
    Outcome(refused="an earlier release could not").write(wanted.folder / "outcome.json")
    assert outcome_if_known(wanted).refused and outcome_of(wanted).result is not None


def test_a_damaged_outcome_is_told_with_its_path(tmp_path: Path, small_zoo: Path) -> None:
    wanted = order(tmp_path / "run", small_zoo, "statnn")
    wanted.folder.mkdir()
    for text in ("{", '{"refused": ""}', "[]"):
        (wanted.folder / "outcome.json").write_text(text)
        with pytest.raises(UserError, match=r"outcome\.json cannot be read .*remove .*run"):
            outcome_of(wanted)


def test_the_step_of_an_encoder_that_is_being_pruned_is_unknown(tmp_path: Path, small_zoo: Path) -> None:
    found = outcome_of(order(tmp_path / "run", small_zoo, "ng_gnn_small_plain sparsity=unifews"))
    assert found.result is not None and math.isnan(found.step_units)
    shown = {"pruned": [found], "whole": [Outcome("", "", result("whole", 0.5, 0.5), 1.0, 1.0)]}
    table = {row[0]: row[tables.COLUMNS.index("step, units")] for row in tables.rows(shown, dict.fromkeys(shown, 1e-3))}
    assert table == {"pruned": "?", "whole": "1.0"}
    tables.figure(shown, "title", tmp_path / "figure.png")


def test_an_encoder_that_cannot_read_the_zoo_says_so(tmp_path: Path, small_zoo: Path) -> None:
    found = outcome_of(order(tmp_path / "gcn", small_zoo, "gcn"))
    assert found.result is None and "reads a NodeGraphSpec" in found.refused
    assert dataclasses.asdict(Outcome.read(tmp_path / "gcn" / "outcome.json"))["refused"] == found.refused


def test_an_encoder_may_bring_overrides_of_its_own(tmp_path: Path, small_zoo: Path) -> None:
    plain, changed = (order(tmp_path / e[-4:], small_zoo, e) for e in ("statnn", "statnn encoder.hidden=[8]"))
    config = one_run.configured(changed)
    assert list(config.encoder.hidden) == [8] and config.label == "statnn_encoder.hidden_8_"
    assert list(one_run.configured(plain).encoder.hidden) != [8]
    assert outcome_of(changed).result.parameters < outcome_of(plain).result.parameters  # type: ignore[union-attr]


def test_a_run_over_the_budget_is_shortened(tmp_path: Path, small_zoo: Path) -> None:
    wanted = order(tmp_path, small_zoo, "statnn")  # two epochs in a minute
    limits = {step: one_run.within_budget(wanted, step, 20) for step in (0.1, 2.0, 12.0)}
    assert limits == {0.1: {"max_epochs": 2}, 2.0: {"max_epochs": 1}, 12.0: {"max_epochs": 1, "limit_train_batches": 5}}
    as_the_first = dataclasses.replace(wanted, epochs=1, minutes=math.inf, batches=5)
    assert one_run.within_budget(as_the_first, 0.1, 20) == {"max_epochs": 1, "limit_train_batches": 5}


def test_time_to_95_counts_validations() -> None:
    found = result("statnn", 0.5, 0.8)
    curve = [{"val/accuracy": text, "train/loss_epoch": "0.5"} for text in ("0.3", "", "0.77", "0.8", "0.6")]
    assert Curves(curve).seconds_to_95(found) == pytest.approx(2 * found.seconds / 4)
    assert Curves(curve).seconds_to_95(dataclasses.replace(found, val={"accuracy": 0.3}), "min") == found.seconds / 4
    assert Curves(curve).last("train/loss_epoch") == 0.5
    assert math.isnan(Curves(curve).last("val/loss")) and math.isnan(Curves([]).seconds_to_95(found))
