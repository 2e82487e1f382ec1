"""What is written is read back, in any order and by any process."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from specs import gru_spec
from zoo_files import ROWS, SIREN, rows_of, write_inr_zoo, write_mixed_zoo

from wsl.batch import WeightBatch
from wsl.spec import mlp_spec
from wsl.zoo import Zoo, ZooError, ZooWriter
from wsl.zoo.coordinates import grid
from wsl.zoo.layout import LARGEST_CHUNK_BYTES, chunks_of


def test_one_architecture(tmp_path: Path) -> None:
    values = rows_of(SIREN, ROWS)
    with Zoo(write_inr_zoo(tmp_path / "a.h5", values, block=7)) as zoo:
        assert len(zoo) == ROWS and zoo.specs == (SIREN,) and zoo.recipe["seed"] == 3
        np.testing.assert_array_equal(zoo.read(0, ROWS), values)
        np.testing.assert_array_equal(zoo.read(13, 14), values[13:14])
        assert zoo.read(5, 5).shape == (0, SIREN.numel) and zoo.read_rows([]).shape == (0, SIREN.numel)
        chosen = np.array([59, 3, 3, 0, 41])
        np.testing.assert_array_equal(zoo.read_rows(chosen), values[chosen])
        flat, row_ptr, spec_ids = zoo.read_mixed(2, 5)
        np.testing.assert_array_equal(flat.reshape(3, -1), values[2:5])
        np.testing.assert_array_equal(row_ptr, np.arange(4) * SIREN.numel)
        np.testing.assert_array_equal(spec_ids, [0, 0, 0])
        assert zoo.digest == zoo.content_digest()


def test_columns_splits_runs_and_images(tmp_path: Path) -> None:
    zoo = Zoo(write_inr_zoo(tmp_path / "a.h5"))
    assert zoo.columns == ("fit_mse", "image_index", "label", "name", "psnr", "test_accuracy", "view")
    assert zoo.column("label").dtype == np.int64 and zoo.column("fit_mse").dtype == np.float32
    np.testing.assert_array_equal(zoo.column("label"), np.arange(ROWS) % 10)
    assert zoo.column("name")[7] == "größe-7"
    np.testing.assert_array_equal(zoo.column("test_accuracy"), np.linspace(0, 1, ROWS))
    np.testing.assert_array_equal(zoo.run_ids, np.arange(ROWS) // 2 + 100)
    assert {name: len(index) for name, index in zoo.splits.items()} == {"train": 40, "val": 10, "test": 10}
    assert zoo.images is not None and zoo.images.shape == (30, 16) and zoo.images.dtype == np.uint8
    with pytest.raises(ZooError, match="no column 'colour'; columns: fit_mse"):
        zoo.column("colour")


def test_mixed_architectures(tmp_path: Path) -> None:
    path, networks, spec_ids = write_mixed_zoo(tmp_path / "m.h5")
    with Zoo(path) as zoo:
        assert [spec.numel for spec in zoo.specs] == [59, 162, 26] and zoo.images is None
        np.testing.assert_array_equal(zoo.spec_ids, spec_ids)
        values, row_ptr, ids = zoo.read_mixed(4, 20)
        np.testing.assert_array_equal(values, np.concatenate(networks[4:20]))
        np.testing.assert_array_equal(np.diff(row_ptr), [len(v) for v in networks[4:20]])
        np.testing.assert_array_equal(ids, spec_ids[4:20])
        chosen = [29, 0, 7, 7, 12]
        values, row_ptr, ids = zoo.read_mixed_rows(chosen)
        np.testing.assert_array_equal(values, np.concatenate([networks[row] for row in chosen]))
        np.testing.assert_array_equal(ids, spec_ids[chosen])
        for read in (lambda: zoo.read(0, 2), lambda: zoo.read_rows([1])):
            with pytest.raises(ZooError, match="rows are of 3 specs; use read_mixed"):
                read()


def test_virtual_tensors_survive(tmp_path: Path) -> None:
    path, networks, spec_ids = write_mixed_zoo(tmp_path / "m.h5")
    row = int(np.flatnonzero(spec_ids == 1)[0])
    with Zoo(path) as zoo:
        spec, (values, _, _) = zoo.specs[1], zoo.read_mixed(row, row + 1)
    assert spec == gru_spec()
    batch = WeightBatch(spec, torch.from_numpy(values).reshape(1, -1, 1))
    update = batch["gru.weight_ih_l0.update"][0, :, :, 0].numpy()
    np.testing.assert_array_equal(update, networks[row][:45].reshape(3, 5, 3)[1])


def test_rows_longer_than_a_chunk(tmp_path: Path) -> None:
    spec = mlp_spec((600, 600), "relu")
    values = rows_of(spec, 3)
    with ZooWriter(tmp_path / "long.h5", spec, 3, {}) as writer:
        writer.write(0, values)
    with Zoo(tmp_path / "long.h5") as zoo:
        assert zoo.file()["params"].chunks == (1, LARGEST_CHUNK_BYTES // 4)
        np.testing.assert_array_equal(zoo.read_rows([2, 0]), values[[2, 0]])


@pytest.mark.parametrize("shape", [(60_000, 1185), (7, 200_000), (5, 5_000_000), (10_000_000,), (3,)])
def test_chunks_are_whole_rows_of_a_quarter_to_one_mebibyte(shape: tuple[int, ...]) -> None:
    chunk = chunks_of(shape, 4)
    size = int(np.prod(chunk)) * 4
    assert size <= 2**20 and (size >= 2**18 or chunk == shape)
    assert len(shape) == 1 or chunk[1] == shape[1] or chunk[0] == 1


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda zoo: zoo.read(50, 61), "no rows 50 to 61; the zoo has 60"),
        (lambda zoo: zoo.read(-1, 5), "no rows -1 to 5"),
        (lambda zoo: zoo.read_rows([3, 60]), "no row 60; rows are 0 to 59"),
        (lambda zoo: zoo.read_rows([-1]), "no row -1"),
        (lambda zoo: zoo.read_rows([0.5]), "must be a vector of integers, got float64"),
    ],
)
def test_rows_out_of_range(tmp_path: Path, read: object, message: str) -> None:
    with pytest.raises(ZooError, match=message):
        read(Zoo(write_inr_zoo(tmp_path / "a.h5")))  # type: ignore[operator]


def test_rows_that_are_not_finite_are_named_on_demand(tmp_path: Path) -> None:
    values = rows_of(SIREN, 5)
    values[3, 7] = np.nan
    path = tmp_path / "nan.h5"
    with ZooWriter(path, SIREN, 5, {}) as writer:
        with pytest.raises(ZooError, match="row 3 holds nan"):
            writer.write(0, values)
        writer.write(0, values, finite=False)
    zoo = Zoo(path)
    assert np.isnan(zoo.read(0, 5)[3, 7])
    assert np.isfinite(zoo.read(0, 3, finite=True)).all()
    for read in (zoo.read, zoo.read_mixed):
        with pytest.raises(ZooError, match=r"nan\.h5: row 3 holds nan \(position 7\)"):
            read(1, 5, finite=True)
    for gather in (zoo.read_rows, zoo.read_mixed_rows):
        with pytest.raises(ZooError, match=r"row 3 holds nan \(position 7\)"):
            gather([4, 3, 0, 3], finite=True)


def _first_values(zoo: Zoo) -> tuple[int, bytes]:
    return os.getpid(), zoo.read_rows([59, 0]).tobytes()


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_other_processes_read_through_their_own_handle(tmp_path: Path, method: str) -> None:
    zoo = Zoo(write_inr_zoo(tmp_path / "a.h5"))
    expected = zoo.read_rows([59, 0]).tobytes()  # the file is open here when the workers start
    with multiprocessing.get_context(method).Pool(1) as pool:
        answers = pool.map(_first_values, [zoo] * 4)
    assert all(values == expected for _, values in answers) and os.getpid() not in {pid for pid, _ in answers}
    assert zoo.read_rows([59, 0]).tobytes() == expected


def _inherited(zoo: Zoo, queue: multiprocessing.Queue) -> None:
    before = zoo._handle
    queue.put((zoo.read(0, 60).tobytes(), zoo._handle is not before))


def test_a_handle_from_before_a_fork_is_not_used(tmp_path: Path) -> None:
    zoo = Zoo(write_inr_zoo(tmp_path / "a.h5"))
    expected = zoo.read(0, 60).tobytes()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=_inherited, args=(zoo, queue))
    worker.start()
    assert queue.get(timeout=60) == (expected, True)
    worker.join()
    assert worker.exitcode == 0 and zoo.read(0, 60).tobytes() == expected


def test_pickles_hold_no_weights_and_notice_another_zoo(tmp_path: Path) -> None:
    path = write_inr_zoo(tmp_path / "a.h5")
    zoo = Zoo(path)
    zoo.read(0, 1)
    pickled = pickle.dumps(zoo)
    assert len(pickled) < 1000 and len(pickle.loads(pickled)) == ROWS
    write_inr_zoo(path, rows_of(SIREN, ROWS, seed=9), overwrite=True)
    assert len(zoo.read(0, 60)) == 60, "an open file stays readable when it is replaced"
    zoo.close()
    for again in (lambda: pickle.loads(pickled), lambda: zoo.read(0, 1)):
        with pytest.raises(ZooError, match="replaced by another zoo"):
            again()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    path = write_inr_zoo(tmp_path / "a.h5")
    broken = tmp_path / "broken.h5"
    broken.write_bytes(path.read_bytes()[:-100])

    def use() -> None:
        with Zoo(path) as zoo:
            zoo.read(0, 1)
        Zoo(path)
        with pytest.raises(ZooError):
            Zoo(broken)
        write_inr_zoo(tmp_path / "b.h5", overwrite=True)

    use()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(8):
        use()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_grid_runs_along_rows_with_x_first() -> None:
    points = grid(2, 3)
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points, [[-1, -1], [0, -1], [1, -1], [-1, 1], [0, 1], [1, 1]])
    with pytest.raises(ValueError, match="height 0"):
        grid(0, 3)


def test_the_documented_way_of_writing_a_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "zoo_file.md").read_text()
    _, writing = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(writing, {})
    assert {name: len(rows) for name, rows in Zoo("mine.h5").splits.items()} == {"train": 60, "val": 20, "test": 20}
