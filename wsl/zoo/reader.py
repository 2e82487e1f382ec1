"""Read a zoo file: its description at once, its weights in blocks or by row number."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wsl.zoo.description import AGAIN, Array, describe, digest_in, whole
from wsl.zoo.guard import open_checked
from wsl.zoo.layout import BLOCK_BYTES, ZooError, content_digest


class Zoo:
    """A zoo file, read-only.

    The description (specs, recipe, splits, run ids) is read and checked here; the file is closed again and opened for
    reading at the first read of each process. So a zoo can be pickled and used after a fork or in a spawned worker.

    Args:
        path: the file.

    Attributes:
        path: the file.
        recipe: how the zoo was made: resolved config, seeds, source digest.
        specs: the architectures.
        spec_ids: int64 ``[rows]``, index into ``specs``.
        run_ids: int64 ``[rows]``; rows of one training run share it.
        splits: name → int64 row numbers.
        columns: names of the targets and metadata, see :meth:`column`.
        row_ptr: int64 ``[rows + 1]``, where the rows begin when they are laid one after the other.
        digest: hexadecimal SHA-256 of the content, as stored at writing.

    Raises:
        ZooError: if the file is missing, damaged, hostile or not a zoo; the message says what is wrong and the fix.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._handle: tuple[int, h5py.File] | None = None
        with open_checked(self.path) as file:
            description = describe(file, self.path)
        self.digest, self.recipe, self.specs = description.digest, description.recipe, description.specs
        self.spec_ids, self.run_ids, self.row_ptr = description.spec_ids, description.run_ids, description.row_ptr
        self.splits, self.columns = description.splits, description.columns

    def __len__(self) -> int:
        return len(self.run_ids)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(index)}" for name, index in self.splits.items())
        return f"Zoo({str(self.path)!r}, {len(self)} rows, {len(self.specs)} spec(s), {sizes or 'no splits'})"

    # -- the file, opened per process ---------------------------------------------------------------------------------

    def __enter__(self) -> Zoo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        handle, self._handle = self._handle, None
        if handle is not None and handle[0] == os.getpid():
            handle[1].close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.digest)

    def file(self) -> h5py.File:
        """This process's open file."""
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = None  # a handle from before a fork: its process owns it
            file = open_checked(self.path)
            if (digest := digest_in(file)) != self.digest:
                file.close()
                raise ZooError(
                    f"{self.path}: replaced by another zoo since it was opened (digest {digest[:12]}…, was "
                    f"{self.digest[:12]}…); open it again"
                )
            self._handle = (os.getpid(), file)
        return self._handle[1]

    # -- targets and metadata -----------------------------------------------------------------------------------------

    def column(self, name: str) -> Array:
        """One value for every row: int64, uint8, float32, float64 or str."""
        if name not in self.columns:
            raise ZooError(f"{self.path}: no column {name!r}; columns: {', '.join(self.columns) or 'none'}")
        values = whole(self.file(), self.path, f"columns/{name}")
        try:
            return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
        except UnicodeDecodeError as error:
            raise ZooError(f"{self.path}: column {name!r} is not UTF-8 ({error}); build the file again") from error

    @property
    def images(self) -> Array | None:
        """uint8 ``[n_images, height·width·channels]``, the images that the networks were fitted to; None if absent."""
        return whole(self.file(), self.path, "images") if "images" in self.file() else None

    def content_digest(self, advance: Callable[[int], None] = lambda n: None) -> str:
        """The digest recomputed from every byte of the content (compare with ``digest``)."""
        try:
            return content_digest(self.file(), advance)
        except OSError as error:
            raise ZooError(f"{self.path}: damaged ({error}); {AGAIN}") from error

    # -- weights ------------------------------------------------------------------------------------------------------

    def read(self, start: int, stop: int, finite: bool = False) -> Array:
        """Rows start to stop, float32 ``[stop − start, P]``; of a zoo with one architecture.

        Args:
            finite: refuse rows that hold NaN or infinity.

        Raises:
            ZooError: on rows out of range, damaged chunks (naming their rows) or, if asked, rows that are not finite.
        """
        self._check_single("read_mixed")
        self._check_range(start, stop)
        values = self._checked(self._rows(start, stop), np.arange(start, stop), finite)
        return values.reshape(stop - start, self.specs[0].numel)

    def read_rows(self, indices: Sequence[int] | Array, finite: bool = False) -> Array:
        """The rows of the given numbers, in their order (any, repeats allowed): float32 ``[n, P]``.

        Rows are fetched sorted, neighbours together, so that every chunk is read once. Raises as :meth:`read`.
        """
        self._check_single("read_mixed_rows")
        index = self._row_numbers(indices)
        values = np.empty((len(index), self.specs[0].numel), dtype=np.float32)
        for low, high, group in self._spans(index):
            values[group] = self._rows(low, high).reshape(high - low, values.shape[1])[index[group] - low]
        self._checked(values.ravel(), index, finite)
        return values

    def read_mixed(self, start: int, stop: int, finite: bool = False) -> tuple[Array, Array, Array]:
        """Rows start to stop one after the other: values float32 ``[ΣP]``, row_ptr ``[n + 1]``, spec_ids ``[n]``.

        For zoos of one architecture and of several. Raises as :meth:`read`.
        """
        self._check_range(start, stop)
        row_ptr = self.row_ptr[start : stop + 1] - self.row_ptr[start]
        values = self._checked(self._rows(start, stop), np.arange(start, stop), finite)
        return values, row_ptr, self.spec_ids[start:stop]

    def read_mixed_rows(self, indices: Sequence[int] | Array, finite: bool = False) -> tuple[Array, Array, Array]:
        """As :meth:`read_mixed`, for the rows of the given numbers in their order."""
        index = self._row_numbers(indices)
        sizes = np.diff(self.row_ptr)[index]
        row_ptr = np.concatenate([np.zeros(1, np.int64), sizes.cumsum()])
        values = np.empty(row_ptr[-1], dtype=np.float32)
        for low, high, group in self._spans(index):
            block = self._rows(low, high)
            for position in group:
                begin = self.row_ptr[index[position]] - self.row_ptr[low]
                values[row_ptr[position] : row_ptr[position + 1]] = block[begin : begin + sizes[position]]
        return self._checked(values, index, finite), row_ptr, self.spec_ids[index]

    # -- ranges and blocks ---------------------------------------------------------------------------------------------

    def _row_numbers(self, indices: Sequence[int] | Array) -> Array:
        index = np.asarray(indices)
        if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
            raise ZooError(f"{self.path}: row numbers must be a vector of integers, got {index.dtype} {index.shape}")
        index = index.astype(np.int64)
        outside = (index < 0) | (index >= len(self))
        if outside.any():
            raise ZooError(f"{self.path}: no row {index[outside][0]}; rows are 0 to {len(self) - 1}")
        return index

    def _spans(self, index: Array) -> Iterator[tuple[int, int, Array]]:
        """Rows (low, high) to read at once, with the positions in ``index`` that they serve.

        Cut where a whole chunk would be read in vain, and every 16 MiB.
        """
        if not len(index):
            return
        order = index.argsort(kind="stable")
        begin = self.row_ptr[index[order]]
        gap = np.diff(begin) > math.prod(self.file()["params" if "params" in self.file() else "values"].chunks)
        full = np.diff((begin - begin[0]) * 4 // BLOCK_BYTES) > 0
        for group in np.split(order, np.flatnonzero(gap | full) + 1):
            yield int(index[group[0]]), int(index[group[-1]]) + 1, group

    def _rows(self, start: int, stop: int) -> Array:
        """Rows start to stop, flat."""
        if "params" in self.file():
            return self._block("params", start, stop).ravel()
        return self._block("values", int(self.row_ptr[start]), int(self.row_ptr[stop]))

    def _block(self, name: str, start: int, stop: int) -> Array:
        dataset = self.file()[name]
        try:
            return dataset[start:stop]
        except OSError as error:
            step = dataset.chunks[0]
            for low in range(start - start % step, stop, step):
                high = min(low + step, len(dataset))
                try:
                    dataset[low:high]
                except OSError:
                    first, last = low, high - 1
                    if name == "values":
                        first, last = np.searchsorted(self.row_ptr, (first, last), side="right") - 1
                    raise ZooError(
                        f"{self.path}: rows {first} to {last} are damaged (the checksum of their chunk fails); {AGAIN}"
                    ) from error
            raise ZooError(f"{self.path}: {name!r} cannot be read ({error}); {AGAIN}") from error

    def _check_single(self, instead: str) -> None:
        if len(self.specs) != 1:
            raise ZooError(f"{self.path}: rows are of {len(self.specs)} specs; use {instead}")

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= len(self):
            raise ZooError(f"{self.path}: no rows {start} to {stop}; the zoo has {len(self)}")

    def _checked(self, values: Array, rows: Array, finite: bool) -> Array:
        if finite and not np.isfinite(values).all():
            bad = int(np.flatnonzero(~np.isfinite(values))[0])
            ends = np.diff(self.row_ptr)[rows].cumsum()
            number = int(np.searchsorted(ends, bad, side="right"))
            position = bad - int(ends[number] - np.diff(self.row_ptr)[rows[number]])
            raise ZooError(
                f"{self.path}: row {rows[number]} holds {values[bad]} (position {position}); build the file again, or "
                "copy it without such rows (scripts/verify_zoo.py FILE --without-faulty OUT)"
            )
        return values


def _reopen(path: Path, digest: str) -> Zoo:
    zoo = Zoo(path)
    if zoo.digest != digest:
        raise ZooError(
            f"{path}: replaced by another zoo (digest {zoo.digest[:12]}…, was {digest[:12]}…); open it again"
        )
    return zoo
