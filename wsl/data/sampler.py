"""Which rows make up which batch: a pure function of seed and epoch, shared among ranks by global position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler


def mixed_seed(*parts: int) -> int:
    """One 63-bit seed from several integers (seed, epoch, …); neighbouring parts give unrelated seeds.

    The finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators"), folded.
    """
    state = 0
    for part in parts:
        state = (state ^ (part & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


class BatchSampler(Sampler[list[int]]):
    """Batches of row numbers.

    Args:
        rows: the rows of the split.
        batch_size: rows per batch on each rank.
        seed: None keeps the order and all rows (evaluation); otherwise rows are shuffled by (seed, epoch) and the last
            incomplete batch is dropped where there is a complete one.
        rank, ranks: this process takes every ``ranks``-th row, from ``rank`` on. In training a tail that would make
            ranks unequal is filled by repeating rows; in evaluation only so far that every rank has a row (metrics
            remove repeated row ids).
    """

    def __init__(
        self, rows: Sequence[int], batch_size: int, seed: int | None = None, rank: int = 0, ranks: int = 1
    ) -> None:
        self.rows = torch.as_tensor(rows, dtype=torch.int64)
        self.batch_size, self.seed, self.rank, self.ranks = batch_size, seed, rank, ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        mine = len(range(self.rank, self._filled(), self.ranks))
        full, rest = divmod(mine, self.batch_size)
        return full if self.seed is not None and full else full + bool(rest)

    def order(self, epoch: int) -> Tensor:
        """All rows in the order of an epoch."""
        if self.seed is None:
            return self.rows
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        return self.rows[torch.randperm(len(self.rows), generator=generator)]

    def mine(self, epoch: int) -> Tensor:
        """This process's rows in the order of an epoch; in training, as many as every other process has."""
        order = self.order(epoch)
        return order[torch.arange(self.rank, self._filled(), self.ranks) % len(order)]

    def _filled(self) -> int:
        """Rows that all ranks take together."""
        rows = len(self.rows)
        return max(rows, self.ranks) if self.seed is None else rows + -rows % self.ranks

    def __iter__(self) -> Iterator[list[int]]:
        mine = self.mine(self.epoch)
        for batch in range(len(self)):
            yield mine[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()
