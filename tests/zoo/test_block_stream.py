"""Reading chunks past HDF5 gives what HDF5 gives; blocks come in time, and faults are told to the one who waits."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from zoo_files import chunk_offset, flip, rows_of, write_mixed_zoo

from wsl.spec import mlp_spec
from wsl.zoo import Zoo, ZooError, ZooWriter, layout
from wsl.zoo.block_stream import BlockStream
from wsl.zoo.chunks import ChunkReader

SPEC = mlp_spec((3, 5, 2), "relu")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "CHUNK_BYTES", 1024)


def write(path: Path, rows: int = 200) -> np.ndarray:
    values = rows_of(SPEC, rows)
    with ZooWriter(path, SPEC, rows, {}) as zoo:
        zoo.write(0, values)
    return values


def no_hdf5(reader: ChunkReader, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("read through HDF5")

    monkeypatch.setattr(reader, "_by_hdf5", refuse)


@pytest.mark.usefixtures("small_chunks")
def test_rows_of_one_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = write(tmp_path / "zoo.h5")
    reader = ChunkReader(Zoo(tmp_path / "zoo.h5"))
    assert len(reader.begin) > 10
    no_hdf5(reader, monkeypatch)
    for start, stop in ((0, 200), (0, 1), (199, 200), (3, 60), (7, 14), (150, 200)):
        out = np.full(200 * SPEC.numel, np.nan, np.float32)
        reader.read(start, stop, out)
        assert np.array_equal(out[: (stop - start) * SPEC.numel], values[start:stop].ravel())
        assert np.isnan(out[(stop - start) * SPEC.numel :]).all(), "nothing is written beyond the rows"


@pytest.mark.usefixtures("small_chunks")
def test_rows_of_many_architectures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, networks, _ = write_mixed_zoo(tmp_path / "mixed.h5")
    reader = ChunkReader(Zoo(path))
    no_hdf5(reader, monkeypatch)
    for start in range(0, 30, 3):
        expected = np.concatenate(networks[start:])
        out = np.empty(len(expected), np.float32)
        reader.read(start, 30, out)
        assert np.array_equal(out, expected)


def test_rows_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "LARGEST_CHUNK_BYTES", 64)
    values = write(tmp_path / "zoo.h5", rows=20)
    monkeypatch.undo()
    reader = ChunkReader(Zoo(tmp_path / "zoo.h5"))
    assert len(reader.begin) == 20 * -(-SPEC.numel // 16)
    no_hdf5(reader, monkeypatch)
    out = np.empty(7 * SPEC.numel, np.float32)
    reader.read(11, 18, out)
    assert np.array_equal(out, values[11:18].ravel())


@pytest.mark.usefixtures("small_chunks")
def test_a_flipped_bit_is_seen_and_names_the_rows(tmp_path: Path) -> None:
    write(tmp_path / "zoo.h5")
    zoo = Zoo(tmp_path / "zoo.h5")
    rows = zoo.file()["params"].chunks[0]
    zoo.close()
    flip(zoo.path, chunk_offset(zoo.path, "params", 3) + 17)
    out = np.empty(200 * SPEC.numel, np.float32)
    reader = ChunkReader(zoo)
    reader.read(0, 3 * rows, out)
    with pytest.raises(ZooError, match=f"rows {3 * rows} to {4 * rows - 1} are damaged"):
        reader.read(0, 200, out)


@pytest.mark.usefixtures("small_chunks")
def test_chunks_that_claim_no_checksum_are_left_to_hdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = write(tmp_path / "zoo.h5")
    with h5py.File(tmp_path / "zoo.h5", "r+") as file:
        dataset = file["params"]
        whole = values[: dataset.chunks[0]].tobytes()
        dataset.id.write_direct_chunk((0, 0), whole, filter_mask=1)
    zoo = Zoo(tmp_path / "zoo.h5")
    reader = ChunkReader(zoo)
    out = np.empty(200 * SPEC.numel, np.float32)
    reader.read(0, 200, out)
    assert np.array_equal(out, values.ravel())
    no_hdf5(reader, monkeypatch)
    with pytest.raises(AssertionError, match="through HDF5"):
        reader.read(0, 1, out)


def stream_of(path: Path, rows: int = 200, block: int = 10) -> BlockStream:
    return BlockStream(Zoo(path), np.append(np.arange(0, rows, block), rows), np.arange(rows))


@pytest.mark.usefixtures("small_chunks")
def test_blocks_are_there_when_needed_and_memory_is_bounded(tmp_path: Path) -> None:
    values = write(tmp_path / "zoo.h5")
    stream = stream_of(tmp_path / "zoo.h5")
    steps = np.repeat(np.arange(20), 2)
    blocks = np.stack([np.arange(20), np.maximum(np.arange(20) - 1, 0)], 1).ravel()  # each block in two steps
    for _ in range(3):
        stream.begin(blocks, steps)
        for step in range(20):
            stream.wait(step)
            for block in blocks[2 * step : 2 * step + 2]:
                got = stream.memory[stream.slot[block] :][: 10 * SPEC.numel]
                assert np.array_equal(got, values[10 * block : 10 * block + 10].ravel())
            stream.done(step)
    assert len(stream.memory) == 6 * 10 * SPEC.numel, "two in use, four ahead"
    stream.close()


@pytest.mark.usefixtures("small_chunks")
def test_damage_is_told_at_the_step_that_needs_it(tmp_path: Path) -> None:
    write(tmp_path / "zoo.h5")
    rows = Zoo(tmp_path / "zoo.h5").file()["params"].chunks[0]
    flip(tmp_path / "zoo.h5", chunk_offset(tmp_path / "zoo.h5", "params", 5))
    stream = stream_of(tmp_path / "zoo.h5", block=rows)
    count = len(stream.slot)
    stream.begin(np.arange(count), np.arange(count))
    for step in range(5):
        stream.wait(step)
        stream.done(step)
    with pytest.raises(ZooError, match=f"rows {5 * rows} to {6 * rows - 1} are damaged"):
        stream.wait(5)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused_if_they_are_wanted(tmp_path: Path, value: float) -> None:
    values = rows_of(SPEC, 200)
    values[57, 4] = value
    with ZooWriter(tmp_path / "zoo.h5", SPEC, 200, {}) as zoo:
        zoo.write(0, values, finite=False)
    stream = stream_of(tmp_path / "zoo.h5")
    stream.begin(np.arange(20), np.arange(20))
    for step in range(5):
        stream.wait(step)
        stream.done(step)
    with pytest.raises(ZooError, match=r"row 57 holds (nan|inf) \(position 4\)"):
        stream.wait(5)
    starts = np.append(np.arange(0, 200, 10), 200)
    stream = BlockStream(Zoo(tmp_path / "zoo.h5"), starts, np.delete(np.arange(200), 57))
    stream.begin(np.array([5]), np.array([0]))
    stream.wait(0)


@pytest.mark.usefixtures("small_chunks")
def test_streams_leave_neither_threads_nor_descriptors(tmp_path: Path) -> None:
    write(tmp_path / "zoo.h5")

    def one() -> None:
        stream = stream_of(tmp_path / "zoo.h5")
        stream.begin(np.arange(20), np.arange(20))
        stream.wait(3)

    one()
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        one()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1
