"""The Fletcher-32 checksum that HDF5 stores behind each chunk, for many words at once.

HDF5's own filter adds word after word: each sum waits for the one before, which bounds a reader to some 1.7 GB/s. The
same two sums are inner products, and integers in the vector registers of the processor give them several times faster:
in a compiled kernel of one pass, or in numpy where there is no compiler.
"""

from __future__ import annotations

import ctypes
import functools

import numpy as np
import numpy.typing as npt

from wsl import native

MODULUS = 65535
WIDTH = 512  # 32-bit words per row of the tables below: no sum of 512 or fewer of them leaves 32 bits


class Fletcher32:
    """Checks chunks of up to ``words`` 32-bit words.

    With the 16-bit words w_0 … w_{n−1} of a chunk, big-endian as HDF5 takes them, and everything modulo 65535,

        s₁ = Σ w_i,   s₂ = Σ (n − i) w_i,   checksum = s₂ · 2¹⁶ + s₁.

    Exchanging the bytes of a word multiplies it by 256 (2¹⁶ ≡ 1), so the sums are taken over the words as they lie in
    memory and multiplied in the end. The working memory belongs to the object: one object per thread.

    Args:
        compiled: whether to use the compiled kernel, if it can be built here.

    Raises:
        ValueError: if ``words`` is more than ``WIDTH²``: the 1 MiB that the largest chunk of a zoo has.
    """

    def __init__(self, words: int, compiled: bool = True) -> None:
        if words > WIDTH * WIDTH:
            raise ValueError(f"a chunk has at most {WIDTH * WIDTH} words of 32 bits, got {words}")
        self._kernel = _kernel() if compiled else None
        self._out = np.empty(3, np.uint64)
        room = 0 if self._kernel else words
        self._high, self._pair = np.empty(room, np.uint32), np.empty(room, np.uint32)

    def matches(self, chunk: npt.NDArray[np.uint32], stored: int) -> bool:
        """Whether ``stored`` is the checksum of the chunk (little-endian machine words)."""
        first, second = self.sums(chunk)
        return first == (stored & 0xFFFF) % MODULUS and second == (stored >> 16) % MODULUS

    def sums(self, chunk: npt.NDArray[np.uint32]) -> tuple[int, int]:
        """s₁ and s₂, from 0 to 65534."""
        n = len(chunk)
        if self._kernel is not None and chunk.flags.c_contiguous:
            self._kernel(chunk.ctypes.data, n, self._out.ctypes.data)
            total, weighted, plain = self._out.tolist()
        else:
            total, weighted, plain = self._in_numpy(chunk)
        # of the words in memory order, number 2k is the low half of chunk[k] and 2k + 1 the high half
        second = 2 * n * total - 2 * weighted - plain
        return total * 256 % MODULUS, second * 256 % MODULUS

    def _in_numpy(self, chunk: npt.NDArray[np.uint32]) -> tuple[int, int, int]:
        n = len(chunk)
        if len(self._high) < n:
            self._high, self._pair = np.empty(n, np.uint32), np.empty(n, np.uint32)
        high, pair = self._high[:n], self._pair[:n]
        np.right_shift(chunk, 16, out=high)
        np.bitwise_and(chunk, 0xFFFF, out=pair)
        np.add(pair, high, out=pair)  # at most 131,070
        return *_moments(pair), _moments(high)[0]


@functools.cache
def _kernel() -> ctypes._NamedFuncPointer | None:
    library = native.library(__file__, ("fletcher.c",), np.dtype(np.float32), "checksums are verified")
    if library is None:
        return None
    kernel = library.fletcher_sums
    kernel.argtypes, kernel.restype = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p], None
    return kernel


def _moments(values: npt.NDArray[np.uint32]) -> tuple[int, int]:
    """Σ values[k] and Σ k · values[k], by rows and columns of a table."""
    rows = len(values) // WIDTH
    table, rest = values[: rows * WIDTH].reshape(rows, WIDTH), values[rows * WIDTH :].astype(np.int64)
    down = np.add.reduce(table, axis=0, dtype=np.uint32).astype(np.int64)
    across = np.add.reduce(table, axis=1, dtype=np.uint32).astype(np.int64)
    total = int(down.sum()) + int(rest.sum())
    weighted = WIDTH * int(across @ np.arange(rows)) + int(down @ np.arange(WIDTH))
    return total, weighted + int(rest @ (rows * WIDTH + np.arange(len(rest))))
