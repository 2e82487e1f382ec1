"""Carry out the plan of any recipe: fit its networks in blocks that survive a crash, then write the zoo file.

A builder says what the rows are and how a block of them is fitted; threads, progress, resuming, refusing another recipe
and writing are here, once for all kinds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from wsl.spec import WeightSpec
from wsl.zoo.build.progress import Progress
from wsl.zoo.build.work_folder import WorkFolder
from wsl.zoo.layout import ZooError
from wsl.zoo.writer import ZooWriter

Arrays = dict[str, np.ndarray]
VALUES = "values"  # the entry of a fitted block that holds the weights


class Shown(NamedTuple):
    """What progress tells of the networks: the mean of a measured column, in a format such as ``mean PSNR {:.1f}``."""

    column: str
    text: str


@dataclass(frozen=True)
class Job:
    """The plan of a zoo: its rows, and how to fit a block of them.

    Attributes:
        description: plain JSON values, the file's ``recipe``: ``config`` (the resolved recipe) and all else that the
            weights depend on. Unfinished blocks of another description are refused.
        specs: the architectures; ``spec_ids`` int64 ``[rows]``: that of each row.
        blocks: consecutive ranges of rows that together are all of them; each is fitted, and kept in case of a crash,
            at a time.
        fit: a block → ``values``, float32, the rows one after the other (any shape), and each column of ``measured``,
            ``[len(block)]``. A function of the block alone; called from several threads. Rows that are not finite are
            left out of the file; to refuse them, raise :class:`ZooError`.
        measured: names of the columns that ``fit`` returns. ``columns``: those known before, name → ``[rows]``.
        run_ids: int64 ``[rows]``; rows of one run lie in one split. splits: name → row numbers.
        shown: what progress tells. images: uint8 ``[n, pixels]``, kept in the file.
    """

    description: Mapping[str, Any]
    specs: Sequence[WeightSpec]
    spec_ids: np.ndarray
    blocks: Sequence[range]
    fit: Callable[[range], Arrays]
    measured: Sequence[str]
    columns: Mapping[str, np.ndarray]
    run_ids: np.ndarray
    splits: Mapping[str, np.ndarray]
    shown: Shown
    images: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.spec_ids)

    @cached_property
    def row_ptr(self) -> np.ndarray:
        """Row r is the values row_ptr[r] to row_ptr[r + 1], int64 ``[rows + 1]``."""
        sizes = np.array([spec.numel for spec in self.specs], dtype=np.int64)
        return np.concatenate([np.zeros(1, np.int64), sizes[self.spec_ids].cumsum()])

    def complete(self, arrays: Arrays, block: range) -> bool:
        """Whether these are the arrays of this block."""
        sizes = {name: array.size for name, array in arrays.items() if name != VALUES}
        return (
            VALUES in arrays
            and arrays[VALUES].size == self.row_ptr[block.stop] - self.row_ptr[block.start]
            and sizes == dict.fromkeys(self.measured, len(block))
        )


def carry_out(job: Job, folder: WorkFolder, out: Path, threads: int | None, progress: bool) -> None:
    """Fit what is not fitted yet, then write the zoo file ``out``.

    Args:
        folder: where finished blocks are kept, and held by this process.
        threads: blocks fitted at the same time; None: one for each core that this process may use.

    Raises:
        ZooError: if fitting or writing fails, or no network is finite; finished blocks stay.
    """
    fitted = _fit_all(job, folder, threads or _cores(), progress)
    if not fitted.kept.any():
        raise ZooError(f"{out}: not one of {len(job)} networks has finite weights; lower the recipe's learning rate")
    _write(job, fitted, folder, out)


def _cores() -> int:
    """Processors that this process may use (all of them where the system cannot say)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Fitted:
    """What is known of all rows but their weights: the measured columns, and which rows are finite."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.kept = np.zeros(len(job), dtype=bool)
        self.measured: Arrays = {}

    def note(self, block: range, arrays: Arrays) -> np.ndarray:
        """Take down a block; the shown column of its finite rows."""
        start, rows = self.job.row_ptr[block.start : block.stop], slice(block.start, block.stop)
        finite = np.isfinite(arrays[VALUES].ravel())
        self.kept[rows] = np.logical_and.reduceat(finite, start - start[0])
        for name in self.job.measured:
            column = self.measured.setdefault(name, np.zeros(len(self.job), dtype=arrays[name].dtype))
            column[rows] = arrays[name]
        return arrays[self.job.shown.column][self.kept[rows]]


def _fit_all(job: Job, folder: WorkFolder, threads: int, progress: bool) -> _Fitted:
    """Fit the blocks that are not there yet, ``threads`` at a time. Kernels run without Python's lock."""
    fitted = _Fitted(job)
    with Progress(len(job), job.shown.text, progress) as shown, ThreadPoolExecutor(threads) as pool:
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # threads share the blocks, not the operations within one
        running: dict[Future[Arrays], int] = {}
        try:
            for number, block in enumerate(job.blocks):
                if (kept := folder.load(number)) is not None and job.complete(kept, block):
                    shown.advance(len(block), fitted.note(block, kept), now=False)
                    continue
                running[pool.submit(job.fit, block)] = number
                if len(running) > threads:
                    _keep(job, running, folder, fitted, shown)
            while running:
                _keep(job, running, folder, fitted, shown)
        finally:
            torch.set_num_threads(before)
            pool.shutdown(cancel_futures=True)
    return fitted


def _keep(job: Job, running: dict[Future[Arrays], int], folder: WorkFolder, fitted: _Fitted, shown: Progress) -> None:
    """Wait until a block is finished, and keep what is."""
    for future in sorted(wait(running, return_when=FIRST_COMPLETED).done, key=running.__getitem__):
        number, arrays = running.pop(future), future.result()
        folder.save(number, arrays)
        block = job.blocks[number]
        shown.advance(len(block), fitted.note(block, arrays))


def _write(job: Job, fitted: _Fitted, folder: WorkFolder, out: Path) -> None:
    """The file, of the finite rows alone."""
    kept = fitted.kept
    place = np.concatenate([np.zeros(1, np.int64), kept.cumsum()])  # of each row in the file, if it is kept
    used, spec_ids = np.unique(job.spec_ids[kept], return_inverse=True)
    specs, lengths = [job.specs[number] for number in used], np.diff(job.row_ptr)
    left_out = {} if kept.all() else {"left_out": np.flatnonzero(~kept).tolist()}
    with ZooWriter(out, specs, int(kept.sum()), {**job.description, **left_out}, spec_ids=spec_ids) as writer:
        for number, block in enumerate(job.blocks):
            arrays = folder.load(number)
            if arrays is None or not job.complete(arrays, block):
                raise ZooError(f"{folder.path}: block {number} has been removed or damaged; run the same command again")
            rows = slice(block.start, block.stop)
            if kept[rows].any():
                finite = np.repeat(kept[rows], lengths[rows])
                values = arrays[VALUES].ravel()[finite]
                if len(specs) == 1:
                    writer.write(int(place[block.start]), values.reshape(-1, specs[0].numel))
                else:
                    writer.write(int(place[block.start]), values, lengths[rows][kept[rows]])
        writer.set_columns({name: np.asarray(c)[kept] for name, c in {**job.columns, **fitted.measured}.items()})
        writer.set_run_ids(job.run_ids[kept])
        writer.set_splits({name: place[rows[kept[rows]]] for name, rows in job.splits.items() if kept[rows].any()})
        if job.images is not None:
            writer.set_images(job.images)
