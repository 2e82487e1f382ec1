"""The comparison of encoders: one run measured, rates chosen on validation, nothing repeated, refusals kept."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "scripts"), str(Path(__file__).parents[1])]

import compare  # noqa: E402
from comparing import tables  # noqa: E402
from comparing.one_run import Order, Outcome, outcome_of  # noqa: E402

from wsl.results import Result  # noqa: E402


def result(encoder: str, test: float, val: float, seed: int = 0) -> Result:
    return Result(encoder, 10, "accuracy", {"accuracy": val}, {"accuracy": test}, 1, 2, 4.0, seed, "zoo.h5")


def order(folder: Path, zoo: Path, encoder: str) -> Order:
    given = ("data=digits_inr", f"data.path={zoo}", "data.build=''", "logger.wandb=false", "trainer.progress=none")
    return Order(folder, given, encoder, 1e-3, 0, 2, 1.0, 1)


def test_a_run_is_measured_once_and_read_again(tmp_path: Path, small_zoo: Path) -> None:
    wanted = order(tmp_path / "statnn", small_zoo, "statnn")
    found = outcome_of(wanted)
    assert found.result is not None and found.result.epochs == 2 and found.result.encoder == "statnn"
    assert found.step_units > 0 and found.peak_mib > 10 and found.symmetries == ("permutation",)
    assert 0 < found.to_95 <= found.result.seconds
    stamp = (wanted.folder / "outcome.json").stat().st_mtime_ns
    assert outcome_of(wanted) == found
    assert (wanted.folder / "outcome.json").stat().st_mtime_ns == stamp


def test_an_interrupted_run_begins_again(tmp_path: Path, small_zoo: Path) -> None:
    wanted = order(tmp_path / "run", small_zoo, "statnn")
    wanted.folder.mkdir()
    (wanted.folder / "config.yaml").write_text("half written")
    assert outcome_of(wanted).result is not None


def test_an_encoder_that_cannot_read_the_zoo_says_so(tmp_path: Path, small_zoo: Path) -> None:
    found = outcome_of(order(tmp_path / "gcn", small_zoo, "gcn"))
    assert found.result is None and "reads a NodeGraphSpec" in found.refused
    assert dataclasses.asdict(Outcome.read(tmp_path / "gcn" / "outcome.json"))["refused"] == found.refused


def test_the_rate_is_chosen_on_validation_and_then_kept(tmp_path: Path) -> None:
    asked: list[tuple[str, float, int]] = []

    def carry_out(o: Order) -> Outcome:
        asked.append((o.encoder, o.rate, o.seed))
        if o.encoder == "mlp":
            return Outcome(refused="not this one")
        better_on_test, better_on_val = o.rate == 1e-3, o.rate == 3e-3
        return Outcome(result=result("statnn", 0.9 if better_on_test else 0.5, 0.8 if better_on_val else 0.4, o.seed))

    args = compare.arguments(["digits_inr", "--encoders", "statnn", "mlp", "--seeds", "3", "--out", str(tmp_path)])
    found, rates = compare.compared(args, carry_out, lambda text: None)
    assert asked == [
        ("statnn", 1e-3, 0), ("statnn", 3e-3, 0), ("statnn", 3e-3, 1), ("statnn", 3e-3, 2), ("mlp", 1e-3, 0),
    ]  # fmt: skip
    assert rates["statnn"] == 3e-3 and [o.result.seed for o in found["statnn"] if o.result] == [0, 1, 2]
    assert found["mlp"][0].refused == "not this one"


def test_tables_and_figure(tmp_path: Path) -> None:
    found = {
        "no": [Outcome(refused="cannot, for a reason")],
        "low": [Outcome("", result("low", 0.25, 0.3), 2.0, 100.0, (), 3.0)],
        "high": [Outcome("", result("high", t, 0.6), 20.0, 200.0, ("permutation",), math.nan) for t in (0.5, 0.7)],
    }
    table = tables.rows(found, {"low": 1e-3, "high": 3e-3})
    assert [row[0] for row in table] == ["high", "low", "no"]
    assert table[0][1] == "0.6000 ± 0.1414" and table[0][9] == "?" and table[2][1] == "cannot, for a reason"
    lines = tables.markdown(table).splitlines()
    assert len(lines) == 5 and all(line.count("|") == len(tables.COLUMNS) + 1 for line in lines)
    assert tables.comma_separated(table).splitlines()[0].startswith("encoder,test,seeds")
    tables.figure(found, "title", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_overrides_may_stand_anywhere() -> None:
    relu = "data.where.activation=relu"
    more = "+data.where.epoch=50"
    args = compare.arguments(["cnn_digits", "--encoders", "statnn", "mlp", relu, "--epochs", "2", more])
    assert args.overrides == [relu, more]
    assert args.encoders == ["statnn", "mlp"] and args.epochs == 2


@pytest.mark.parametrize("bad", [["--encoders", "nonsense"], ["--seeds", "0"], ["--rates", "-1"]])
def test_what_makes_no_sense_is_refused(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.arguments(["digits_inr", *bad])
    assert bad[0] in capsys.readouterr().err
