"""The search by Optuna: goes on where it was, repeats nothing, proposes what an uninterrupted one would have."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ranks_of_runs import ROOT, appears, end, finished, options, start

from wsl.config import ConfigError

sys.path.insert(0, str(ROOT / "scripts"))
search = pytest.importorskip("search")
pytest.importorskip("optuna")

SWEEP = {
    "program": "train.py",
    "method": "bayes",
    "metric": {"name": "val/accuracy", "goal": "maximize"},
    "parameters": {
        "optimizer.lr": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.1},
        "optimizer.weight_decay": {"values": [0.0, 0.1]},
        "encoder.dropout": {"min": 0.0, "max": 0.5},
        "trainer.max_epochs": {"value": 2},
    },
    "command": ["${env}", "${interpreter}", "${program}", "encoder=statnn", "${args_no_hyphens}"],
}


def sweep_file(folder: Path, **changes: Any) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(SWEEP | changes))
    return path


class FakeRuns:
    """The value of a trial is a function of its overrides; the trial of ``dies`` cuts the search short."""

    def __init__(self, dies: int | None = None) -> None:
        self.dies, self.asked = dies, []

    def __call__(self, trials: Any, number: int, overrides: list[str]) -> float | None:
        self.asked.append((number, tuple(overrides)))
        if number == self.dies:
            raise SystemExit(75)
        rate = float(overrides[0].partition("=")[2])
        return None if number == 1 else 1 - rate


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, trials: int, runs: FakeRuns, **changes: Any) -> Any:
    before = {number: signal.getsignal(number) for number in search.SIGNALS}
    monkeypatch.setattr(search.Trials, "value", lambda self, number, overrides: runs(self, number, overrides))
    folder.mkdir(exist_ok=True)
    try:
        return search.search(search.Sweep.read(sweep_file(folder, **changes)), folder, trials, 0, [])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_an_interrupted_search_is_the_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, part, rest = FakeRuns(), FakeRuns(dies=12), FakeRuns()
    study = run(monkeypatch, tmp_path / "whole", 14, whole)
    assert [number for number, _ in whole.asked] == list(range(14)) and len({o for _, o in whole.asked}) == 14
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path / "part", 14, part)
    again = run(monkeypatch, tmp_path / "part", 14, rest)
    assert part.asked[:12] == whole.asked[:12] and rest.asked == whole.asked[12:], "12 is cut short, and asked again"
    assert part.asked[12] == rest.asked[0], "in the same folder with the same settings"
    assert again.best_trial.params == study.best_trial.params
    assert study.get_trials()[1].state.name == "FAIL", "a trial that fails is not the end"
    assert run(monkeypatch, tmp_path / "part", 14, FakeRuns(dies=0)).best_value == study.best_value, "nothing is left"
    with pytest.raises(search.SearchError, match="another search"):
        run(monkeypatch, tmp_path / "part", 15, FakeRuns(), method="random")


def test_small_errors_are_sought_where_the_goal_is_to_minimise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = run(monkeypatch, tmp_path, 4, FakeRuns(), metric={"name": "val/mse", "goal": "minimize"})
    assert study.best_value == min(trial.value for trial in study.get_trials() if trial.value is not None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "grid"}, "method: grid: allowed is bayes or random"),
        ({"metric": {"name": "test/accuracy", "goal": "maximize"}}, "test/accuracy: trials are judged by"),
        ({"metric": {"name": "val/accuracy", "goal": "up"}}, "goal: up"),
        ({"metric": None}, "no sweep file"),
        ({"metric": {"name": 3, "goal": "maximize"}}, "metric.name: 3: trials are judged by"),
        ({"parameters": {"seed": 3}}, "parameters: seed: 3: should hold value"),
        ({"parameters": {"seed": {"values": 3}}}, "parameters: seed: .*should hold value"),
        ({"parameters": {"seed": {"distribution": "normal"}}}, "seed: .*kinds are constant"),
        ({"parameters": {"optimizer.lr": {"min": 1.0, "max": 0.1}}}, r"optimizer\.lr: .*"),
    ],
)
def test_files_of_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(search.SearchError, match=words):
        run(monkeypatch, tmp_path, 1, FakeRuns(), **changes)


def test_a_misspelt_key_is_refused_before_the_first_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, wrong = FakeRuns(), SWEEP["parameters"] | {"encoder.dropuot": {"min": 0.0, "max": 0.5}}
    with pytest.raises(ConfigError, match=r"encoder\.dropuot=0\.0; did you mean 'dropout'"):
        run(monkeypatch, tmp_path / "search", 3, runs, parameters=wrong)
    assert runs.asked == [] and list((tmp_path / "search").iterdir()) == [tmp_path / "search" / "sweep.yaml"]


def test_the_first_trial_that_fails_is_the_end_and_locks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = FakeRuns()
    monkeypatch.setattr(FakeRuns, "__call__", lambda self, trials, number, overrides: self.asked.append(number))
    with pytest.raises(search.SearchError, match=r"the first trial failed, and says why above; mend it"):
        run(monkeypatch, tmp_path, 3, failing)
    assert failing.asked == [0] and not (tmp_path / "search.json").exists()
    monkeypatch.undo()
    study = run(monkeypatch, tmp_path, 2, FakeRuns(), method="random")
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE", "FAIL"]
    assert (tmp_path / "search.json").exists()


def test_of_two_arguments_for_a_key_the_last_counts(tmp_path: Path) -> None:
    sweep = search.Sweep.read(sweep_file(tmp_path))
    words = search.last_of([*sweep.fixed, "encoder=mlp", "seed=1", *sweep.examples])
    assert words[:2] == ["encoder=mlp", "seed=1"]
    wanted = {"optimizer.lr=0.001", "optimizer.weight_decay=0.0", "encoder.dropout=0.0", "trainer.max_epochs=2"}
    assert set(words[2:]) == wanted


def test_no_trials_are_no_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["search.py", "x.yaml", "--folder", str(tmp_path / "s"), "--trials", "0"])
    with pytest.raises(SystemExit) as left:
        search.main()
    assert left.value.code == 2 and not (tmp_path / "s").exists()


def test_the_sweep_files_of_the_house_can_be_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (ROOT / "conf" / "sweep").glob("*.yaml"):
        values = yaml.safe_load(path.read_text())
        study = run(monkeypatch, tmp_path / path.stem, 1, FakeRuns(), **values)
        assert set(study.get_trials()[0].params) == set(values["parameters"])


@pytest.mark.slow
def test_a_search_that_was_preempted(small_zoo: Path, tmp_path: Path) -> None:
    """Three trials; the signal comes in the first, whose checkpoint is gone on with."""
    parameters = SWEEP["parameters"] | {"trainer.max_epochs": {"value": 150}}
    folder, program = tmp_path / "search", (sys.executable, str(ROOT / "scripts" / "search.py"))
    given = [str(sweep_file(tmp_path, parameters=parameters)), "--folder", str(folder), "--trials", "3"]
    given += [word for word in options(small_zoo, "data.batch_size=32") if not word.startswith("compare")]
    process = start(*given, program=program)
    appears(folder / "0" / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGUSR1)
    code, said = end(process)
    assert code == 75 and "preempted by SIGUSR1" in said and not (folder / "0" / "result.json").exists(), said
    said = finished(*given, program=program)
    assert len(json.loads((folder / "0" / "provenance.json").read_text())) == 2
    assert all((folder / str(number) / "result.json").exists() for number in range(3))
    assert "best of 3: " in said and str(folder) in said
    before = [(folder / str(number) / "metrics.csv").stat().st_mtime_ns for number in range(3)]
    finished(*given, program=program)
    assert [(folder / str(number) / "metrics.csv").stat().st_mtime_ns for number in range(3)] == before
