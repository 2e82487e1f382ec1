"""Streaming from a file: what is served, that processes share it, go on where they were, and tell of faults."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from specs import cnn_spec

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.data.loader import loader
from wsl.data.sampler import BatchSampler
from wsl.data.streaming import StreamedRows
from wsl.spec import mlp_spec
from wsl.spec.family import SpecFamily
from wsl.zoo import Zoo, ZooError, ZooWriter, layout

SPEC = mlp_spec((3, 5, 2), "relu")
ROWS = 600
BUFFER = 2**15

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


def write(path: Path, rows: int = ROWS, mixed: bool = False, seed: int = 0) -> Path:
    specs = (SPEC, cnn_spec("relu"), mlp_spec((4, 7, 3), "tanh")) if mixed else (SPEC,)
    spec_ids = np.arange(rows) % len(specs)
    sizes = np.array([spec.numel for spec in specs])[spec_ids]
    values = np.random.default_rng(seed).normal(size=sizes.sum()).astype(np.float32)
    before, layout.CHUNK_BYTES = layout.CHUNK_BYTES, 4096 if mixed else 1024
    try:
        with ZooWriter(path, specs, rows, {}, spec_ids=spec_ids, overwrite=True) as zoo:
            zoo.write(0, values)
            zoo.set_columns({"label": np.arange(rows) % 7})
            zoo.set_splits({"train": np.arange(rows)})
    finally:
        layout.CHUNK_BYTES = before
    return path


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("one") / "one.h5")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("many") / "many.h5", mixed=True)


def streamed(path: Path, batch_size: int = 16, seed: int | None = 0, rows: Any = None, **options: Any) -> StreamedRows:
    zoo = Zoo(path)
    spec = zoo.specs[0] if len(zoo.specs) == 1 else SpecFamily(zoo.specs)
    rows = np.arange(len(zoo)) if rows is None else rows
    return StreamedRows(zoo, spec, rows, zoo.column("label"), batch_size, seed, BUFFER, **options)


def epoch_of(data: StreamedRows, epoch: int = 0) -> list[Any]:
    return [data[epoch, number] for number in range(len(data.sampler))]


def check(batch: Any, zoo: Zoo) -> None:
    values, _, spec_ids = zoo.read_mixed_rows(batch.row_ids.numpy())
    assert np.array_equal(batch.values.flatten().numpy(), values)
    assert np.array_equal(batch.target.numpy(), zoo.column("label")[batch.row_ids.numpy()])
    if isinstance(batch, MixedWeightBatch):
        assert batch.specs == zoo.specs and np.array_equal(batch.spec_ids.numpy(), spec_ids)


def same(a: Any, b: Any) -> bool:
    return torch.equal(a.row_ids, b.row_ids) and torch.equal(a.values, b.values) and torch.equal(a.target, b.target)


@pytest.mark.parametrize("zoo", ["one", "many"])
@pytest.mark.parametrize("seed", [None, 3])
def test_batches_hold_what_the_file_holds_each_row_once(
    zoo: str, seed: int | None, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(zoo)
    rows = np.random.default_rng(1).permutation(ROWS)[:413]  # not in order
    data = streamed(path, 16, seed, rows)
    batches = epoch_of(data)
    for batch in batches:
        assert isinstance(batch, WeightBatch if zoo == "one" else MixedWeightBatch)
        check(batch, data.zoo)
    seen = torch.cat([batch.row_ids for batch in batches])
    assert len(seen.unique()) == len(seen) == (413 if seed is None else 400)  # training drops an incomplete batch
    assert set(seen.tolist()) <= set(rows.tolist())


def test_the_order_is_a_function_of_seed_and_epoch(one: Path) -> None:
    first, again, other = epoch_of(streamed(one)), epoch_of(streamed(one)), epoch_of(streamed(one), 1)
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not any(same(a, b) for a, b in zip(first, other, strict=True))
    assert not any(same(a, b) for a, b in zip(first, epoch_of(streamed(one, seed=4)), strict=True))


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_see_each_row_once_in_equal_steps_and_together_the_batches_of_one(one: Path, ranks: int) -> None:
    whole = epoch_of(streamed(one, 24))
    parts = [epoch_of(streamed(one, 24 // ranks, rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert {len(part) for part in parts} == {len(whole)}
    for number, batch in enumerate(whole):
        together = torch.cat([part[number].row_ids for part in parts])
        assert torch.equal(together.sort().values, batch.row_ids.sort().values)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("zoo", ["one", "many"])
def test_workers_serve_the_same_batches(zoo: str, method: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(zoo)
    data = streamed(path, 100)
    alone = epoch_of(data)  # the thread and the file are open now, when workers are made
    found = list(loader(data, data.sampler, workers=2, start_method=method))
    assert len(found) == len(alone) == 6
    assert all(same(a, b) for a, b in zip(alone, found, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [True, False])
def test_a_loader_goes_on_where_it_was(one: Path, workers: int, streaming: bool) -> None:
    def make() -> Any:
        data = streamed(one)
        if streaming:
            return loader(data, data.sampler, workers)
        rows = MemoryRows(data.zoo)
        return loader(rows, BatchSampler(range(ROWS), 16, 0), workers)

    whole = make()
    whole.sampler.set_epoch(2)
    batches = list(whole)
    for stop in (1, 5, 36):
        part = make()
        part.sampler.set_epoch(2)
        list(islice(part, stop))
        state = part.state_dict()
        resumed = make()
        resumed.sampler.set_epoch(2)
        resumed.load_state_dict(state)
        rest = list(resumed)
        assert len(rest) == len(batches) - stop
        assert all(same(a, b) for a, b in zip(rest, batches[stop:], strict=True))
        if workers:
            break  # starting processes is slow; one place is enough


class MemoryRows(torch.utils.data.Dataset[WeightBatch]):
    """A module-level dataset in memory, so that workers can be spawned with it."""

    def __init__(self, zoo: Zoo) -> None:
        target = torch.from_numpy(zoo.column("label"))
        values = torch.from_numpy(zoo.read(0, len(zoo))).unsqueeze(-1)
        self.rows = WeightBatch(zoo.specs[0], values, target, torch.arange(len(zoo)))

    def __getitem__(self, positions: list[int]) -> WeightBatch:
        return self.rows.select(torch.tensor(positions))


class Shared(MemoryRows):
    """Says instead of its label whether the rows lie in memory that processes share."""

    def __getitem__(self, positions: list[int]) -> WeightBatch:
        batch = super().__getitem__(positions)
        return WeightBatch(batch.spec, batch.values, torch.tensor([int(self.rows.values.is_shared())]), batch.row_ids)


def test_spawned_workers_share_the_rows_in_memory(one: Path) -> None:
    rows = Shared(Zoo(one))
    batches = list(loader(rows, BatchSampler(range(ROWS), 300), workers=2, start_method="spawn"))
    assert [int(batch.target) for batch in batches] == [1, 1]
    assert rows.rows.values.is_shared(), "moved there once, not copied for each"


def test_any_place_can_be_asked_for(one: Path) -> None:
    data = streamed(one)
    batches = epoch_of(data)
    for number in (7, 8, 3, 3, 36, 0):
        assert same(data[0, number], batches[number])


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "ranks", "batch"), [(3, 4, 2), (1, 4, 8), (5, 1, 64), (2, 2, 100)])
def test_fewer_rows_than_ranks_or_than_a_batch(one: Path, rows: int, ranks: int, batch: int) -> None:
    for seed in (None, 0):
        parts = [
            epoch_of(streamed(one, batch, seed, np.arange(rows) * 9, rank=rank, ranks=ranks)) for rank in range(ranks)
        ]
        assert {len(part) for part in parts} == {1}
        assert all(len(part[0]) == len(parts[0][0]) > 0 for part in parts), "no rank has an empty batch"
        assert {row for part in parts for row in part[0].row_ids.tolist()} == set((np.arange(rows) * 9).tolist())


def test_a_damaged_chunk_ends_the_epoch_where_it_is_needed_and_names_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "zoo.h5")
    data = streamed(path)
    dataset = data.zoo.file()["params"]
    chunk, offset = dataset.chunks[0], dataset.id.get_chunk_info(11).byte_offset
    data.zoo.close()
    batches = epoch_of(data)
    with path.open("r+b") as stream:
        stream.seek(offset + 5)
        stream.write(b"\xff\x00")
    low, high = 11 * chunk, 12 * chunk
    first = next(n for n, b in enumerate(batches) if ((b.row_ids >= low) & (b.row_ids < high)).any())
    fresh = streamed(path)
    assert all(same(fresh[0, number], batches[number]) for number in range(first))
    with pytest.raises(ZooError, match=f"zoo.h5: rows {low} to {high - 1} are damaged"):
        fresh[0, first]


def test_a_file_cut_off_during_an_epoch_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "zoo.h5")
    data = streamed(path)
    data[0, 0]
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ZooError, match=r"zoo\.h5.*(damaged|cannot be read)"):
        epoch_of(data, epoch=1)  # the first epoch may have been read ahead


def test_a_file_replaced_during_an_epoch_is_not_mixed_in(tmp_path: Path) -> None:
    path = write(tmp_path / "zoo.h5")
    data = streamed(path)
    batches = epoch_of(data)
    data[1, 0]
    write(path, seed=1)
    assert all(same(a, b) for a, b in zip(batches, epoch_of(data), strict=True)), "the open file is the old one"
    with pytest.raises(ZooError, match="replaced by another zoo"):
        pickle.loads(pickle.dumps(data))  # what a spawned worker begins with


KILL = """
import multiprocessing, os, signal, sys
sys.path.insert(0, {tests!r})
import data.test_streaming as here
served = here.streamed(here.Path({path!r}), 4)
batches = iter(here.loader(served, served.sampler, workers=2))
next(batches)
victim = multiprocessing.active_children()[0].pid
print(victim, flush=True)
os.kill(victim, signal.SIGKILL)
for _ in batches:
    pass
"""


def test_a_killed_worker_is_an_error_and_not_a_wait(one: Path) -> None:
    """In a process of its own: torch raises the error wherever the program is when the signal comes."""
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", KILL.format(tests=str(tests), path=str(one))], env=environment, capture_output=True,
        text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    pid, told = done.stdout.strip(), done.stderr
    named = f"worker (pid {pid}) is killed by signal: Killed" in told or ("exited unexpectedly" in told and pid in told)
    # … unless it died while a tensor was handed over: torch then says that the connection to it is gone
    assert named or "ConnectionResetError" in told or "ConnectionRefusedError" in told
