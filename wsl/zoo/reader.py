"""Read a zoo file: its description at once, its weights in blocks or by row number."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from wsl.spec import WeightSpec
from wsl.zoo.guard import open_checked
from wsl.zoo.layout import BLOCK_BYTES, ZooError, check_splits, content_digest

Array = npt.NDArray[Any]


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
            self.digest = file.attrs["digest"].decode("ascii", "replace")
            self.recipe: dict[str, Any] = self._json(file, "recipe", dict)
            self.columns = tuple(sorted(file["columns"]))
            self.run_ids = self._whole(file, "run_id")
            self.splits = {name: self._whole(file, f"splits/{name}") for name in sorted(file["splits"])}
            sizes = self._read_specs(file)
            for name in (*(f"columns/{name}" for name in self.columns), *(("params",) if "params" in file else ())):
                if len(file[name]) != len(self):
                    raise ZooError(f"{self.path}: {name!r} has {len(file[name])} rows, the zoo has {len(self)}")
        self.row_ptr = np.concatenate([np.zeros(1, np.int64), sizes[self.spec_ids].cumsum()])
        try:
            check_splits(self.splits, len(self))
        except ZooError as error:
            raise ZooError(f"{self.path}: {error}") from error

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
            if (digest := file.attrs["digest"].decode("ascii", "replace")) != self.digest:
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
        values = self._whole(self.file(), f"columns/{name}")
        try:
            return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
        except UnicodeDecodeError as error:
            raise ZooError(f"{self.path}: column {name!r} is not UTF-8 ({error}); build the file again") from error

    @property
    def images(self) -> Array | None:
        """uint8 ``[n_images, height·width·channels]``, the images that the networks were fitted to; None if absent."""
        return self._whole(self.file(), "images") if "images" in self.file() else None

    def content_digest(self, advance: Callable[[int], None] = lambda n: None) -> str:
        """The digest recomputed from every byte of the content (compare with ``digest``)."""
        return content_digest(self.file(), advance)

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
        values = self._block("params", start, stop, lambda row: (row, row + 1))
        return self._checked(values.ravel(), np.arange(start, stop), finite).reshape(stop - start, -1)

    def read_rows(self, indices: Sequence[int] | Array, finite: bool = False) -> Array:
        """The rows of the given numbers, in their order (any, repeats allowed): float32 ``[n, P]``.

        Rows are fetched sorted, neighbours together, so that every chunk is read once. Raises as :meth:`read`.
        """
        self._check_single("read_mixed_rows")
        values, _, _ = self.read_mixed_rows(indices, finite)
        return values.reshape(-1, self.specs[0].numel)

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
        index = np.asarray(indices)
        if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
            raise ZooError(f"{self.path}: row numbers must be a vector of integers, got {index.dtype} {index.shape}")
        index = index.astype(np.int64)
        outside = (index < 0) | (index >= len(self))
        if outside.any():
            raise ZooError(f"{self.path}: no row {index[outside][0]}; rows are 0 to {len(self) - 1}")
        sizes = np.diff(self.row_ptr)[index]
        row_ptr = np.concatenate([np.zeros(1, np.int64), sizes.cumsum()])
        values = np.empty(row_ptr[-1], dtype=np.float32)
        order = index.argsort(kind="stable")
        for group in np.split(order, self._cuts(index[order])) if len(order) else ():
            low, high = int(index[group[0]]), int(index[group[-1]]) + 1
            block = self._rows(low, high)
            for position in group:
                begin = self.row_ptr[index[position]] - self.row_ptr[low]
                values[row_ptr[position] : row_ptr[position + 1]] = block[begin : begin + sizes[position]]
        return self._checked(values, index, finite, row_ptr), row_ptr, self.spec_ids[index]

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _cuts(self, index: Array) -> Array:
        """Where to cut sorted row numbers into spans: at gaps of a chunk or more, and every 16 MiB."""
        begin = self.row_ptr[index]
        gap = np.diff(begin) > math.prod(self.file()["params" if "params" in self.file() else "values"].chunks)
        span = np.diff((begin - begin[0]) * 4 // BLOCK_BYTES) > 0
        return np.flatnonzero(gap | span) + 1

    def _rows(self, start: int, stop: int) -> Array:
        """Rows start to stop, flat."""
        if "params" in self.file():
            return self._block("params", start, stop, lambda row: (row, row + 1)).ravel()
        first, last = int(self.row_ptr[start]), int(self.row_ptr[stop])
        return self._block("values", first, last, self._rows_of_value)

    def _rows_of_value(self, position: int) -> tuple[int, int]:
        row = int(np.searchsorted(self.row_ptr, position, side="right")) - 1
        return row, row + 1

    def _block(self, name: str, start: int, stop: int, rows: Callable[[int], tuple[int, int]]) -> Array:
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
                    first, last = rows(low)[0], rows(high - 1)[1] - 1
                    raise ZooError(
                        f"{self.path}: rows {first} to {last} are damaged (checksum of a chunk of {name!r} fails); "
                        "copy or build the file again"
                    ) from error
            raise ZooError(f"{self.path}: {name!r} cannot be read ({error}); copy or build the file again") from error

    def _whole(self, file: h5py.File, name: str) -> Array:
        try:
            return file[name][()]
        except OSError as error:
            raise ZooError(f"{self.path}: {name!r} is damaged ({error}); copy or build the file again") from error

    def _json(self, file: h5py.File, name: str, kind: type) -> Any:
        try:
            value = json.loads(self._whole(file, name).tobytes())
        except (ValueError, RecursionError) as error:
            if isinstance(error, ZooError):
                raise
            raise ZooError(f"{self.path}: {name!r} is no JSON ({error}); build the file again") from error
        if not isinstance(value, kind):
            raise ZooError(f"{self.path}: {name!r} is a JSON {type(value).__name__}, expected {kind.__name__}")
        return value

    def _read_specs(self, file: h5py.File) -> Array:
        """Set ``specs`` and ``spec_ids``, and return the number of values of each spec."""
        described = self._json(file, "specs", list)
        if "params" in file:
            numels = [file["params"].shape[1]] * len(described)
            self.spec_ids = np.zeros(len(self), dtype=np.int64)
            if len(described) != 1:
                raise ZooError(f"{self.path}: 'params' belongs to one spec, 'specs' has {len(described)}")
        else:
            self.spec_ids, row_ptr = self._whole(file, "spec_id"), self._whole(file, "row_ptr")
            numels = self._mixed_sizes(row_ptr, len(described), len(file["values"]))
        self.specs = tuple(self._spec(i, data, n) for i, (data, n) in enumerate(zip(described, numels, strict=True)))
        return np.array(numels, dtype=np.int64)

    def _mixed_sizes(self, row_ptr: Array, specs: int, values: int) -> list[int]:
        where = f"{self.path}: 'row_ptr' and 'spec_id'"
        if len(self.spec_ids) != len(self) or len(row_ptr) != len(self) + 1:
            raise ZooError(f"{where} have {len(row_ptr)} and {len(self.spec_ids)} entries for {len(self)} rows")
        if self.spec_ids.min() < 0 or self.spec_ids.max() >= specs:
            raise ZooError(
                f"{where}: spec ids run from {self.spec_ids.min()} to {self.spec_ids.max()} of {specs} specs"
            )
        numels = np.zeros(specs, dtype=np.int64)
        lengths = np.diff(row_ptr)
        numels[self.spec_ids] = lengths
        if (lengths < 1).any() or row_ptr[0] != 0 or row_ptr[-1] != values:
            raise ZooError(f"{where}: rows do not cover the {values} values one after the other")
        if (wrong := numels[self.spec_ids] != lengths).any():
            raise ZooError(f"{where}: row {int(wrong.argmax())} has another length than other rows of its spec")
        if unused := np.setdiff1d(np.arange(specs), self.spec_ids).tolist():
            raise ZooError(f"{self.path}: no row has the specs {unused[:5]}; build the file again")
        return numels.tolist()

    def _spec(self, number: int, data: Any, numel: int) -> WeightSpec:
        """The spec, after its size was compared with what is stored: a short JSON could ask for any memory."""
        where = f"{self.path}: spec {number}"
        try:
            for part in ("stored", "tensors"):
                total = sum(math.prod(item["shape"]) for item in data[part])
                if total != numel:
                    raise ZooError(f"{where}: its {part} have {total} values, its rows have {numel}; build it again")
            return WeightSpec.from_dict(data)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            if isinstance(error, ZooError):
                raise
            raise ZooError(f"{where} is malformed: {error}; build the file again") from error

    def _check_single(self, instead: str) -> None:
        if len(self.specs) != 1:
            raise ZooError(f"{self.path}: rows are of {len(self.specs)} specs; use {instead}")

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= len(self):
            raise ZooError(f"{self.path}: no rows {start} to {stop}; the zoo has {len(self)}")

    def _checked(self, values: Array, rows: Array, finite: bool, row_ptr: Array | None = None) -> Array:
        if finite and not np.isfinite(values).all():
            bad = int(np.flatnonzero(~np.isfinite(values))[0])
            row_ptr = self.row_ptr[rows[0] :] - self.row_ptr[rows[0]] if row_ptr is None else row_ptr
            row = rows[np.searchsorted(row_ptr, bad, side="right") - 1]
            position = bad - int(row_ptr[np.searchsorted(row_ptr, bad, side="right") - 1])
            raise ZooError(
                f"{self.path}: row {row} holds {values[bad]} (position {position}); "
                "leave the row out or build the file again"
            )
        return values


def _reopen(path: Path, digest: str) -> Zoo:
    zoo = Zoo(path)
    if zoo.digest != digest:
        raise ZooError(
            f"{path}: replaced by another zoo (digest {zoo.digest[:12]}…, was {digest[:12]}…); open it again"
        )
    return zoo
