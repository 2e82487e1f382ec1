"""In which order an epoch goes through a file that is read block by block.

A uniformly random order would read a whole chunk for every row. Here blocks (runs of whole chunks) are taken in random
order, and rows are mixed within a buffer of many blocks. So that processes which share the work read different blocks
although the order does not depend on their number, the epoch is laid out in lanes:

    the rows, in the order of the shuffled blocks  →  cut into GROUPS × LANES equal lanes
    each lane mixed within windows (a lane's share of the buffer), staggered so that not all begin at once
    batch b takes rows from the lanes of group b mod GROUPS, its j-th row from lane j mod LANES of them

A rank that takes every R-th row reads its own lanes only if R divides LANES, and a worker that makes every W-th batch
if W divides GROUPS. Any other numbers give the same order too; they only read some blocks more than once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LANES, GROUPS = 8, 4

Array = npt.NDArray[np.int64]


def block_starts(row_ptr: Array, chunks: Array, block_bytes: int) -> Array:
    """First rows of the blocks, and at the end the number of rows.

    Args:
        row_ptr: ``[rows + 1]``, where the rows begin when they are laid one after the other.
        chunks: ``[chunks]``, the first value of each chunk.
        block_bytes: how large a block should be; it has at least one row and the better part of one chunk.
    """
    step = max(1, round(block_bytes / (4 * row_ptr[-1] / len(chunks))))
    starts = np.unique(np.searchsorted(row_ptr[:-1], chunks[::step]))
    return np.append(starts[starts < len(row_ptr) - 1], len(row_ptr) - 1)


def epoch_order(block_ptr: Array, batch: int, window: int, seed: int | None) -> Array:
    """The rows of a split, by their positions in it, in the order of an epoch.

    Args:
        block_ptr: ``[blocks + 1]``: positions ``block_ptr[k]`` to ``block_ptr[k + 1]`` lie in block k.
        batch: rows of a batch, those of all ranks together.
        window: rows of a lane that are mixed with each other.
        seed: of this epoch; None takes blocks and rows as they lie, still by lanes.

    Returns:
        int64 ``[n]``, each position once.
    """
    n = int(block_ptr[-1])
    begin, length = block_ptr[:-1], np.diff(block_ptr)
    if seed is not None:
        generator = np.random.default_rng(seed)
        shuffled = generator.permutation(len(begin))
        begin, length = begin[shuffled], length[shuffled]
    rows = np.repeat(begin - (length.cumsum() - length), length) + np.arange(n)
    lane, depth = _lanes(n, batch)
    size = np.bincount(lane, minlength=LANES * GROUPS)
    first = size.cumsum() - size
    if seed is not None:
        for number, (start, count) in enumerate(zip(first.tolist(), size.tolist(), strict=True)):
            late = window * number // (LANES * GROUPS)
            key = (np.arange(count) + late) // window + generator.random(count)
            rows[start : start + count] = rows[start : start + count][key.argsort()]
    return rows[first[lane] + depth]


def _lanes(n: int, batch: int) -> tuple[Array, Array]:
    """For each place in the epoch, its lane and how far down that lane it is."""
    number, within = np.divmod(np.arange(n), batch)
    within += number // GROUPS * batch
    lane = number % GROUPS * LANES + within % LANES
    return lane, within // LANES


def window_rows(block_ptr: Array, starts: Array, row_ptr: Array, buffer_bytes: int) -> int:
    """Rows per window, so that the blocks which hold them take about ``buffer_bytes`` in all lanes together."""
    used = np.flatnonzero(np.diff(block_ptr))
    held = 4 * int((row_ptr[starts[used + 1]] - row_ptr[starts[used]]).sum())
    return max(1, int(block_ptr[-1]) * buffer_bytes // (held * LANES * GROUPS))


def block_pointers(rows: Array, starts: Array) -> Array:
    """``block_ptr`` of :func:`epoch_order` for ascending row numbers ``rows`` of a split."""
    return np.searchsorted(rows, starts).astype(np.int64)
