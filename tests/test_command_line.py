"""How programs end: one line for Ctrl-C and for a full disk, a traceback for what no user can mend."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from wsl.command_line import INTERRUPTED, interruption_told, jobs_of, plain_errors, with_keys_of_run


def lightnings_exit() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


def ctrl_c() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("action", [ctrl_c, lightnings_exit])
def test_ctrl_c_is_one_line(action: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(action)
    with pytest.raises(SystemExit) as left, plain_errors(), plain_errors():
        action()
    assert left.value.code == INTERRUPTED
    assert capsys.readouterr().err == "interrupted; give the same command again to go on\n"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.previous.ckpt").touch()
    with pytest.raises(SystemExit), plain_errors(), interruption_told(tmp_path):
        action()
    assert capsys.readouterr().err == f"interrupted; go on with resume={tmp_path}\n"


def test_other_exits_pass(capsys: pytest.CaptureFixture[str]) -> None:
    for code in (0, 1, 75, "error: words"):
        with pytest.raises(SystemExit) as left, plain_errors(), interruption_told(Path()):
            sys.exit(code)
        assert left.value.code == code
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_one_line() -> None:
    with pytest.raises(SystemExit, match=r"error: a\.csv: No space left on device; free space"), plain_errors():
        raise OSError(28, "No space left on device", "a.csv")
    with pytest.raises(OSError, match="Bad file"), plain_errors():
        raise OSError(9, "Bad file descriptor")


def test_jobs_of_a_sweep() -> None:
    given = ["seed=0,1", "compare=[]", "encoder=statnn,'a b'", "optimizer.lr=range(1,3)"]
    jobs = jobs_of(given)
    assert len(jobs) == 8 and jobs[1] == ("seed=0", "encoder=statnn", "optimizer.lr=2")
    assert jobs_of(["seed=0"]) == [()], "one job"
    assert jobs_of(["encoder=glob(*)"]) == [], "the folder of options decides"


def test_values_beside_resume_are_the_runs_to_judge() -> None:
    assert with_keys_of_run(["encoder.paths=8"]) == ["encoder.paths=8"]
    assert with_keys_of_run(["resume=null", "encoder.paths=8"]) == ["resume=null", "encoder.paths=8"]
    given = ["resume=runs/a", "encoder.paths=8", "seed=1", "encoder=mlp", "hydra.sweep.dir=x", "--multirun", "+a.b=1"]
    assert with_keys_of_run(given) == [given[0], "++encoder.paths=8", *given[2:]]
