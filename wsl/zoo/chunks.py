"""Read rows of a zoo straight from its chunks, into memory that the caller gives.

Chunks are uncompressed, so where HDF5 says that they lie, their values can be read by one system call per block, and
their checksums verified here (:mod:`wsl.zoo.fletcher`). HDF5's own way does both under one lock of the process and word
by word. It remains the judge: what looks damaged here is read again through it, and its verdict is reported.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from typing import Any

import numpy as np
import numpy.typing as npt

from wsl.zoo.fletcher import Fletcher32
from wsl.zoo.reader import Zoo

MOST_CHUNKS = 256  # of one system call, two pieces each; Linux takes 1024 pieces


class ChunkReader:
    """Rows of a zoo into given memory, for one thread of one process.

    Args:
        zoo: the file; its handle is asked for the chunks' places now and not again unless a chunk is damaged.

    Attributes:
        begin: int64 ``[chunks]``, the first value of each chunk, in the rows laid one after the other.
    """

    def __init__(self, zoo: Zoo) -> None:
        self.zoo = zoo
        file = zoo.file()
        dataset = file["params" if "params" in file else "values"]
        self._descriptor = os.dup(file.id.get_vfd_handle())
        places: list[tuple[tuple[int, ...], int, int, int]] = []
        dataset.id.chunk_iter(lambda c: places.append((c.chunk_offset, c.byte_offset, c.size, c.filter_mask)))
        places.sort()
        numel = dataset.shape[1] if dataset.ndim == 2 else 1
        corner = np.array([offset for offset, *_ in places], dtype=np.int64).reshape(len(places), dataset.ndim)
        self._size = int(np.prod(dataset.chunks))
        start = corner[:, 0] * numel + (corner[:, 1] if dataset.ndim == 2 else 0)
        self.begin: npt.NDArray[np.int64] = start.astype(np.int64)
        self._end = np.append(self.begin[1:], zoo.row_ptr[-1])
        self._offset = np.array([offset for _, offset, *_ in places], dtype=np.int64)
        #: stored as the format says: all values, checked; what is not is left to HDF5
        self._plain = np.array([size == 4 * self._size + 4 and not mask for *_, size, mask in places])
        self._fletcher = Fletcher32(self._size)
        self._aside = np.empty(self._size, np.float32)

    def __del__(self) -> None:
        if (descriptor := getattr(self, "_descriptor", None)) is not None:
            os.close(descriptor)

    def read(self, start: int, stop: int, out: npt.NDArray[np.float32]) -> None:
        """Rows start to stop, one after the other, into the beginning of ``out``.

        Raises:
            ZooError: if a chunk is damaged or the file was cut off; the message names the rows.
        """
        low, high = int(self.zoo.row_ptr[start]), int(self.zoo.row_ptr[stop])
        first, last = bisect_right(self.begin, low) - 1, bisect_right(self.begin, high - 1)
        if not self._plain[first:last].all():
            return self._by_hdf5(start, stop, out)
        for chunk in range(first, last, MOST_CHUNKS):
            if not self._read_chunks(range(chunk, min(chunk + MOST_CHUNKS, last)), low, high, out):
                return self._by_hdf5(start, stop, out)
        return None

    def _read_chunks(self, chunks: range, low: int, high: int, out: npt.NDArray[np.float32]) -> bool:
        """Whether the chunks were read and their checksums match; values from ``low`` to ``high`` go to ``out``."""
        whole = [low <= self.begin[c] and self.begin[c] + self._size <= min(high, self._end[c]) for c in chunks]
        sums = np.empty(len(chunks), np.uint32)
        run: list[tuple[int, npt.NDArray[np.float32]]] = []
        for place, (chunk, direct) in enumerate(zip(chunks, whole, strict=True)):
            begin = int(self.begin[chunk])
            run.append((chunk, out[begin - low : begin - low + self._size] if direct else self._aside))
            follows = place + 1 < len(chunks) and self._offset[chunk + 1] == self._offset[chunk] + 4 * self._size + 4
            if direct and follows and whole[place + 1]:
                continue
            if not self._fetch(run, sums[place + 1 - len(run) : place + 1]):
                return False
            if not direct:
                left, right = max(low, begin), min(high, int(self._end[chunk]))
                out[left - low : right - low] = self._aside[left - begin : right - begin]
            run = []
        return True

    def _fetch(self, run: list[tuple[int, npt.NDArray[np.float32]]], sums: npt.NDArray[np.uint32]) -> bool:
        """Read neighbouring chunks with one call and check them."""
        pieces: list[Any] = [
            piece for place, (_, target) in enumerate(run) for piece in (target, sums[place : place + 1])
        ]
        wanted = len(run) * (4 * self._size + 4)
        if os.preadv(self._descriptor, pieces, int(self._offset[run[0][0]])) != wanted:
            return False
        return all(
            self._fletcher.matches(target.view(np.uint32), int(stored))
            for (_, target), stored in zip(run, sums, strict=True)
        )

    def _by_hdf5(self, start: int, stop: int, out: npt.NDArray[np.float32]) -> None:
        values, _, _ = self.zoo.read_mixed(start, stop)
        out[: len(values)] = values
