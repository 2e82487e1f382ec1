"""Batches are a function of seed and epoch, and ranks share the rows."""

from __future__ import annotations

import pytest

from wsl.data.sampler import BatchSampler, mixed_seed


def rows(sampler: BatchSampler) -> list[int]:
    return [row for batch in sampler for row in batch]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    a, b = BatchSampler(range(50), 8, seed=3), BatchSampler(range(50), 8, seed=3)
    assert list(a) == list(a) == list(b)
    b.set_epoch(1)
    assert list(a) != list(b)
    assert list(a) != list(BatchSampler(range(50), 8, seed=4))


@pytest.mark.parametrize(("seed", "batches"), [(None, 7), (0, 6)])
def test_training_drops_a_last_incomplete_batch_and_evaluation_does_not(seed: int | None, batches: int) -> None:
    sampler = BatchSampler(range(50), 8, seed)
    assert len(sampler) == len(list(sampler)) == batches
    assert len(set(rows(sampler))) == (50 if seed is None else 48)


def test_fewer_rows_than_a_batch_are_one_batch() -> None:
    sampler = BatchSampler(range(3), 8, seed=0)
    assert len(sampler) == 1 and sorted(rows(sampler)) == [0, 1, 2]


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_train_in_equal_steps_and_evaluate_every_row_once(ranks: int) -> None:
    parts = [BatchSampler(range(50), 4, 0, rank, ranks) for rank in range(ranks)]
    assert len({len(list(p)) for p in parts}) == 1 and all(len(b) == 4 for p in parts for b in p)
    parts = [BatchSampler(range(50), 4, None, rank, ranks) for rank in range(ranks)]
    assert all(len(list(p)) == len(p) for p in parts)
    assert sorted(row for part in parts for row in rows(part)) == list(range(50))


def test_more_ranks_than_rows_have_one_each() -> None:
    parts = [BatchSampler(range(2), 4, None, rank, 3) for rank in range(3)]
    assert [rows(part) for part in parts] == [[0], [1], [0]]


def test_two_ranks_see_the_batches_of_one() -> None:
    """The global batch is the same set of rows, however many ranks share it."""
    whole = list(BatchSampler(range(64), 8, seed=1))
    halves = [list(BatchSampler(range(64), 4, seed=1, rank=rank, ranks=2)) for rank in range(2)]
    assert [sorted(batch) for batch in whole] == [sorted(a + b) for a, b in zip(*halves, strict=True)]


def test_seeds_of_neighbours_are_unrelated() -> None:
    seeds = {mixed_seed(a, b) for a in range(50) for b in range(50)}
    assert len(seeds) == 2500 and all(0 <= s < 2**63 for s in seeds)
    assert mixed_seed(1, 2) != mixed_seed(2, 1)
