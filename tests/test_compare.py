"""The comparison of encoders: rates chosen on validation, nothing repeated, refusals and stops kept, one protocol."""

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
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from comparisons import ROOT, order, result  # isort: skip (it finds the scripts)
import compare
from comparing import one_run, rows, tables
from comparing.comparison import Run
from comparing.one_run import outcome_of
from comparing.outcome import Order, Outcome, outcome_if_known

from wsl.callbacks.finite import NonFiniteError
from wsl.errors import UserError
from wsl.results import Result


def compared(
    args: Namespace, carry_out: Callable[[Order], Outcome]
) -> tuple[dict[str, list[Outcome]], dict[str, float]]:
    """All outcomes of what the arguments ask for, and the rates chosen."""
    wanted = compare.comparison(args, carry_out, lambda text: None)
    wanted.run()
    return wanted.outcomes, wanted.best_rates


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


def test_seeds_that_stopped_are_counted_and_hopeless_encoders_are_left(tmp_path: Path) -> None:
    asked: list[tuple[str, int]] = []

    def carry_out(o: Order) -> Outcome:
        asked.append((o.encoder, o.seed))
        if o.encoder == "mlp" or o.seed == 1:
            return Outcome(stopped="step 3: the loss is nan")
        return Outcome("", "", result(o.encoder, 0.5, 0.5, o.seed), 1.0, 1.0)

    args = compare.arguments(["digits_inr", "--encoders", "mlp", "statnn", "--out", str(tmp_path)])
    outcomes, chosen = compared(args, carry_out)
    assert [run for run in asked if run[0] == "mlp"] == [("mlp", 0)] * 2
    table = tables.rows(outcomes, chosen)
    assert table[0][:3] == ("statnn", "0.5000 ± 0.0000", "2, 1 stopped")
    assert table[1][:2] == ("mlp", "step 3: the loss is nan")


def test_where_less_is_better_the_least_is_chosen_and_first(tmp_path: Path) -> None:
    def carry_out(o: Order) -> Outcome:
        error = {"statnn": 2.0, "mlp": 1.0}[o.encoder] * o.rate
        return Outcome("", "", result(o.encoder, error, error, o.seed), 1.0, 1.0, mode="min")

    given = ["digits_inr", "--encoders", "statnn", "mlp", "--rates", "1e-2", "1e-3", "--out", str(tmp_path)]
    outcomes, chosen = compared(compare.arguments(given), carry_out)
    assert chosen == {"statnn": 1e-3, "mlp": 1e-3}
    assert [row[0] for row in tables.rows(outcomes, chosen)] == ["mlp", "statnn"]


def test_a_process_that_is_killed_twice_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed:
        def __init__(self, *given: object, **options: object) -> None: ...
        def __enter__(self) -> Killed:
            return self

        def __exit__(self, *given: object) -> None: ...
        def submit(self, *given: object) -> None:
            raise BrokenProcessPool

    monkeypatch.setattr(compare, "ProcessPoolExecutor", Killed)
    wanted = order(tmp_path, tmp_path / "zoo.h5", "statnn")
    with pytest.raises(UserError, match="start the same command again"):
        compare.in_own_process(wanted)
    assert compare.in_own_process(wanted).why_not == outcome_if_known(wanted).why_not
    assert "killed twice" in outcome_if_known(wanted).why_not


@pytest.mark.parametrize("epochs, batches", [(7, None), (1, None), (1, 5)])
def test_all_runs_of_an_encoder_are_as_long_as_its_first_could_afford(
    tmp_path: Path, epochs: int, batches: int | None
) -> None:
    asked: list[tuple[int, float, int | None]] = []

    def carry_out(o: Order) -> Outcome:
        asked.append((o.epochs, o.minutes, o.batches))
        if len(asked) == 1:
            return Outcome(stopped="diverged")  # says nothing of how long a run can be
        found = dataclasses.replace(result("statnn", 0.5, 0.5, o.seed), epochs=epochs)
        return Outcome(result=found, batches=batches)

    args = compare.arguments(["digits_inr", "--encoders", "statnn", "--epochs", "9", "--out", str(tmp_path)])
    compared(args, carry_out)
    assert asked == [(9, 4.0, None)] * 2 + [(epochs, math.inf, batches)] * 2


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
    tables.figure(found, "title", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_every_run_is_written_down_also_those_at_rates_that_were_not_chosen() -> None:
    tried = {
        Run("mlp", rate, seed): result("mlp", rate * 100, 0.5, seed) for seed, rate in ((1, 3e-3), (0, 3e-3), (0, 1e-3))
    }
    found = {run: Outcome(result=r) for run, r in tried.items()} | {Run("gat", 1e-3, 0): Outcome(refused="cannot")}
    read = list(csv.DictReader(io.StringIO(tables.comma_separated(tables.RUN_COLUMNS, tables.runs(found)))))
    assert [(r["encoder"], r["rate"], r["seed"], round(float(r["test"]), 6)) for r in read] == [
        ("mlp", "0.001", "0", 0.1), ("mlp", "0.003", "0", 0.3), ("mlp", "0.003", "1", 0.3),
    ]  # fmt: skip


def test_overrides_may_stand_anywhere() -> None:
    relu = "data.where.activation=relu"
    more = "+data.where.epoch=50"
    args = compare.arguments(["cnn_digits", "--encoders", "statnn", "mlp", relu, "--epochs", "2", more])
    assert args.overrides == [relu, more]
    assert args.encoders == ["statnn", "mlp"] and args.epochs == 2


@pytest.mark.parametrize(
    "given, what",
    [
        (["optimizer.lr=0.5"], "--rates"),
        (["trainer.max_epochs=5"], "--epochs"),
        (["--encoders", "statnn seed=7"], "--seeds"),
        (["--encoders", "mlp", "+encoder=statnn"], "--encoders"),
    ],
)
def test_what_a_comparison_sets_itself_is_no_override(
    given: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        compare.arguments(["digits_inr", *given])
    assert f"choose it with {what}" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["optimzer.lr=1"], ["--encoders", "mlp", "statnn encoder.hiden=[8]"]])
def test_misspelt_keys_are_refused_before_the_first_run(given: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        compare.main(["digits_inr", *given, "--out", str(tmp_path / "out")])
    assert "opti" in str(stop.value.code) or "hiden" in str(stop.value.code)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", [["--encoders", "nonsense"], ["--seeds", "0"], ["--rates", "-1"], ["--jobs", "0"]])
def test_what_makes_no_sense_is_refused(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.arguments(["digits_inr", *bad])
    assert bad[0] in capsys.readouterr().err
