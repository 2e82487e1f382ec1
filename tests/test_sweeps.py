"""Sweeps: what is done is not done again, and the table says what the jobs found."""

from __future__ import annotations

import csv
import statistics
import sys
from pathlib import Path

import pytest
import yaml
from ranks_of_runs import ROOT, end, finished, options, start
from unprivileged import unprivileged

from wsl import sweeps
from wsl.results import Result
from wsl.run_folder import RunFolderError, write_config

sys.path.insert(0, str(ROOT / "scripts"))
collect = pytest.importorskip("collect")


def job(folder: Path, seed: int, val: float, test: float, done: bool = True, **changes: object) -> None:
    config = {"encoder": {"name": "statnn", "width": 8}, "label": "statnn", "task": {"name": "classification"}}
    write_config(folder, config | {"optimizer": {"lr": 0.1}, "seed": seed} | changes)
    if done:
        one = Result("statnn", 1, "accuracy", {"accuracy": val}, {"accuracy": test}, 0, 1, 0.0, seed, "zoo.h5")
        one.write(folder)


def test_settings_are_averaged_over_seeds_and_ranked_by_validation(tmp_path: Path) -> None:
    for number, (lr, seed, val, test) in enumerate([(0.1, 0, 0.5, 0.9), (0.1, 1, 0.7, 0.8), (0.2, 0, 0.9, 0.1)]):
        job(tmp_path / str(number), seed, val, test, optimizer={"lr": lr})
    job(tmp_path / "3", 1, 0, 0, done=False, optimizer={"lr": 0.2})
    settings, without = sweeps.collect(tmp_path)
    assert [s.values for s in settings] == [{"optimizer.lr": 0.2}, {"optimizer.lr": 0.1}], "test decides nothing"
    assert settings[1].mean("val") == pytest.approx(0.6) and without == {tmp_path / "3": "not finished"}
    written, figure = sweeps.write(settings, tmp_path)
    with open(written, newline="") as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["optimizer.lr"], rows[0]["seed"], rows[0]["test/accuracy"]) == ("0.2", "0", "0.1")
    assert figure.read_bytes().startswith(b"\x89PNG")
    cells = [list(column.cells) for column in sweeps.table(settings, "").columns]
    assert cells[1] == ["1", "2"] and cells[2][1] == f"0.6000 ± {statistics.stdev([0.5, 0.7]):.4f}"


def test_encoders_are_told_apart_by_name(tmp_path: Path) -> None:
    job(tmp_path / "0", 0, 0.5, 0.5)
    job(tmp_path / "1", 0, 0.6, 0.6, encoder={"name": "mlp", "hidden": [3]}, label="mlp")
    settings, _ = sweeps.collect(tmp_path)
    assert [s.values for s in settings] == [{"encoder": "mlp"}, {"encoder": "statnn"}]


def test_a_small_error_is_the_best_where_the_metric_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps.TASKS["classification"], "mode", "min")
    job(tmp_path / "0", 0, 0.5, 0.5)
    job(tmp_path / "1", 0, 0.6, 0.6, optimizer={"lr": 0.3})
    assert sweeps.collect(tmp_path)[0][0].values == {"optimizer.lr": 0.1}


def test_a_folder_without_a_finished_job_is_refused(tmp_path: Path) -> None:
    job(tmp_path / "0", 0, 0, 0, done=False)
    with pytest.raises(RunFolderError, match="no finished job"):
        sweeps.collect(tmp_path)


def test_jobs_that_left_nothing_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job that is refused before it begins leaves no folder: what was asked for tells it."""
    asked = {
        "sweep": {"subdir": "${hydra:job.num}"},
        "overrides": {"task": ["seed=0,1", "encoder=statnn,gcn", "compare=[]"]},
    }
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump({"seed": 0, "hydra": asked}))
    job(tmp_path / "0", 0, 0.5, 0.5)
    job(tmp_path / "2", 1, 0.6, 0.6)
    _, without = sweeps.collect(tmp_path)
    assert without == {
        tmp_path / "1": "left nothing: seed=0 encoder=gcn", tmp_path / "3": "left nothing: seed=1 encoder=gcn",
    }  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["collect.py", str(tmp_path)])
    collect.main()
    said = capsys.readouterr().out
    assert "2 of 4 jobs have no result" in said and f"{tmp_path / '3'}: left nothing: seed=1 encoder=gcn" in said


def test_a_note_of_another_kind_says_nothing(tmp_path: Path) -> None:
    job(tmp_path / "0", 0, 0.5, 0.5)
    for text in ("a: [", "- 1", "hydra: {sweep: {subdir: x}}", "hydra: 3"):
        (tmp_path / "multirun.yaml").write_text(text)
        assert sweeps.collect(tmp_path)[1] == {}


@pytest.mark.parametrize("content", ["{", "[]", "3", '"x"', "{}", "\xff", '{"metric": "accuracy"}'])
@pytest.mark.parametrize("file", ["result.json", "config.yaml"])
def test_what_cannot_be_read_is_named_and_the_rest_collected(tmp_path: Path, content: str, file: str) -> None:
    for number in (0, 1):
        job(tmp_path / str(number), number, 0.5, 0.5)
    (tmp_path / "1" / file).write_bytes(content.encode("latin1"))
    settings, without = sweeps.collect(tmp_path)
    assert [len(setting.found) for setting in settings] == [1]
    assert list(without) == [tmp_path / "1"] and file in without[tmp_path / "1"]


def test_a_sweep_in_a_read_only_folder(tmp_path: Path) -> None:
    job(tmp_path / "0", 0, 0.5, 0.5)
    settings, _ = sweeps.collect(tmp_path)
    tmp_path.chmod(0o555)
    try:
        with unprivileged(), pytest.raises(RunFolderError, match=r"sweep\.csv: Permission denied"):
            sweeps.write(settings, tmp_path)
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.slow
def test_a_sweep_that_died_goes_on_and_repeats_nothing(small_zoo: Path, tmp_path: Path) -> None:
    """Three jobs, of which the first has ended and the second has no result yet when the sweep is given again."""
    short = options(small_zoo, "trainer.max_epochs=2", "scheduler=constant")
    sweep = ["--multirun", "seed=0,1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    finished(*sweep[:1], "seed=0,1", sweep[2], *short)
    (tmp_path / "sweep" / "1" / "result.json").unlink()
    first = (tmp_path / "sweep" / "0" / "metrics.csv").stat().st_mtime_ns
    finished(*sweep, *short)
    assert (tmp_path / "sweep" / "0" / "metrics.csv").stat().st_mtime_ns == first
    assert [Result.read(tmp_path / "sweep" / n).seed for n in "012"] == [0, 1, 2]
    said = finished(str(tmp_path / "sweep"), program=(sys.executable, str(ROOT / "scripts" / "collect.py")))
    assert "all finished jobs" in said and "3" in said and (tmp_path / "sweep" / "sweep.png").exists()
    code, said = end(start(*sweep, *short, "optimizer.lr=0.5"))
    assert code != 0 and "optimizer.lr" in said, "another config in the same folder"


def test_sweep_files_name_keys_that_exist() -> None:
    for path in sorted((ROOT / "conf" / "sweep").glob("*.yaml")):
        sweep = yaml.safe_load(path.read_text())
        assert sweep["program"] == "train.py" and "${args_no_hyphens}" in sweep["command"], path
        known = yaml.safe_load((ROOT / "conf" / "train.yaml").read_text())
        for key in sweep["parameters"]:
            group, _, leaf = key.partition(".")
            if leaf:
                found = [yaml.safe_load(f.read_text()) for f in (ROOT / "conf" / group).glob("*.yaml")]
                assert any(leaf in values for values in found), f"{path}: {key}"
            else:
                assert key in known or (ROOT / "conf" / key).is_dir(), f"{path}: {key}"
