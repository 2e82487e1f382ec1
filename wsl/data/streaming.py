"""Rows of a zoo that is larger than memory: batches cut from blocks that are read in the background.

Which rows make up which batch is a function of file, seed, epoch and global batch size alone
(:mod:`wsl.zoo.block_order`); the number of ranks and workers decides only who reads what. A place in the data is the
pair (epoch, number of the batch), so going on after an interruption needs nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from wsl.batch import MixedWeightBatch, WeightBatch, ragged, row_offsets
from wsl.data.sampler import BatchSampler, mixed_seed
from wsl.spec import WeightSpec
from wsl.spec.family import SpecFamily
from wsl.zoo import Zoo
from wsl.zoo.block_order import GROUPS, LANES, block_pointers, block_starts, epoch_order, window_rows
from wsl.zoo.block_stream import BlockStream
from wsl.zoo.chunks import ChunkReader

#: blocks of a lane that are mixed with each other, where the buffer is large enough
BLOCKS_MIXED = 16

Place = tuple[int, int]


class StreamSampler(BatchSampler):
    """Batches as :class:`BatchSampler` makes them, in an order that reads the file by blocks; yields (epoch, number).

    Args:
        block_ptr: positions of the split at which the blocks of the file begin, and their number.
        window: rows of a lane that are mixed (:func:`wsl.zoo.block_order.epoch_order`).
    """

    def __init__(
        self, block_ptr: np.ndarray, window: int, batch_size: int, seed: int | None, rank: int = 0, ranks: int = 1
    ) -> None:
        super().__init__(range(int(block_ptr[-1])), batch_size, seed, rank, ranks)
        self.block_ptr, self.window = block_ptr, window

    def order(self, epoch: int) -> Tensor:
        seed = None if self.seed is None else mixed_seed(self.seed, epoch)
        return torch.from_numpy(epoch_order(self.block_ptr, self.batch_size * self.ranks, self.window, seed))

    def __iter__(self) -> Iterator[Any]:
        return ((self.epoch, number) for number in range(len(self)))


class StreamedRows(Dataset[WeightBatch | MixedWeightBatch]):
    """Rows of a zoo file; ``rows[epoch, number]`` is a batch.

    Batches are meant to be asked for in turn, by a worker every W-th; any other one is served as well, but begins a new
    pass through the file. Each process opens the file and reads it for itself, at its first batch.

    Args:
        zoo: the file.
        spec: of the rows; a family makes batches :class:`~wsl.batch.MixedWeightBatch`.
        rows: numbers of the rows, in any order.
        target: ``[rows of the zoo]``.
        batch_size: rows per batch on each rank. ``rank``, ``ranks``: as in :class:`~wsl.data.sampler.BatchSampler`.
        seed: of the order; None takes the rows in an order that does not change.
        buffer_bytes: how much of the file is held, about; three fifths are mixed, the rest is half used or read
            ahead.

    Raises:
        ZooError: if a block is damaged, a row is not finite, or the file was replaced; the message names rows.
    """

    def __init__(
        self,
        zoo: Zoo,
        spec: WeightSpec | SpecFamily,
        rows: Sequence[int] | np.ndarray,
        target: np.ndarray,
        batch_size: int,
        seed: int | None,
        buffer_bytes: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.zoo, self.spec = zoo, spec
        self.rows = np.sort(np.asarray(rows, dtype=np.int64))
        self.target = target[self.rows]
        mixed = buffer_bytes * 3 // 5
        self.starts = block_starts(zoo.row_ptr, ChunkReader(zoo).begin, mixed // (LANES * GROUPS * BLOCKS_MIXED))
        zoo.close()  # each process opens it for itself
        block_ptr = block_pointers(self.rows, self.starts)
        window = window_rows(block_ptr, self.starts, zoo.row_ptr, mixed)
        self.sampler = StreamSampler(block_ptr, window, batch_size, seed, rank, ranks)
        self._pass: _Pass | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pass": None}

    def __getitem__(self, place: Place) -> WeightBatch | MixedWeightBatch:
        if self._pass is None or self._pass.stream.process != os.getpid():
            self._pass = _Pass(BlockStream(self.zoo, self.starts, self.rows), self.sampler)
        current = self._pass
        step = current.at(place)
        positions = current.positions[place[1] * self.sampler.batch_size :][: self.sampler.batch_size]
        current.stream.wait(step)
        batch = self._batch(current, positions)
        current.stream.done(step)
        return batch

    def _batch(self, current: _Pass, positions: np.ndarray) -> WeightBatch | MixedWeightBatch:
        rows, row_ptr = self.rows[positions], self.zoo.row_ptr
        block = current.block[positions]
        begin = torch.from_numpy(current.stream.slot[block] + row_ptr[rows] - row_ptr[self.starts[block]])
        memory = torch.from_numpy(current.stream.memory)
        target, row_ids = torch.from_numpy(self.target[positions]), torch.from_numpy(rows)
        if isinstance(self.spec, WeightSpec):
            held = memory.view(-1, self.spec.numel)  # blocks and their slots are whole rows
            picked = held.index_select(0, begin // self.spec.numel)
            return WeightBatch(self.spec, picked.unsqueeze(-1), target, row_ids)
        ids = torch.from_numpy(self._in_family[self.zoo.spec_ids[rows]])
        offsets = row_offsets(self.spec.specs, ids)
        index, _, _ = ragged(begin, offsets.diff())
        return MixedWeightBatch(
            self.spec.specs, ids, memory.index_select(0, index).unsqueeze(-1), offsets, target, row_ids
        )

    @property
    def _in_family(self) -> np.ndarray:
        number = {spec: position for position, spec in enumerate(cast(SpecFamily, self.spec))}
        return np.array([number.get(spec, -1) for spec in self.zoo.specs], dtype=np.int64)


class _Pass:
    """Where a process is in its share of an epoch, and the stream that reads for it.

    Attributes:
        positions: of this rank's rows in the split, batch after batch.
        block: the block of each position of the split.
    """

    def __init__(self, stream: BlockStream, sampler: StreamSampler) -> None:
        self.stream, self.sampler = stream, sampler
        blocks = len(sampler.block_ptr) - 1
        self.block = np.repeat(np.arange(blocks), np.diff(sampler.block_ptr))
        self.positions = np.empty(0, dtype=np.int64)
        self._epoch = self._first = self._next = -1
        self._stride = 1

    def at(self, place: Place) -> int:
        """The stream's step for this batch; a new pass begins unless it is the one that follows."""
        epoch, number = place
        if epoch != self._epoch or number != self._next:
            self._begin(epoch, number)
        step = (number - self._first) // self._stride
        self._next = number + self._stride
        return step

    def _begin(self, epoch: int, number: int) -> None:
        if epoch != self._epoch:
            self.positions = self.sampler.mine(epoch).numpy()[: len(self.sampler) * self.sampler.batch_size]
        worker = get_worker_info()
        self._epoch, self._first, self._stride = epoch, number, worker.num_workers if worker else 1
        batch = np.arange(len(self.positions)) // self.sampler.batch_size - number
        ours = (batch >= 0) & (batch % self._stride == 0)
        self.stream.begin(self.block[self.positions[ours]], batch[ours] // self._stride)
