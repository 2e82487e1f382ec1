"""Write a zoo file beside its target and rename it when it is complete."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

from wsl.spec import WeightSpec
from wsl.zoo.admit import Array, column, integers, json_bytes, member_name
from wsl.zoo.layout import (
    FORMAT,
    GROUPS,
    VERSION,
    ZooError,
    check_splits,
    chunks_of,
    content_digest,
    straddling_runs,
)
from wsl.zoo.temporary import Temporary, refuse_existing, reported


class ZooWriter:
    """Writes a zoo; used in a ``with`` statement, whose clean end puts the file in place.

    The rows go to a temporary file beside the target, whose space is taken at once: a full disk shows before hours are
    spent on the rows, and the file's bytes depend on the content alone, not on the order of writing. At the end the
    file is checked, digested, synced and renamed. If anything fails, the temporary file is removed and a file that was
    there stays as it was.

    Args:
        path: the target.
        specs: the architectures (a single spec is taken as such).
        rows: the number of networks.
        recipe: how they are made, plain JSON values: resolved config, seeds, source digest.
        overwrite: replace an existing file.
        spec_ids: ``[rows]``, each row's index into ``specs``; needed when there are several.

    Raises:
        ZooError: if the target exists or its folder cannot be written, the disk is full, or what is written is
            incomplete or contradictory.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        specs: WeightSpec | Sequence[WeightSpec],
        rows: int,
        recipe: Mapping[str, Any],
        overwrite: bool = False,
        spec_ids: Sequence[int] | Array | None = None,
    ) -> None:
        self.path = Path(path)
        self.specs = (specs,) if isinstance(specs, WeightSpec) else tuple(specs)
        self.rows, self.overwrite = rows, overwrite
        refuse_existing(self.path, self.overwrite)
        if rows < 1 or not self.specs or any(spec.numel < 1 for spec in self.specs):
            raise ZooError(f"{self.path}: a zoo has at least one row, one spec, and one value per row; got {rows} rows")
        self.spec_ids = self._checked_spec_ids(spec_ids)
        sizes = np.array([spec.numel for spec in self.specs], dtype=np.int64)
        self.row_ptr = np.concatenate([np.zeros(1, np.int64), sizes[self.spec_ids].cumsum()])
        self._written = np.zeros(rows, dtype=bool)
        self._columns: dict[str, Array] = {}
        self._splits: dict[str, Array] = {}
        self._run_ids = np.arange(rows, dtype=np.int64)
        self._images: Array | None = None
        self._texts = {
            "specs": json_bytes(self.path, "specs", [spec.to_dict() for spec in self.specs]),
            "recipe": json_bytes(self.path, "recipe", dict(recipe)),
        }
        self._temporary = Temporary(self.path)
        self._file: h5py.File | None = None
        try:
            with reported(self.path):
                self._create()
        except BaseException:
            self._discard()
            raise

    # -- filling ------------------------------------------------------------------------------------------------------

    def write(self, start: int, values: Any, lengths: Sequence[int] | Array | None = None, finite: bool = True) -> None:
        """Write the rows from ``start`` on; blocks may come in any order.

        Args:
            start: number of the first row.
            values: float ``[n, P]``, or with several specs the n rows one after the other, ``[ΣP]``.
            lengths: ``[n]``, the rows' lengths, for a flat vector; must agree with ``spec_ids``.
            finite: refuse NaN and infinity.

        Raises:
            ZooError: if the rows do not fit, were written before or are not finite; the message names the row.
        """
        block = np.asarray(values)
        if block.dtype.kind != "f":
            raise ZooError(f"{self.path}: weights must be floating point, got {block.dtype}")
        stop = self._stop(start, block, lengths)
        flat = block.astype(np.float32, copy=False).ravel()
        if self._written[start:stop].any():
            row = start + int(self._written[start:stop].argmax())
            raise ZooError(f"{self.path}: row {row} was written before; write each row once")
        if finite and not np.isfinite(flat).all():
            bad = self.row_ptr[start] + int(np.flatnonzero(~np.isfinite(flat))[0])
            row = int(np.searchsorted(self.row_ptr, bad, side="right")) - 1
            raise ZooError(
                f"{self.path}: row {row} holds {flat[bad - self.row_ptr[start]]}; leave it out or fit it again"
            )
        with reported(self.path):
            if len(self.specs) == 1:
                self._open_file()["params"][start:stop] = flat.reshape(stop - start, self.specs[0].numel)
            else:
                self._open_file()["values"][self.row_ptr[start] : self.row_ptr[stop]] = flat
        self._written[start:stop] = True

    def set_columns(self, columns: Mapping[str, Any]) -> None:
        """Targets and metadata, name → ``[rows]``: integers, floats, booleans (kept as uint8) or short strings."""
        for name, values in columns.items():
            self._columns[member_name(self.path, "column", name)] = column(
                self.path, name, np.asarray(values), self.rows
            )

    def set_run_ids(self, run_ids: Sequence[int] | Array) -> None:
        """The training run of each row, ``[rows]``; without them each row is a run of its own."""
        self._run_ids = integers(self.path, "run ids", run_ids)
        if self._run_ids.shape != (self.rows,):
            raise ZooError(f"{self.path}: {self._run_ids.shape} run ids for {self.rows} rows")

    def set_splits(self, splits: Mapping[str, Sequence[int] | Array]) -> None:
        """Row numbers of each split, name → ``[n]``; checked at the end."""
        for name, index in splits.items():
            self._splits[member_name(self.path, "split", name)] = integers(self.path, f"split {name!r}", index)

    def set_images(self, images: Any) -> None:
        """The images that INRs are fitted to, uint8 ``[n_images, height·width·channels]``; see column image_index."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 2 or 0 in images.shape:
            raise ZooError(f"{self.path}: images must be uint8 [n_images, pixels], got {images.dtype} {images.shape}")
        self._images = images

    # -- beginning and end --------------------------------------------------------------------------------------------

    def __enter__(self) -> ZooWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def _create(self) -> None:
        file = h5py.File(self._temporary.path, "x", libver=("v110", "v110"), locking=False, rdcc_nbytes=2**24)
        self._file = file
        self._temporary.lock()
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["version"] = np.int64(VERSION)
        file.attrs["digest"] = np.bytes_("0" * 64)
        for group in GROUPS:
            file.create_group(group)
        shape = (self.rows, self.specs[0].numel) if len(self.specs) == 1 else (int(self.row_ptr[-1]),)
        _create_dataset(file, "params" if len(self.specs) == 1 else "values", shape, np.dtype("<f4"))

    def _finish(self) -> None:
        if not self._written.all():
            missing = np.flatnonzero(~self._written)
            raise ZooError(
                f"{self.path}: {len(missing)} of {self.rows} rows were not written, the first is {missing[0]}"
            )
        try:
            check_splits(self._splits, self.rows)
        except ZooError as error:
            raise ZooError(f"{self.path}: {error}") from error
        for run, (a, b) in straddling_runs(self._run_ids, self._splits).items():
            raise ZooError(f"{self.path}: rows {a} and {b} of run {run} are in two splits; split by run")
        refuse_existing(self.path, self.overwrite)
        with reported(self.path):
            self._write_rest()
            file = self._open_file()
            file.flush()
            file.attrs.modify("digest", np.bytes_(content_digest(file)))
            file.close()
            self._temporary.put_in_place()

    def _write_rest(self) -> None:
        parts: dict[str, Array] = self._texts | {"run_id": self._run_ids}
        if len(self.specs) > 1:
            parts |= {"row_ptr": self.row_ptr, "spec_id": self.spec_ids}
        if self._images is not None:
            parts["images"] = self._images
        parts |= {f"columns/{name}": values for name, values in self._columns.items()}
        parts |= {f"splits/{name}": index for name, index in self._splits.items()}
        for name in sorted(parts):
            _create_dataset(self._open_file(), name, parts[name].shape, parts[name].dtype)[...] = parts[name]

    def _discard(self) -> None:
        """Close and remove the temporary file (a no-op after it has been renamed)."""
        if self._file is not None and self._file:
            # closing flushes, which fails on a full disk; the file is removed anyway and the first error counts
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                self._file.close()
        self._file = None
        self._temporary.discard()

    # -- checks -------------------------------------------------------------------------------------------------------

    def _open_file(self) -> h5py.File:
        if self._file is None or not self._file:
            raise ZooError(f"{self.path}: the writer is closed; open a new one")
        return self._file

    def _checked_spec_ids(self, spec_ids: Sequence[int] | Array | None) -> Array:
        if spec_ids is None:
            if len(self.specs) > 1:
                raise ZooError(f"{self.path}: with {len(self.specs)} specs, pass spec_ids, the spec of each row")
            return np.zeros(self.rows, dtype=np.int64)
        ids = integers(self.path, "spec ids", spec_ids)
        if ids.shape != (self.rows,) or set(np.unique(ids).tolist()) != set(range(len(self.specs))):
            raise ZooError(
                f"{self.path}: spec ids {sorted(set(ids.tolist()))[:8]} of shape {ids.shape}; {self.rows} are needed, "
                f"and each of the {len(self.specs)} specs used"
            )
        return ids

    def _stop(self, start: int, block: Array, lengths: Sequence[int] | Array | None) -> int:
        """The row after the block's last one."""
        if len(self.specs) == 1 and block.ndim == 2:
            stop, fits = start + len(block), block.shape[1] == self.specs[0].numel
        else:
            given = np.asarray(lengths if lengths is not None else [], dtype=np.int64)
            first = int(self.row_ptr[min(max(start, 0), self.rows)])
            stop = int(np.searchsorted(self.row_ptr, first + block.size)) if lengths is None else start + len(given)
            expected = np.diff(self.row_ptr)[start:stop]
            fits = block.ndim == 1 and expected.sum() == block.size
            fits &= lengths is None or (len(given) == len(expected) and bool((given == expected).all()))
        if not fits or not 0 <= start <= stop <= self.rows:
            sizes = f"P = {self.specs[0].numel}" if len(self.specs) == 1 else "the lengths that spec_ids gives"
            raise ZooError(
                f"{self.path}: block of shape {block.shape} at row {start} does not fit {self.rows} rows with {sizes}"
            )
        return stop


def _create_dataset(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> h5py.Dataset:
    """A dataset with checksums, whose chunks are laid out now, in order (hence the same bytes for the same content)."""
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_chunk(chunks_of(shape, dtype.itemsize))
    properties.set_fletcher32()
    properties.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    properties.set_obj_track_times(False)
    group, _, leaf = name.rpartition("/")
    kind, space = h5t.py_create(dtype, logical=True), h5s.create_simple(shape)
    return h5py.Dataset(h5d.create(file[group or "/"].id, leaf.encode(), kind, space, dcpl=properties))
