"""Valid partitions: the combinatorics of maps between tensors whose axes carry labels.

A partition of axes is *valid* if every block holds axes of one label. The valid partitions of the axes of an output and
an input tensor together are a basis of the equivariant linear maps between them (Zhou, Finn and Harrison, "Universal
Neural Functionals", section 3, after Maron et al.). A partition of both sides is the same as

    a partition of the output axes    into blocks that are written together (two axes in a block: a diagonal)
    a partition of the input axes     into blocks that are read together
    a partial matching of the blocks  matched: the same index; unmatched input: mean; unmatched output: broadcast

so terms factor into a :class:`Port` (output side) and a :class:`Reduction` (input side) that agree in the labels of
their matched blocks. Every distinct reduction is worth computing once; every port is worth writing once.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

Blocks = tuple[tuple[int, ...], ...]
Key = tuple[str, ...]


@cache
def stirling(items: int, blocks: int) -> int:
    """Number of partitions of ``items`` things into exactly ``blocks`` non-empty blocks."""
    if items == 0 or blocks == 0:
        return int(items == blocks)
    return blocks * stirling(items - 1, blocks) + stirling(items - 1, blocks - 1)


def count_partitions(labels: Key, sizes: Mapping[str, int] | None = None) -> int:
    """Number of valid partitions of axes with these labels: Π_a Bell(number of axes with label a).

    With ``sizes`` only partitions with at most ``sizes[a]`` blocks of each label a count, which is the dimension of the
    space: on shorter axes the others are linear combinations of them.
    """
    counts = Counter(labels)
    limit = {a: c if sizes is None else min(c, sizes[a]) for a, c in counts.items()}
    return math.prod(sum(stirling(c, k) for k in range(limit[a] + 1)) for a, c in counts.items())


def _set_partitions(items: tuple[int, ...]) -> list[Blocks]:
    if not items:
        return [()]
    first, rest = items[0], items[1:]
    out: list[Blocks] = []
    for blocks in _set_partitions(rest):
        out.append(((first,), *blocks))
        out += [(*blocks[:i], (first, *blocks[i]), *blocks[i + 1 :]) for i in range(len(blocks))]
    return out


@cache
def valid_partitions(labels: Key) -> tuple[Blocks, ...]:
    """All valid partitions of axes 0 … D−1, finest first; blocks in the order of their first axes."""
    per_label = [
        _set_partitions(tuple(axis for axis, label in enumerate(labels) if label == a)) for a in dict.fromkeys(labels)
    ]
    joined = (tuple(sorted(itertools.chain(*choice))) for choice in itertools.product(*per_label))
    return tuple(sorted(joined, key=lambda blocks: (-len(blocks), blocks)))


@dataclass(frozen=True)
class Port:
    """The output side of a term: ``connected`` blocks (ascending) receive values, the others are broadcast over."""

    blocks: Blocks
    connected: tuple[int, ...]

    @property
    def on_diagonal(self) -> bool:
        return any(len(block) > 1 for block in self.blocks)


@dataclass(frozen=True)
class Reduction:
    """The input side of a term: read the diagonal of ``blocks``, average all but ``kept``, which come in this order."""

    blocks: Blocks
    kept: tuple[int, ...]


@cache
def ports(labels: Key) -> tuple[Port, ...]:
    """All ports of a tensor whose sorted axis labels are ``labels``."""
    return tuple(
        Port(blocks, connected)
        for blocks in valid_partitions(labels)
        for count in range(len(blocks), -1, -1)
        for connected in itertools.combinations(range(len(blocks)), count)
    )


@cache
def reductions(labels: Key) -> tuple[Reduction, ...]:
    """All reductions of a tensor with sorted axis labels, one for each order of its surviving equal labels."""
    return tuple(
        Reduction(port.blocks, kept)
        for port in ports(labels)
        for kept in itertools.permutations(port.connected)
        if [labels[port.blocks[k][0]] for k in kept] == [labels[port.blocks[k][0]] for k in port.connected]
    )


def key_of(labels: Key, blocks: Blocks, chosen: tuple[int, ...]) -> Key:
    """Labels of the chosen blocks: a port and a reduction form a term exactly if their keys are equal."""
    return tuple(labels[blocks[k][0]] for k in chosen)


def is_redundant(out_blocks: Key, in_blocks: Key, key: Key, sizes: Mapping[str, int]) -> bool:
    """Whether a term has more blocks of some label than that label has neurons; arguments are the blocks' labels."""
    total = Counter(out_blocks)
    total.update(in_blocks)
    total.subtract(key)
    return any(count > sizes[label] for label, count in total.items())
