"""What runs of a comparison must have in common: protocol, split, and the content of the data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from comparisons import result  # isort: skip (it finds the scripts)
import compare
from comparing import protocol
from comparing.outcome import Outcome, outcome_if_known

from wsl.errors import UserError


def test_runs_of_another_protocol_are_not_taken_for_finished_ones(tmp_path: Path) -> None:
    given = ["digits_inr", "--encoders", "statnn", "--finished", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        compare.main(given)
    assert "holds no finished run" in str(stop.value.code) and not list(tmp_path.iterdir())
    args = compare.arguments(given)
    protocol.keep_to(tmp_path / "new" / "folder", compare.comparison(args, outcome_if_known, print).protocol)
    given[-1] = str(tmp_path / "new" / "folder")
    finished_run(tmp_path / "new" / "folder" / "statnn")
    for again in ([], ["--rates", "1e-2", "3e-3"], ["--seeds", "5"], ["--jobs", "2"]):
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


def finished_run(folder: Path, digest: str = "") -> None:
    (run := folder / "rate0.003_seed0").mkdir(parents=True)
    Outcome(result=dataclasses.replace(result("statnn", 0.5, 0.6), digest=digest)).write(run / "outcome.json")


def test_a_protocol_without_a_run_binds_nobody(tmp_path: Path) -> None:
    """A first command with a mistake in it: the second may say otherwise."""
    protocol.keep_to(tmp_path, {"epochs": 2})
    (tmp_path / "statnn" / "rate0.003_seed0").mkdir(parents=True)
    Outcome(refused="no").write(tmp_path / "statnn" / "rate0.003_seed0" / "outcome.json")
    protocol.keep_to(tmp_path, {"epochs": 3})
    (tmp_path / "mlp" / "rate0.003_seed0" / "checkpoints").mkdir(parents=True)
    (tmp_path / "mlp" / "rate0.003_seed0" / "checkpoints" / "last.ckpt").touch()  # interrupted
    with pytest.raises(UserError, match="epochs: 3, now 4"):
        protocol.keep_to(tmp_path, {"epochs": 4})
    (tmp_path / "protocol.json").write_text("[1")
    with pytest.raises(UserError, match=r"protocol.json cannot be read.*--out"):
        protocol.keep_to(tmp_path, {"epochs": 3})


def test_runs_on_a_zoo_that_was_built_anew_are_not_added_to(tmp_path: Path, small_zoo: Path) -> None:
    given = ["digits_inr", "--encoders", "statnn", "--epochs", "1", "--seeds", "1", "--out", str(tmp_path / "out")]
    given += [f"data.path={small_zoo}", "data.build=''"]
    finished_run(tmp_path / "out" / "statnn", digest="another")
    (tmp_path / "out" / "protocol.json").write_text(
        json.dumps(compare.comparison(compare.arguments(given), outcome_if_known, print).protocol)
    )
    for more, said in (([], "data of another content"), (["data.path=nowhere.h5"], "nowhere.h5 does not exist")):
        with pytest.raises(SystemExit) as stop:
            compare.main([*given, *more])
        assert said in str(stop.value.code)
    other = Outcome(result=dataclasses.replace(result("mlp", 0.5, 0.6), digest="one"))
    known = Outcome.read(tmp_path / "out" / "statnn" / "rate0.003_seed0" / "outcome.json")
    with pytest.raises(UserError, match=r"data of several contents.*another: statnn"):
        protocol.of_one_split({"mlp": [other], "statnn": [known]}, tmp_path)


def test_a_task_that_cannot_read_the_data_is_refused_once(tmp_path: Path, small_zoo: Path) -> None:
    given = ["digits_inr", "--task", "node_classification", "--out", str(tmp_path / "out"), f"data.path={small_zoo}"]
    with pytest.raises(SystemExit) as stop:
        compare.main([*given, "data.build=''"])
    assert (
        "task.name=node_classification reads a NodeGraphSpec" in str(stop.value.code)
        and not (tmp_path / "out").exists()
    )


def test_runs_tested_on_other_rows_do_not_share_a_table(tmp_path: Path) -> None:
    old, new = (dataclasses.replace(result("statnn", 0.5, 0.5), split=split) for split in ("a1", "b2"))
    protocol.of_one_split({"statnn": [Outcome(result=old)], "mlp": [Outcome(refused="no")]}, tmp_path)
    with pytest.raises(UserError, match="a1: statnn; b2: mlp"):
        protocol.of_one_split({"statnn": [Outcome(result=old)], "mlp": [Outcome(result=new)]}, tmp_path)
