"""A zoo with faulty rows: a copy without them, which says what is missing; or a refusal."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from zoo_files import chunk_offset, flip

from wsl.data.zoo_data import ZooData
from wsl.spec import WeightSpec, mlp_spec
from wsl.zoo import Zoo, ZooError, ZooWriter
from wsl.zoo.quarantine import write_without_faulty
from wsl.zoo.verify import verify_zoo

WIDE, NARROW = mlp_spec((31, 63)), mlp_spec((20, 30))


def write(path: Path, specs: tuple[WeightSpec, ...] = (WIDE,), nan: int = 7) -> list[np.ndarray]:
    """300 rows of the specs in turn, one of them not finite; the last 60 share a chunk if there is one spec."""
    rng, ids = np.random.default_rng(0), np.arange(300) % len(specs)
    values = [rng.normal(size=specs[spec].numel).astype(np.float32) for spec in ids]
    values[nan][3] = np.nan
    recipe = {"made": "here", "left_out": [{"name": "x", "reason": "before"}]}
    with ZooWriter(path, specs, 300, recipe, spec_ids=ids) as zoo:
        zoo.write(0, np.stack(values) if len(specs) == 1 else np.concatenate(values), finite=False)
        zoo.set_columns({"label": np.arange(300) % 3, "name": [f"row {row}" for row in range(300)]})
        zoo.set_run_ids(np.arange(300) // 2)
        zoo.set_splits({"train": np.arange(200), "val": np.arange(200, 240), "test": np.arange(200 + 40, 300)[::-1]})
        zoo.set_images(np.zeros((2, 4), dtype=np.uint8))
    return values


@pytest.mark.parametrize("specs", [(WIDE,), (WIDE, NARROW)])
def test_the_copy_lacks_the_faulty_row_alone(tmp_path: Path, specs: tuple[WeightSpec, ...]) -> None:
    values = write(tmp_path / "zoo.h5", specs)
    assert write_without_faulty(tmp_path / "zoo.h5", tmp_path / "sound.h5", most=1) == 1
    before, after = Zoo(tmp_path / "zoo.h5"), Zoo(tmp_path / "sound.h5")
    old = np.delete(np.arange(300), 7)
    read, row_ptr, spec_ids = after.read_mixed(0, 299, finite=True)
    for row, number in enumerate(old):
        assert np.array_equal(read[row_ptr[row] : row_ptr[row + 1]], values[number])
    assert [after.specs[i] for i in spec_ids] == [before.specs[i] for i in before.spec_ids[old]]
    for name in before.columns:
        assert np.array_equal(after.column(name), before.column(name)[old])
    assert np.array_equal(after.run_ids, before.run_ids[old])
    for name, rows in before.splits.items():
        assert [old[row] for row in after.splits[name]] == [row for row in rows if row != 7]
    assert np.array_equal(after.images, before.images)
    assert after.recipe["left_out"] == [*before.recipe["left_out"], {"row": 7, "reason": "not finite"}]
    assert after.recipe["copied_from"] == before.digest and after.recipe["made"] == "here"
    assert all(check.status != "FAILED" for check in verify_zoo(tmp_path / "sound.h5", sample=0))


def test_rows_of_a_damaged_chunk_are_left_out_together(tmp_path: Path) -> None:
    path, out = tmp_path / "zoo.h5", tmp_path / "sound.h5"
    values = write(path)
    flip(path, chunk_offset(path, "params", 4) + 100)  # rows 240 to 299: all of the test split
    with pytest.raises(ZooError, match=r"zoo\.h5: damaged or not finite: rows 7, 240, .*more.*61, more than the 60"):
        write_without_faulty(path, out, most=60)
    with pytest.raises(ZooError, match="no row of split 'test' can be used"):
        write_without_faulty(path, out, most=61)
    path.unlink()
    write(path)
    flip(path, chunk_offset(path, "params", 1) + 100)
    assert write_without_faulty(path, out, most=61) == 61
    left_out = Zoo(out).recipe["left_out"][1:]
    assert [entry["row"] for entry in left_out] == [7, *range(60, 120)]
    assert {entry["reason"] for entry in left_out[1:]} == {"damaged"}
    assert np.array_equal(Zoo(out).read_rows([6, 7, 58, 59]), np.stack([values[row] for row in (6, 8, 59, 120)]))


def test_a_spec_of_which_no_row_is_left_goes_too(tmp_path: Path) -> None:
    with ZooWriter(tmp_path / "zoo.h5", (WIDE, NARROW), 3, {}, spec_ids=[0, 1, 0]) as zoo:
        zoo.write(
            0, np.concatenate([np.ones(WIDE.numel), np.full(NARROW.numel, np.inf), np.ones(WIDE.numel)]), finite=False
        )
    write_without_faulty(tmp_path / "zoo.h5", tmp_path / "sound.h5", most=1)
    assert Zoo(tmp_path / "sound.h5").specs == (WIDE,) and len(Zoo(tmp_path / "sound.h5")) == 2


def test_nothing_to_leave_out_and_a_target_that_exists(zoo_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="every row can be used"):
        write_without_faulty(zoo_path, tmp_path / "sound.h5", most=5)
    write(tmp_path / "faulty.h5")
    (tmp_path / "there.h5").write_bytes(b"kept")
    with pytest.raises(ZooError, match=r"there\.h5"):
        write_without_faulty(tmp_path / "faulty.h5", tmp_path / "there.h5", most=5)
    assert (tmp_path / "there.h5").read_bytes() == b"kept"


def script(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["verify_zoo.py", *arguments])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "verify_zoo.py"), run_name="__main__")
    return done.value.code


def test_training_refuses_the_zoo_and_names_the_script_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "zoo.h5", tmp_path / "sound.h5"
    write(path)
    with pytest.raises(ZooError, match=r"zoo\.h5: row 7 holds nan .*verify_zoo\.py.*--without-faulty"):
        ZooData(path=str(path)).dataset("train")
    code = script(monkeypatch, str(path), "--without-faulty", str(out), "--at-most", "0")
    assert "more than the 0 that may be left out" in str(code) and not out.exists()
    assert script(monkeypatch, str(path), "--without-faulty", str(out), "--at-most", "1") == 0
    assert "1 row left out, 299 copied" in capsys.readouterr().out
    assert len(ZooData(path=str(out)).dataset("train")) == 199
