"""The compiled fitting kernel: ``siren.c`` is built once per machine by its C compiler and called without the GIL.

Measured on two cores, 28×28, it fits 3.5 to 4 times as many networks per second as the batched torch kernel: torch
writes every activation to memory several times, the kernel keeps a tile of pixels in the cache.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from wsl import native

POINTER = ctypes.c_void_p
SIGNATURE: list[Any] = [ctypes.c_int64, ctypes.c_int, *[POINTER] * 4, ctypes.c_int64, ctypes.c_double, ctypes.c_double]
SIGNATURE += [POINTER, ctypes.c_int, ctypes.c_double, POINTER, POINTER]
FAILURES = {1: MemoryError("no memory for one network"), 2: ValueError("a SIREN here has 1 to 15 hidden layers")}


def available() -> bool:
    """Whether the kernel can be used: a C compiler is there and what it builds loads."""
    return _library(np.dtype(np.float32)) is not None


def fit_rows(
    widths: tuple[int, ...],
    omega: float,
    offset: float,
    rows: np.ndarray,
    coordinates: np.ndarray,
    targets: np.ndarray,
    rates: tuple[float, float, float, float],
    steps: int,
    stop_mse: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit networks in place, each to its image (see ``siren_fit`` in siren.c).

    Args:
        rows: ``[B, P]``; coordinates: ``[N, d_0]``; targets: ``[B, N, d_L]``; contiguous, all float32 or all float64.
        rates: learning rate, β₁, β₂, ε of Adam.

    Returns:
        Mean squared errors of the fitted networks ``[B]`` float64 and the numbers of updates ``[B]`` int32.
    """
    library = _library(rows.dtype)
    if library is None:
        raise RuntimeError("the compiled kernel is not available; use kernel='torch'")
    shape = np.asarray(widths, dtype=np.int32)
    errors, used = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int32)
    parameters = np.asarray(rates, dtype=np.float64)
    arrays = (shape, rows, coordinates, targets)
    if any(not a.flags.c_contiguous or a.dtype != rows.dtype for a in arrays[1:]):
        raise ValueError("rows, coordinates and targets must be contiguous and of one type")
    failure = library.siren_fit(
        len(rows), len(widths) - 1, *(a.ctypes.data for a in arrays), len(coordinates), omega, offset,
        parameters.ctypes.data, steps, stop_mse, errors.ctypes.data, used.ctypes.data,
    )  # fmt: skip
    if failure:
        raise FAILURES[failure]
    return errors, used


@functools.cache
def _library(dtype: np.dtype) -> ctypes.CDLL | None:
    library = native.library(__file__, ("siren.c", "../../vector.h"), dtype, "INRs are fitted")
    if library is not None:
        library.siren_fit.argtypes, library.siren_fit.restype = SIGNATURE, ctypes.c_int
    return library
