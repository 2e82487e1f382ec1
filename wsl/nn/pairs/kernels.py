"""How the compiled kernels on pairs of nodes are called: which tensors they take, widths, threads.

Widths are padded to whole vectors of the processor, with weights of zero; the published sizes are whole vectors
already. A thread adds to gradients of its own what pairs of several threads share, and these are summed in order, so
that a number of threads gives the same bits every time.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsl import native

TYPES = {torch.float32: np.float32, torch.float64: np.float64}
HEADERS = ("tile.h", "../../vector.h")
WHOLE, REAL, POINTER = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


def fields(kind: Any, names: str) -> list[Any]:
    return [(name, kind) for name in names.split()]


def take(*tensors: Tensor) -> bool:
    """Whether the kernels can be built here and take these: all on a CPU and of one type, float32 or float64."""
    kinds = {(t.device.type, t.dtype) for t in tensors}
    ((device, dtype), *others) = kinds
    return not others and device == "cpu" and dtype in TYPES and _libraries(dtype) is not None


def parts_of(edges: Tensor, shared: Sequence[Tensor]) -> int:
    """One for each of torch's threads, while the gradients of their own take at most four times what the edges take."""
    return max(1, min(torch.get_num_threads(), 4 * edges.numel() // sum(t.numel() for t in shared)))


def in_threads(piece: Callable[[int], int], parts: int) -> None:
    """Run ``piece(part)`` for every part, each in a thread of its own.

    Raises:
        MemoryError: if one finds no memory.
    """
    if parts == 1:
        failed = [piece(0)]
    else:
        with ThreadPoolExecutor(parts) as pool:
            failed = list(pool.map(piece, range(parts)))
    if any(failed):
        raise MemoryError("no memory for a tile of pairs of nodes")


def padded(x: Tensor, step: int, dims: int = 1) -> Tensor:
    """With zeros behind, so that each of the last ``dims`` sizes is a multiple of ``step``."""
    pads = [pad for size in reversed(x.shape[-dims:]) for pad in (0, -size % step)]
    return F.pad(x, pads) if any(pads) else x


def ready(x: Tensor) -> Tensor:
    """Without gaps, and where vectors may begin."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % 64 else x


def lanes_of(dtype: torch.dtype) -> int:
    """Numbers in the widest vector of any processor, 64 bytes."""
    return 64 // dtype.itemsize


def library(dtype: torch.dtype, number: int) -> ctypes.CDLL:
    libraries = _libraries(dtype)
    if libraries is None:
        raise RuntimeError("the compiled kernels are not available; see kernels.take")
    return libraries[number]


@functools.cache
def _libraries(dtype: torch.dtype) -> tuple[ctypes.CDLL, ctypes.CDLL] | None:
    """Those of attention and update."""
    kind, what = np.dtype(TYPES[dtype]), "pairs of nodes are computed"
    attention = native.library(__file__, ("attention.c", *HEADERS), kind, what)
    updates = None if attention is None else native.library(__file__, ("update.c", "gelu.h", *HEADERS), kind, what)
    if attention is None or updates is None:
        return None
    attention.attend.argtypes, attention.attend.restype = [POINTER, POINTER, *[WHOLE] * 3], ctypes.c_int
    updates.update.argtypes, updates.update.restype = [POINTER, WHOLE, WHOLE], ctypes.c_int
    return attention, updates
