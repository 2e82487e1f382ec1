"""What a zoo file holds: names, types and chunks of its datasets, and the digest of its content.

    /                     attributes: format "wsl-zoo", version, digest (hexadecimal SHA-256 of the content)
    ├── specs, recipe     JSON as uint8
    ├── params            float32 [rows, P]         one architecture
    ├── values            float32 [ΣP]              several architectures: the rows one after the other,
    ├── row_ptr           int64 [rows + 1]              row r is values[row_ptr[r]:row_ptr[r + 1]],
    ├── spec_id           int64 [rows]                  of the architecture specs[spec_id[r]]
    ├── run_id            int64 [rows]
    ├── splits/NAME       int64 [n]                 row numbers
    ├── columns/NAME      [rows] int64, uint8, float32, float64 or fixed-length UTF-8
    └── images            uint8 [n_images, pixels]  optional

Every dataset is chunked, uncompressed and carries Fletcher-32 checksums, so no byte can change unnoticed and no dataset
can declare more than the file stores.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from wsl.errors import UserError

if TYPE_CHECKING:
    import h5py

FORMAT = "wsl-zoo"
VERSION = 1
GROUPS = ("columns", "splits")
#: dataset → (type, number of axes); one of ``params`` and ``values`` is there, with the latter its two indices
REQUIRED = {"specs": ("u1", 1), "recipe": ("u1", 1), "run_id": ("<i8", 1)}
SINGLE = {"params": ("<f4", 2)}
MIXED = {"values": ("<f4", 1), "row_ptr": ("<i8", 1), "spec_id": ("<i8", 1)}
OPTIONAL = {"images": ("u1", 2)}
COLUMN_TYPES = ("<i8", "u1", "<f4", "<f8")
LONGEST_STRING = 1024  # bytes of a string in a column

#: bytes of a chunk: half the former up to the latter; a longer row is cut into chunks of the latter
CHUNK_BYTES, LARGEST_CHUNK_BYTES = 2**19, 2**20
BLOCK_BYTES = 2**24  # bytes read at once when walking a whole dataset


class ZooError(UserError, ValueError):
    """A zoo file cannot be read or written; the message names the file, dataset or row, the value and the fix."""


def chunks_of(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Chunk shape: whole rows, 0.25–1 MiB (less if the dataset is smaller, cut along the row if one row is larger)."""
    row = math.prod(shape[1:]) * itemsize
    if row > LARGEST_CHUNK_BYTES:
        return (1, LARGEST_CHUNK_BYTES // itemsize, *shape[2:])
    count = math.ceil(shape[0] / max(1, CHUNK_BYTES // row))
    return (math.ceil(shape[0] / count), *shape[1:])  # chunks are stored whole: equal ones waste least


def blocks_of(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Consecutive (start, stop) that cover ``rows`` rows, each about 16 MiB."""
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def datasets_of(file: h5py.File) -> dict[str, h5py.Dataset]:
    """All datasets by path, sorted by path. The file must have passed :func:`wsl.zoo.guard.open_checked`."""
    paths = [name for name in file if name not in GROUPS]
    paths += [f"{group}/{name}" for group in GROUPS if group in file for name in file[group]]
    return {path: file[path] for path in sorted(paths)}


def content_digest(file: h5py.File, advance: Callable[[int], None] = lambda n: None) -> str:
    """SHA-256 over every dataset, sorted by path: path, type and shape in a line, then the values in row-major order.

    It depends on the content alone, neither on chunks nor on the release of HDF5 that wrote the file.

    Args:
        advance: called with the number of bytes read since the last call.
    """
    digest = hashlib.sha256(f"{FORMAT} {VERSION}\n".encode())
    for path, dataset in datasets_of(file).items():
        digest.update(f"{path} {dataset.dtype.str} {dataset.shape}\n".encode())
        for start, stop in blocks_of(dataset.shape[0], dataset.nbytes // dataset.shape[0]):
            block = np.ascontiguousarray(dataset[start:stop])
            digest.update(block.tobytes())
            advance(block.nbytes)
    return digest.hexdigest()


def check_splits(splits: Mapping[str, np.ndarray], rows: int) -> None:
    """Raises :class:`ZooError` if a split is empty, reaches outside the zoo, or shares a row with another one."""
    owner = np.full(rows, -1, dtype=np.int64)
    for number, (name, index) in enumerate(splits.items()):
        if not len(index):
            raise ZooError(f"split {name!r} is empty; leave it out")
        if index.min() < 0 or index.max() >= rows:
            outside = int(index[(index < 0) | (index >= rows)][0])
            raise ZooError(f"split {name!r} names row {outside}; rows are 0 to {rows - 1}")
        taken = owner[index] >= 0
        if taken.any() or len(np.unique(index)) != len(index):
            values, counts = np.unique(index, return_counts=True)
            row = int(index[taken][0] if taken.any() else values[counts > 1][0])
            other = list(splits)[owner[row]] if taken.any() else name
            raise ZooError(f"row {row} is in split {other!r} and again in {name!r}; a row is in one split at most")
        owner[index] = number


def straddling_runs(run_ids: np.ndarray, splits: Mapping[str, np.ndarray]) -> dict[int, tuple[int, int]]:
    """Runs with rows in two splits, each with one row of the first and one of the second split."""
    seen: dict[int, tuple[str, int]] = {}
    found: dict[int, tuple[int, int]] = {}
    for name, index in splits.items():
        runs, first = np.unique(run_ids[index], return_index=True)
        for run, row in zip(runs.tolist(), index[first].tolist(), strict=True):
            other, earlier = seen.setdefault(run, (name, row))
            if other != name:
                found.setdefault(run, (earlier, row))
    return found
