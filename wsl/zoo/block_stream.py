"""Blocks of a zoo, read in the background just before they are needed and given up after their last use."""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from wsl.zoo.chunks import ChunkReader
from wsl.zoo.reader import Zoo

AHEAD = 1 / 4  # blocks read ahead, as a share of those that a step can need at once
LEAST_AHEAD = 4

Array = npt.NDArray[np.int64]


@dataclass(eq=False)
class _Pass:
    """One way through the blocks: which are read in turn, and how many must be there at each step."""

    blocks: Array  # in the order of their first use
    needed: Array  # [steps], how many of them step t needs to have been read
    last: list[list[int]]  # [steps], blocks whose last use is step t
    free: list[int] = field(default_factory=list)
    loaded: int = 0
    stopped: bool = False
    error: BaseException | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def set(self, **values: Any) -> None:
        """Change attributes and wake whoever waits."""
        with self.changed:
            for name, value in values.items():
                setattr(self, name, value)
            self.changed.notify_all()


class _Source:
    """Single blocks, read and checked."""

    def __init__(self, zoo: Zoo, starts: Array, rows: Array) -> None:
        self.zoo, self.starts, self.rows = zoo, starts, rows
        self.largest = int(np.diff(zoo.row_ptr[starts]).max())
        self._reader = ChunkReader(zoo)
        self._zeros = np.zeros(self.largest, np.float32)

    def read(self, block: int, out: npt.NDArray[np.float32]) -> None:
        start, stop = int(self.starts[block]), int(self.starts[block + 1])
        self._reader.read(start, stop, out)
        size = int(self.zoo.row_ptr[stop] - self.zoo.row_ptr[start])
        with np.errstate(invalid="ignore"):
            finite = out[:size] @ self._zeros[:size] == 0  # NaN·0 and ∞·0 are NaN: one pass over the block, no mask
        if not finite:
            wanted = self.rows[np.searchsorted(self.rows, start) : np.searchsorted(self.rows, stop)]
            self.zoo.read_mixed_rows(wanted, finite=True)  # says which, if it is one of ours


class BlockStream:
    """Blocks in slots of one stretch of memory, for one thread of one process.

    A background thread reads blocks in the order in which they are first used, as long as a slot is free; a slot is
    freed when the last step that uses its block is done. Memory is bounded by what a step can need at once (which the
    order of the epoch decides) and a quarter more for reading ahead.

    Args:
        zoo: the file.
        starts: ``[blocks + 1]``, the blocks' first rows.
        rows: ascending numbers of the rows that may be asked for; only they must be finite.

    Attributes:
        memory: float32, the slots one after the other.
        slot: ``[blocks]``, where a block begins in ``memory``; valid from :meth:`wait` to :meth:`done`.
    """

    def __init__(self, zoo: Zoo, starts: Array, rows: Array) -> None:
        self.process = os.getpid()
        self.slot = np.full(len(starts) - 1, -1, dtype=np.int64)
        self.memory = np.empty(0, np.float32)
        self._source = _Source(zoo, starts, rows)
        self._pass: _Pass | None = None
        self._end: weakref.finalize[Any, Any] | None = None

    def begin(self, blocks: Array, steps: Array) -> None:
        """Start reading for the steps 0, 1, …: use u is of block ``blocks[u]`` in step ``steps[u]`` (ascending)."""
        self.close()
        count = int(steps[-1]) + 1
        first, last = np.full(len(self.slot), count), np.full(len(self.slot), -1)
        first[blocks[::-1]], last[blocks] = steps[::-1], steps  # of repeated numbers the latest assignment stays
        used = np.flatnonzero(last >= 0)
        order = used[first[used].argsort(kind="stable")]
        needed = np.bincount(first[used], minlength=count).cumsum()
        ended = np.bincount(last[used], minlength=count).cumsum()
        held = int((needed - np.append(0, ended[:-1])).max())
        slots = min(len(used), held + max(LEAST_AHEAD, int(held * AHEAD)))
        gone = used[last[used].argsort(kind="stable")]
        leaving = [part.tolist() for part in np.split(gone, ended[:-1])]
        if slots * self._source.largest > len(self.memory):
            self.memory = np.empty(slots * self._source.largest, np.float32)
        self._pass = _Pass(order, needed, leaving, free=list(range(slots)))
        parts = (self._pass, self._source, self.memory, self.slot)
        thread = threading.Thread(target=_load, args=parts, daemon=True, name="zoo blocks")
        self._end = weakref.finalize(self, _end, self._pass, thread, self.process)
        thread.start()

    def wait(self, step: int) -> None:
        """Return when all blocks of the step are in memory.

        Raises:
            ZooError: if a block that the step needs is damaged or a row in it not finite; the message names the rows.
        """
        current = self._pass
        assert current is not None, "begin() comes first"
        with current.changed:
            current.changed.wait_for(lambda: current.loaded >= current.needed[step] or current.error is not None)
            if current.loaded < current.needed[step] and current.error is not None:
                raise current.error

    def done(self, step: int) -> None:
        """The step's values have been copied: blocks that no later step uses may go."""
        current = self._pass
        assert current is not None, "begin() comes first"
        if leaving := current.last[step]:
            with current.changed:
                current.free.extend(int(self.slot[block]) // self._source.largest for block in leaving)
                current.changed.notify_all()

    def close(self) -> None:
        """Stop reading; :meth:`begin` starts again."""
        if self._end is not None:
            self._end()
        self._pass = self._end = None


def _load(current: _Pass, source: _Source, memory: npt.NDArray[np.float32], slot: Array) -> None:
    """The background thread. It does not know the stream, so that a stream which nobody uses can go."""
    try:
        for number, block in enumerate(current.blocks.tolist()):
            with current.changed:
                current.changed.wait_for(lambda: current.free or current.stopped)
                if current.stopped:
                    return
                place = current.free.pop() * source.largest
            source.read(block, memory[place : place + source.largest])
            slot[block] = place
            current.set(loaded=number + 1)
    except BaseException as error:  # whatever it is, the one who waits is to be told
        current.set(error=error)


def _end(current: _Pass, thread: threading.Thread, process: int) -> None:
    if os.getpid() == process:  # after a fork the thread is the parent's, and so is the lock
        current.set(stopped=True)
        thread.join()
