"""Which terms a UNF layer has: from labels to *exchanges*, and how many coefficients that takes.

All terms whose matched blocks have the labels (a, b, …) go through one exchange: the reductions that keep (a, b, …) are
its sources, the ports that receive (a, b, …) its sinks, and its coefficients are one matrix from source to sink
channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from wsl.errors import UserError
from wsl.nn.unf.layout import Bundle, Layout
from wsl.nn.unf.partitions import (
    Key,
    Port,
    Reduction,
    count_partitions,
    is_redundant,
    key_of,
    ports,
    reductions,
)
from wsl.nn.unf.roles import neighbours


class BasisTooLargeError(UserError, ValueError):
    """A layer would need more memory than its budget; the message gives the count, the worst pair and the way out."""


@dataclass(frozen=True)
class BasisOptions:
    """What a UNF layer may express, and at what price.

    Attributes:
        theta: ``full``: every term has its own matrix c_in × c_out. ``role_shared``: tensors of one role (the same
            place in repeated blocks) share them, with one set for terms inside a block and one for the mean over other
            blocks. Their number does not depend on depth; blocks are told apart only by their contents. A step costs
            more than in the full basis, since the matrices are gathered first.
            ``low_rank``: the matrix of every exchange has rank at most ``rank``: terms keep their place, but all sinks
            of an exchange draw on ``rank`` common features. The cheapest in coefficients, time and memory.
        rank: R of ``low_rank``.
        diagonal_writes: keep ports that write onto a diagonal; without them a layer treats the diagonal of a recurrent
            matrix like every other entry when writing, and still reads it.
        neighbours_only: only between tensors that touch a common neuron group; information then travels one
            connection per layer, and a distant tensor is seen only after as many layers. Saves coefficients, not time.
        drop_redundant: leave out the terms that are linear combinations of others because an axis is shorter than the
            number of its blocks; the span is the same. ``low_rank`` keeps them: its coefficients are not per term.
        aggregation: ``mean`` as in the official code, or ``sum`` as in the paper.
        bias: ``complete``: one per partition of the output axes, so that diagonals have their own; ``reduced``: one
            per tensor (and fixed cell), as in the official code; ``none``.
        budget_gib: the most memory that one layer's coefficients and their gradients may take, GiB.
    """

    theta: Literal["full", "role_shared", "low_rank"] = "full"
    rank: int = 16
    diagonal_writes: bool = True
    neighbours_only: bool = False
    drop_redundant: bool = True
    aggregation: Literal["mean", "sum"] = "mean"
    bias: Literal["complete", "reduced", "none"] = "complete"
    budget_gib: float = 4.0

    def __post_init__(self) -> None:
        if self.theta == "low_rank" and (self.neighbours_only or self.rank < 1):
            raise ValueError(
                f"theta='low_rank' needs rank >= 1 (got {self.rank}) and mixes all tensors: set neighbours_only=False"
            )

    @property
    def drops(self) -> bool:
        return self.drop_redundant and self.theta != "low_rank"


@dataclass(frozen=True)
class Source:
    """A reduction of one bundle."""

    bundle: int
    reduction: Reduction


@dataclass(frozen=True)
class Sink:
    """A port of one bundle."""

    bundle: int
    port: Port


@dataclass(frozen=True)
class Exchange:
    """All terms with one key; ``allowed [source slots, sink slots]`` marks those in the basis, None: all of them."""

    key: Key
    sources: tuple[Source, ...]
    sinks: tuple[Sink, ...]
    allowed: np.ndarray | None


def exchanges(layout: Layout, options: BasisOptions) -> tuple[Exchange, ...]:
    """The exchanges of a layer, smallest key first.

    Raises:
        BasisTooLargeError: before any enumeration, if the budget is exceeded.
    """
    sources: dict[Key, list[Source]] = {}
    sinks: dict[Key, list[Sink]] = {}
    for number, bundle in enumerate(layout.bundles):
        for reduction in reductions(bundle.labels):
            key = key_of(bundle.labels, reduction.blocks, reduction.kept)
            sources.setdefault(key, []).append(Source(number, reduction))
        for port in ports(bundle.labels):
            if port.on_diagonal and not options.diagonal_writes:
                continue
            if options.drops and is_redundant(_labels(bundle, port), (), (), layout.sizes):
                continue
            sinks.setdefault(key_of(bundle.labels, port.blocks, port.connected), []).append(Sink(number, port))
    near = neighbours(layout.spec) if options.neighbours_only else None
    out = []
    for key in sorted(sinks, key=lambda k: (len(k), k)):
        exchange = _exchange(layout, key, sources[key], sinks[key], options.drops, near)
        if exchange.allowed is None or exchange.allowed.any() or not key:
            out.append(exchange)
    return tuple(out)


def _labels(bundle: Bundle, side: Port | Reduction) -> Key:
    return key_of(bundle.labels, side.blocks, tuple(range(len(side.blocks))))


def _exchange(
    layout: Layout,
    key: Key,
    sources: list[Source],
    sinks: list[Sink],
    drops: bool,
    near: Mapping[str, frozenset[str]] | None,
) -> Exchange:
    rows = []
    for source in sources:
        bundle_in = layout.bundles[source.bundle]
        row = []
        for sink in sinks:
            bundle_out = layout.bundles[sink.bundle]
            block = np.ones((bundle_in.slots, bundle_out.slots), dtype=bool)
            out_labels, in_labels = _labels(bundle_out, sink.port), _labels(bundle_in, source.reduction)
            if drops and is_redundant(out_labels, in_labels, key, layout.sizes):
                block[:] = False
            elif near is not None:
                block = _close(bundle_in, bundle_out, near)
            row.append(block)
        rows.append(row)
    allowed: np.ndarray = np.block(rows)
    return Exchange(key, tuple(sources), tuple(sinks), None if allowed.all() else allowed)


def _close(into: Bundle, out: Bundle, near: Mapping[str, frozenset[str]]) -> np.ndarray:
    """Which slots of two bundles belong to neighbouring tensors, ``[slots of into, slots of out]``."""
    pairs = np.array([[a.tensor.name in near[b.tensor.name] for b in out.members] for a in into.members])
    return pairs.repeat([a.cells for a in into.members], axis=0).repeat([b.cells for b in out.members], axis=1)


# -- counting, from labels alone --------------------------------------------------------------------------------------


def count_terms(layout: Layout, options: BasisOptions, output: str, input: str) -> int:
    """Number of terms for one pair of tensors: |B| = Π_a Bell(c_a(output) + c_a(input)) in the full basis."""
    if options.neighbours_only and input not in neighbours(layout.spec)[output]:
        return 0
    return _count(layout, options, _key(layout, output), _key(layout, input))


def count_table(layout: Layout, options: BasisOptions) -> np.ndarray:
    """Terms of every pair, ``[output tensors, input tensors]``, int64, in the order of the spec."""
    names = [t.name for t in layout.spec.tensors]
    keys = [_key(layout, name) for name in names]
    near = neighbours(layout.spec) if options.neighbours_only else None
    table = np.zeros((len(names), len(names)), dtype=np.int64)
    known = {pair: _count(layout, options, *pair) for pair in product(set(keys), repeat=2)}
    for i, j in np.ndindex(table.shape):
        if near is None or names[j] in near[names[i]]:
            table[i, j] = known[keys[i], keys[j]]
    return table


def _key(layout: Layout, name: str) -> Key:
    return tuple(sorted(a for a in layout.spec.tensor[name].axes if a in layout.permuted))


def _count(layout: Layout, options: BasisOptions, out_key: Key, in_key: Key) -> int:
    sizes = layout.sizes if options.drops else None
    if options.diagonal_writes:
        return count_partitions(out_key + in_key, sizes)
    # without diagonal writes output axes stay apart: give each its own block, then let input blocks join any of them
    total = 0
    for port in ports(out_key):
        if port.on_diagonal:
            continue
        key = key_of(out_key, port.blocks, port.connected)
        for reduction in reductions(in_key):
            if key_of(in_key, reduction.blocks, reduction.kept) == key:
                blocks = key_of(in_key, reduction.blocks, tuple(range(len(reduction.blocks))))
                total += sizes is None or not is_redundant(out_key, blocks, key, sizes)
    return total


def check_budget(layout: Layout, options: BasisOptions, c_in: int, c_out: int) -> int:
    """Values in the matrices of a layer, from labels alone.

    The matrices of ``role_shared`` and of ``neighbours_only`` are as large as those of the full basis when they are
    used, however few coefficients they have; ``low_rank`` has only its factors.

    Raises:
        BasisTooLargeError: if matrices and gradients, float32, exceed ``options.budget_gib``.
    """
    total = _low_rank_values(layout, options, c_in, c_out) if options.theta == "low_rank" else 0
    worst, where = -1, ("", "", 0)
    for out, into in product(layout.bundles, repeat=2):
        terms = count_partitions(out.labels + into.labels, layout.sizes if options.drops else None)
        if options.theta != "low_rank":
            total += terms * out.slots * into.slots * c_in * c_out
        largest_out = max(out.members, key=lambda m: m.cells)
        largest_in = max(into.members, key=lambda m: m.cells)
        cost = terms * largest_out.cells * largest_in.cells * c_in * c_out
        if cost > worst:
            worst, where = cost, (largest_out.tensor.name, largest_in.tensor.name, terms)
    gib = total * 8 / 2**30
    if gib > options.budget_gib:
        name_out, name_in, terms = where
        way_out = f"a rank below {options.rank}" if options.theta == "low_rank" else "theta='low_rank'"
        raise BasisTooLargeError(
            f"a UNF layer {c_in} → {c_out} for this spec needs {total:,} coefficients, {gib:.2g} GiB with gradients; "
            f"the budget is {options.budget_gib:g} GiB. The largest pair is {name_out!r} ← {name_in!r}: {terms} terms, "
            f"{worst:,} coefficients in the full basis. Use {way_out}, fewer channels, or long fixed axes treated as "
            "permuted with position encodings"
        )
    return total


def _low_rank_values(layout: Layout, options: BasisOptions, c_in: int, c_out: int) -> int:
    rows, columns = Counter[Key](), Counter[Key]()
    for bundle in layout.bundles:
        for reduction in reductions(bundle.labels):
            rows[key_of(bundle.labels, reduction.blocks, reduction.kept)] += bundle.slots * c_in
        for port in ports(bundle.labels):
            columns[key_of(bundle.labels, port.blocks, port.connected)] += bundle.slots * c_out
    return sum(min(options.rank * (rows[key] + n), rows[key] * n) for key, n in columns.items())
