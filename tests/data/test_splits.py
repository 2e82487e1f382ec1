"""Splits: folds cover every row once, nothing leaks, and copies across splits are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsl.data import copies
from wsl.data.copies import check_no_copies, row_hashes
from wsl.data.splits import Splits, check_no_leak, split_digest
from wsl.data.zoo_data import SplitConfig, ZooData
from wsl.spec import mlp_spec
from wsl.zoo import Zoo, ZooError, ZooWriter

SPEC = mlp_spec((2, 3, 1))


def write(path: Path, values: np.ndarray, splits: dict[str, np.ndarray], images: np.ndarray | None = None) -> Path:
    with ZooWriter(path, SPEC, len(values), {}) as zoo:
        zoo.write(0, values)
        zoo.set_columns({"label": np.arange(len(values)) % 2})
        if images is not None:
            zoo.set_columns({"image_index": images})
        zoo.set_splits(splits)
    return path


def random_rows(rows: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, SPEC.numel)).astype(np.float32)


THIRDS = {"train": np.arange(10), "val": np.arange(10, 20), "test": np.arange(20, 30)}


@pytest.mark.parametrize("by", ["run", "architecture"])
def test_folds_test_every_row_once_and_leak_nothing(varied_zoo: Path, by: Any) -> None:
    folds, tested = 4, []
    with Zoo(varied_zoo) as zoo:
        for fold in range(folds):
            rows = Splits(by=by, folds=folds, fold=fold, val_share=0.2).rows(zoo)
            assert sorted(np.concatenate(list(rows.values()))) == list(range(len(zoo)))
            check_no_leak(zoo, rows)
            held_out = zoo.spec_ids if by == "architecture" else zoo.run_ids
            others = np.concatenate([rows["train"], rows["val"]])
            assert not set(held_out[rows["test"]]) & set(held_out[others])
            share = len(np.unique(zoo.run_ids[rows["val"]])) / len(np.unique(zoo.run_ids[others]))
            assert share == pytest.approx(0.2, abs=0.02)
            tested += rows["test"].tolist()
            assert len(rows["test"]) == len(zoo) // folds
        assert sorted(tested) == list(range(len(zoo)))


def test_folds_are_functions_of_their_seed(cnn_zoo: Path) -> None:
    with Zoo(cnn_zoo) as zoo:
        one = split_digest(Splits(by="run").rows(zoo))
        assert one == split_digest(Splits(by="run").rows(zoo))
        others = [Splits(by="run", seed=1), Splits(by="run", fold=1), Splits(by="run", val_share=0.3), Splits()]
        assert len({one, *(split_digest(split.rows(zoo)) for split in others)}) == 5


def test_folds_by_image_keep_views_together(tmp_path: Path) -> None:
    images = np.arange(30) // 3
    path = write(tmp_path / "a.h5", random_rows(30), {"train": np.arange(30)}, images)
    with Zoo(path) as zoo:
        rows = Splits(by="image", folds=5).rows(zoo)
        parts = [set(images[part]) for part in rows.values()]
        assert [len(part) for part in parts] == [7, 1, 2] and len(set.union(*parts)) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"by": "architecture", "folds": 3},
            r"has 2 of what data\.split\.by=architecture names; .*=3 should be 2 to 2",
        ),
        ({"by": "run", "folds": 1}, r"folds=1 should be 2 to 60"),
        ({"by": "run", "folds": 5, "fold": 5}, r"data\.split\.fold=5 less than that"),
        ({"by": "image"}, "no column 'image_index'"),
    ],
)
def test_folds_that_cannot_be_made_are_refused(cnn_zoo: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        ZooData(path=str(cnn_zoo), target="test_accuracy", split=SplitConfig(**options))


def test_the_module_holds_out_an_architecture(cnn_zoo: Path) -> None:
    split = SplitConfig(by="architecture", folds=2)
    data = ZooData(path=str(cnn_zoo), target="test_accuracy", split=split)
    with Zoo(cnn_zoo) as zoo:
        kinds = {name: set(zoo.column("activation")[rows]) for name, rows in data.rows.items()}
    assert kinds["train"] == kinds["val"] and len(kinds["test"]) == 1 and not kinds["train"] & kinds["test"]


def test_a_zoo_without_splits_names_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", random_rows(30), {"train": np.arange(30)})
    with pytest.raises(ZooError, match=r"no rows in split 'val'.*data\.split\.by=run"):
        ZooData(path=str(path))
    assert len(ZooData(path=str(path), split=SplitConfig(by="run", folds=3)).rows["test"]) == 10


def test_images_in_two_splits_are_refused(tmp_path: Path) -> None:
    images = np.arange(30)
    images[25] = 3
    path = write(tmp_path / "a.h5", random_rows(30), THIRDS, images)
    with pytest.raises(ZooError, match=r"rows 3 and 25 are of image 3 but in different splits.*by=image"):
        ZooData(path=str(path))
    assert ZooData(path=str(path), split=SplitConfig(by="image")).rows


@pytest.mark.parametrize("known", [False, True])
def test_copies_across_splits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(copies, "REMEMBERED_BYTES", 0 if known else 2**40)
    values = random_rows(30)
    values[7], values[8] = values[2], values[2]  # within a split: allowed
    path = write(tmp_path / "good.h5", values, THIRDS)
    for _ in range(2):
        ZooData(path=str(path))
    assert len(list((tmp_path / "cache").rglob("rows_*.npy"))) == known
    values[22] = values[2]
    path = write(tmp_path / "bad.h5", values, THIRDS)
    for _ in range(2):
        with pytest.raises(ZooError, match=r"rows \d+ \(train\) and 22 \(test\) are identical.*data\.copies=allow"):
            ZooData(path=str(path))
    assert ZooData(path=str(path), copies="allow").rows


def test_damaged_caches_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(copies, "REMEMBERED_BYTES", 0)
    with Zoo(write(tmp_path / "a.h5", random_rows(30), THIRDS)) as zoo:
        expected = row_hashes(zoo)
        (kept,) = (tmp_path / "cache").rglob("rows_*.npy")
        for damage in (b"", kept.read_bytes()[:150], b"nonsense"):
            kept.write_bytes(damage)
            np.testing.assert_array_equal(row_hashes(zoo), expected)
        monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
        np.testing.assert_array_equal(row_hashes(zoo), expected)


def test_hashes_tell_rows_apart(tmp_path: Path, varied_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = random_rows(30)
    values[1] = values[0][::-1]  # the same values in another order
    values[2] = values[0]
    with Zoo(write(tmp_path / "a.h5", values, THIRDS)) as zoo:
        found = row_hashes(zoo)
        assert len(set(found.tolist())) == 29 and found[0] == found[2] and found.dtype == np.uint64
    with Zoo(varied_zoo) as zoo:
        whole = row_hashes(zoo)
        assert len(set(whole.tolist())) == len(zoo)
        monkeypatch.setattr(copies, "BLOCK_BYTES", 2000)
        np.testing.assert_array_equal(row_hashes(zoo), whole)  # in many blocks


def test_equal_hashes_of_different_rows_are_no_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "row_hashes", lambda zoo: np.zeros(len(zoo), dtype=np.uint64))
    with Zoo(write(tmp_path / "a.h5", random_rows(30), THIRDS)) as zoo:
        check_no_copies(zoo, THIRDS)
