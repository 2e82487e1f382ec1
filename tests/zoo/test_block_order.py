"""The order of an epoch: each row once, ranks and workers in blocks of their own, mixed nearly as well as at random."""

from __future__ import annotations

import numpy as np
import pytest

from wsl.zoo.block_order import GROUPS, LANES, block_pointers, block_starts, epoch_order, window_rows


def even_blocks(blocks: int, rows: int) -> np.ndarray:
    return np.arange(blocks + 1) * rows


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize(("blocks", "rows", "batch"), [(1, 1, 4), (3, 7, 4), (40, 11, 16), (64, 64, 64), (5, 9, 1000)])
def test_each_row_comes_once(blocks: int, rows: int, batch: int, seed: int | None) -> None:
    order = epoch_order(even_blocks(blocks, rows), batch, 5, seed)
    assert np.array_equal(np.sort(order), np.arange(blocks * rows))


def test_it_is_a_function_of_the_seed() -> None:
    ptr = even_blocks(40, 11)
    assert np.array_equal(epoch_order(ptr, 16, 5, 1), epoch_order(ptr, 16, 5, 1))
    assert not np.array_equal(epoch_order(ptr, 16, 5, 1), epoch_order(ptr, 16, 5, 2))


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_processes_read_blocks_of_their_own(ranks: int, workers: int) -> None:
    """Blocks read by all processes together: those of the file, and the few that a border of lanes cuts."""
    blocks, rows, batch = 512, 16, 32
    order = epoch_order(even_blocks(blocks, rows), batch, 64, 3)
    place = np.arange(len(order))
    process = place % ranks * workers + place // batch % workers
    read = sum(len(np.unique(order[process == p] // rows)) for p in range(ranks * workers))
    assert read <= blocks + LANES * GROUPS


def test_blocks_held_at_once_are_bounded_by_the_window() -> None:
    blocks, rows, batch, window = 4096, 16, 64, 64
    order = epoch_order(even_blocks(blocks, rows), batch, window, 3)
    step, block = np.arange(len(order)) // batch, order // rows
    first, last = np.full(blocks, len(order)), np.full(blocks, -1)
    first[block[::-1]], last[block] = step[::-1], step
    held = max(int(((first <= t) & (last >= t)).sum()) for t in range(0, int(step[-1]), 16))
    assert held <= LANES * GROUPS * (window // rows + 2)


@pytest.mark.parametrize("share", [4, 16])
def test_a_file_sorted_by_class_gives_mixed_batches(share: int) -> None:
    """Ten classes one after the other, the worst case: a batch draws from LANES windows of ``window / 32`` blocks, and
    two of its rows share block and class with that probability, which spreads the counts of a class over batches."""
    blocks, rows, batch = 1024, 32, 64
    classes = np.arange(blocks * rows) * 10 // (blocks * rows)
    window = blocks * rows // share // (LANES * GROUPS)

    def spread(order: np.ndarray) -> float:
        counts = np.stack([np.bincount(classes[part], minlength=10) for part in order.reshape(-1, batch)])
        return float(counts.var(0).mean() / (batch * 0.1 * 0.9))

    ours = np.mean([spread(epoch_order(even_blocks(blocks, rows), batch, window, seed)) for seed in range(5)])
    random = np.mean([spread(np.random.default_rng(seed).permutation(blocks * rows)) for seed in range(5)])
    assert 0.9 < random < 1.1
    predicted = 1 + (batch - 1) / (LANES * window / rows)
    assert 0.7 * predicted < ours < 1.1 * predicted
    assert spread(epoch_order(even_blocks(blocks, rows), batch, 1, None)) > 5 * random, "the check sees bad mixing"


def test_blocks_are_runs_of_whole_chunks() -> None:
    row_ptr, chunks = np.arange(101) * 30, np.arange(0, 3000, 120)  # four rows of 30 values each chunk
    assert np.array_equal(block_starts(row_ptr, chunks, 3 * 480), np.append(np.arange(0, 100, 12), 100))
    assert np.array_equal(block_starts(row_ptr, chunks, 1), np.append(np.arange(0, 100, 4), 100))
    long = np.arange(6) * 1000  # rows longer than a chunk
    assert np.array_equal(block_starts(long, np.arange(0, 5000, 100), 1), np.arange(6))


def test_the_window_follows_the_share_of_rows_that_are_wanted() -> None:
    row_ptr = np.arange(8001) * 25
    starts = np.append(np.arange(0, 8000, 10), 8000)
    for every in (1, 2, 10):
        rows = np.arange(0, 8000, every)
        window = window_rows(block_pointers(rows, starts), starts, row_ptr, 64 * LANES * GROUPS * 100)
        assert window == 64 // every
