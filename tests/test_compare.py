"""The comparison of encoders: one run measured, rates chosen on validation, nothing repeated, refusals kept."""

from __future__ import annotations

import csv
import dataclasses
import fcntl
import io
import math
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "scripts"), str(Path(__file__).parents[1])]

import compare  # noqa: E402
from comparing import one_run, protocol, rows, tables  # noqa: E402
from comparing.one_run import Curves, Order, Outcome, outcome_if_known, outcome_of  # noqa: E402

from wsl.callbacks.finite import NonFiniteError  # noqa: E402
from wsl.errors import UserError  # noqa: E402
from wsl.results import Result  # noqa: E402

ROOT = Path(__file__).parents[1]


def compared(
    args: Namespace, carry_out: Callable[[Order], Outcome]
) -> tuple[dict[str, list[Outcome]], dict[str, float]]:
    """All outcomes of what the arguments ask for, and the rates chosen."""
    wanted = compare.comparison(args, carry_out, lambda text: None)
    wanted.run()
    return wanted.outcomes, wanted.best_rates


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


def test_a_run_that_diverges_is_a_row_and_the_other_rate_is_taken(
    tmp_path: Path, small_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(_: object, folder: Path) -> Result:
        (folder / "config.yaml").touch()
        raise NonFiniteError("step 3: the loss is nan\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(one_run, "run", diverges)
        found = outcome_of(order(tmp_path / "statnn", small_zoo, "statnn"))
    assert found.result is None and found.why_not == found.stopped == "step 3: the loss is nan"

    def carry_out(o: Order) -> Outcome:
        return found if o.rate == 3e-3 else Outcome(result=result("statnn", 0.5, 0.5, o.seed))

    rates = ["--rates", "3e-3", "1e-3"]
    args = compare.arguments(["digits_inr", "--encoders", "statnn", *rates, "--seeds", "2", "--out", str(tmp_path)])
    outcomes, chosen = compared(args, carry_out)
    assert chosen["statnn"] == 1e-3 and len(outcomes["statnn"]) == 2 and all(o.result for o in outcomes["statnn"])


def test_a_run_over_the_budget_is_shortened(tmp_path: Path, small_zoo: Path) -> None:
    wanted = order(tmp_path, small_zoo, "statnn")  # two epochs in a minute
    trainer = one_run.configured(wanted).trainer
    epochs = {step: one_run.within_budget(trainer, wanted, step, 20) for step in (0.1, 2.0, 12.0)}
    assert [t.max_epochs for t in epochs.values()] == [2, 1, 1]
    assert [t.limit_train_batches for t in epochs.values()] == [1.0, 1.0, 5]


def test_all_runs_of_an_encoder_have_the_epochs_that_its_first_could_afford(tmp_path: Path) -> None:
    asked: list[tuple[int, float]] = []

    def carry_out(o: Order) -> Outcome:
        asked.append((o.epochs, o.minutes))
        return Outcome(result=dataclasses.replace(result("statnn", 0.5, 0.5, o.seed), epochs=7))

    args = compare.arguments(["digits_inr", "--encoders", "statnn", "--epochs", "9", "--out", str(tmp_path)])
    compared(args, carry_out)
    assert asked == [(9, 4.0), *[(7, math.inf)] * 3]


def test_time_to_95_counts_validations() -> None:
    found = result("statnn", 0.5, 0.8)
    curve = [{"val/accuracy": text, "train/loss_epoch": "0.5"} for text in ("0.3", "", "0.77", "0.8", "0.6")]
    assert Curves(curve).seconds_to_95(found) == pytest.approx(2 * found.seconds / 4)
    assert Curves(curve).last("train/loss_epoch") == 0.5
    assert math.isnan(Curves(curve).last("val/loss")) and math.isnan(Curves([]).seconds_to_95(found))


def test_runs_go_side_by_side_and_an_error_ends_all(tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=60)

    def meet(o: Order) -> Outcome:
        together.wait()  # ends only if two runs are under way at once
        return Outcome(result=result(o.encoder, 0.5, 0.5, o.seed))

    given = ["digits_inr", "--encoders", "statnn", "mlp", "--rates", "1e-3", "--out", str(tmp_path)]
    found, _ = compared(compare.arguments([*given, "--jobs", "2"]), meet)
    assert [len(outcomes) for outcomes in found.values()] == [3, 3]

    asked = []

    def killed(o: Order) -> Outcome:
        asked.append(o.encoder)
        raise UserError("the run was killed")

    with pytest.raises(UserError, match="was killed"):
        compared(compare.arguments(given), killed)
    assert asked == ["statnn"]


def test_a_killed_comparison_leaves_no_run_behind(tmp_path: Path, small_zoo: Path) -> None:
    command = [sys.executable, "scripts/compare.py", "digits_inr", "--encoders", "ng_gnn_small", "--epochs", "1000"]
    given = [f"data.path={small_zoo}", "data.build=''", "--budget", "600", "--out", str(tmp_path), "--threads", "1"]
    comparison = subprocess.Popen([*command, *given], cwd=ROOT, stdout=subprocess.DEVNULL)
    lock = tmp_path / "ng_gnn_small" / "rate0.001_seed0" / ".lock"
    try:
        wait_until(lambda: lock.exists() and not is_free(lock))
    finally:
        comparison.kill()
        comparison.wait()
    wait_until(lambda: is_free(lock))


def is_free(lock: Path) -> bool:
    """Whether no process holds the lock of a run folder."""
    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def wait_until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:g} seconds"
        time.sleep(0.1)


def test_what_is_finished_can_be_tabulated_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "statnn" / "rate0.003_seed0"
    run.mkdir(parents=True)
    known = Outcome("", "", result("statnn", 0.5, 0.6), 1.0, 100.0, ("permutation",), 3.0, (0.1, 0.2))
    known.write(run / "outcome.json")
    assert compare.main(["digits_inr", "--encoders", "statnn", "mlp", "--finished", "--out", str(tmp_path)]) == 0
    table = (tmp_path / "table.md").read_text().splitlines()
    assert table[2].startswith("| statnn | 0.5000 | 1 |") and table[3].startswith("| mlp | not run |")
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 2
    assert not (tmp_path / "mlp").exists()
    capsys.readouterr()


@pytest.mark.parametrize("zoo", ["digits_inr", "mnist_inr_nfn", "cnn_digits", "wild_park_digits", "rnn_small", "cora"])
def test_the_rows_of_the_tables_are_options_with_folders_of_their_own(zoo: str) -> None:
    wanted = compare.arguments([zoo, "--encoders", "table"]).encoders
    assert {"inr": "probe_mlp", "cor": "gcn"}.get(zoo[:3], "statnn") in wanted or "inr" in zoo
    assert len({rows.folder(name) for name in wanted}) == len(wanted) > 5

    for again in ([], ["--rates", "1e-2"], ["--seeds", "5"], ["--jobs", "2"]):
        assert compare.main([*given, *again]) == 0
    for changed, name in (
        (["--epochs", "31"], "epochs"),
        (["data.batch_size=8"], "overrides"),
        (["--budget", "1"], "minutes"),
    ):
        with pytest.raises(SystemExit) as stop:
            compare.main([*given, *changed])
        said = str(stop.value.code)
        assert name in said and "another --out" in said and "threads" not in said


def test_runs_tested_on_other_rows_do_not_share_a_table(tmp_path: Path) -> None:
    old, new = (dataclasses.replace(result("statnn", 0.5, 0.5), split=split) for split in ("a1", "b2"))
    protocol.of_one_split({"statnn": [Outcome(result=old)], "mlp": [Outcome(refused="no")]}, tmp_path)
    with pytest.raises(UserError, match="a1: statnn; b2: mlp"):
        protocol.of_one_split({"statnn": [Outcome(result=old)], "mlp": [Outcome(result=new)]}, tmp_path)


def test_the_rate_is_chosen_on_validation_and_then_kept(tmp_path: Path) -> None:
    asked: list[tuple[str, float, int]] = []

    def carry_out(o: Order) -> Outcome:
        asked.append((o.encoder, o.rate, o.seed))
        if o.encoder == "mlp":
            return Outcome(refused="not this one")
        better_on_test, better_on_val = o.rate == 1e-3, o.rate == 3e-3
        return Outcome(result=result("statnn", 0.9 if better_on_test else 0.5, 0.8 if better_on_val else 0.4, o.seed))

    args = compare.arguments(["digits_inr", "--encoders", "statnn", "mlp", "--seeds", "3", "--out", str(tmp_path)])
    found, rates = compared(args, carry_out)
    assert asked == [
        ("statnn", 1e-3, 0), ("mlp", 1e-3, 0), ("statnn", 3e-3, 0), ("statnn", 3e-3, 1), ("statnn", 3e-3, 2),
    ]  # fmt: skip
    assert rates["statnn"] == 3e-3 and [o.result.seed for o in found["statnn"] if o.result] == [0, 1, 2]
    assert found["mlp"][0].refused == "not this one"


def test_tables_and_figure(tmp_path: Path) -> None:
    found = {
        "no": [Outcome(refused="cannot, for a reason")],
        "low": [Outcome("", "", result("low", 0.25, 0.3), 2.0, 100.0, (), 3.0)],
        "high": [Outcome("", "", result("high", t, 0.6), 20.0, 200.0, ("permutation",)) for t in (0.5, 0.7)],
    }
    table = tables.rows(found, {"low": 1e-3, "high": 3e-3})
    assert [row[0] for row in table] == ["high", "low", "no"]
    named = [dict(zip(tables.COLUMNS, row, strict=True)) for row in table]
    assert named[0]["test"] == "0.6000 ± 0.1414" and named[0]["to 95 %, s"] == "?"
    assert named[2]["test"] == "cannot, for a reason"
    lines = tables.markdown(table).splitlines()
    assert len(lines) == 5 and all(line.count("|") == len(tables.COLUMNS) + 1 for line in lines)
    assert tables.comma_separated(tables.COLUMNS, table).splitlines()[0].startswith("encoder,test,seeds")
    each = tables.comma_separated(tables.RUN_COLUMNS, tables.runs(found, {"low": 1e-3, "high": 3e-3, "no": 1e-3}))
    read = list(csv.DictReader(io.StringIO(each)))
    assert [(r["encoder"], float(r["test"]), r["rate"]) for r in read] == [
        ("high", 0.5, "0.003"), ("high", 0.7, "0.003"), ("low", 0.25, "0.001"),
    ]  # fmt: skip
    tables.figure(found, "title", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_overrides_may_stand_anywhere() -> None:
    relu = "data.where.activation=relu"
    more = "+data.where.epoch=50"
    args = compare.arguments(["cnn_digits", "--encoders", "statnn", "mlp", relu, "--epochs", "2", more])
    assert args.overrides == [relu, more]
    assert args.encoders == ["statnn", "mlp"] and args.epochs == 2


@pytest.mark.parametrize("bad", [["--encoders", "nonsense"], ["--seeds", "0"], ["--rates", "-1"], ["--jobs", "0"]])
def test_what_makes_no_sense_is_refused(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.arguments(["digits_inr", *bad])
    assert bad[0] in capsys.readouterr().err
