"""Random numbers without a state: each is a function of what it is for.

A generator gives its numbers in the order in which they are asked for, so an augmentation would depend on how rows were
shared among batches, workers and ranks. Here a row has a key, a hash of (seed, epoch, row id, view), and its numbers
are those of SplitMix64 started at that key (Steele, Lea, Flood, "Fast splittable pseudorandom number generators"):
whole batches at once, in integer operations that wrap around alike on every device.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from wsl.data.sampler import mixed_seed


def _signed(value: int) -> int:
    """The int64 that has the bits of this uint64."""
    return (value & 0xFFFFFFFFFFFFFFFF) - ((value & 0x8000000000000000) << 1)


STEP, FIRST, SECOND = (_signed(v) for v in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shifted(x: Tensor, by: int) -> Tensor:
    """Logical shift to the right (that of int64 repeats the sign)."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _mixed(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64 tensors that stand for uint64."""
    x = (x ^ _shifted(x, 30)) * FIRST
    x = (x ^ _shifted(x, 27)) * SECOND
    return x ^ _shifted(x, 31)


def split_mix(key: Tensor, position: Tensor | int) -> Tensor:
    """Output number ``position`` (from 0) of SplitMix64 started at ``key``: the 64 bits as int64."""
    return _mixed(key + (position + 1) * STEP)


def keys(row_ids: Tensor, *parts: int) -> Tensor:
    """``[B]`` int64: one key for each row id and these parts; neighbouring ones are unrelated."""
    return split_mix(row_ids ^ _signed(mixed_seed(*parts)), 0)


@dataclass(frozen=True)
class RowRandom:
    """Random numbers for the rows of a batch.

    Attributes:
        keys: ``[B]`` int64, one for each row.
    """

    keys: Tensor

    @classmethod
    def of(cls, row_ids: Tensor, seed: int, epoch: int, view: int = 0) -> RowRandom:
        """For rows ``[B]``; functions of (seed, epoch, row id, view) and of nothing else."""
        return cls(keys(row_ids, seed, epoch, view))

    def uniform(self, purpose: str, owner: Tensor | None = None, position: Tensor | None = None) -> Tensor:
        """Float64 in (0, 1): one number for each row, or number ``position [N]`` of row ``owner [N]`` of the batch.

        Args:
            purpose: what the numbers are for; those of two purposes are unrelated.
        """
        mine = split_mix(self.keys ^ _signed(mixed_seed(*purpose.encode())), 0)
        mine = mine if owner is None else mine[owner]
        bits = split_mix(mine, 0 if position is None else position)
        return (_shifted(bits, 11).double() + 0.5) * 2.0**-53
