"""Exponents of scaling and sign: the linear equations that operations stated, solved for each label.

For one label, every (tensor, axis) has an unknown integer p: a factor d on neuron i multiplies the entries of neuron i
by d^p. The network is unchanged if all equations hold. A ReLU lets a factor pass but no sign, a tanh the reverse, so
there are two systems; a label has both symmetries if one solution satisfies both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import NamedTuple

from wsl.trace.axes import Axis, leaves
from wsl.trace.values import BOTH, Equation, Factor, Slot

MAX_EXPONENT = 2
MAX_CANDIDATES = 64


class Key(NamedTuple):
    """The exponent of one leaf of one axis: its power, and where the leaf lies on that axis."""

    power: int
    offset: int
    stride: int


Row = dict[Key, Fraction]


class Solution(NamedTuple):
    """Symmetries of a label and the exponents with which they act (absent: 0)."""

    symmetries: tuple[str, ...]
    exponents: Mapping[Key, int]


def keys_of(factor: Factor) -> list[tuple[Axis, Key]]:
    """The leaves of a factor with the keys of their exponents."""
    return [(leaf.axis, _key(factor.slot, leaf.offset, leaf.stride)) for leaf in leaves(factor.axis)]


def _key(slot: Slot, offset: int, stride: int) -> Key:
    return Key(slot.power, slot.offset + offset * slot.stride, stride * slot.stride)


def equations_by_leaf(equations: Iterable[Equation]) -> dict[int, list[tuple[Row, tuple[str, ...]]]]:
    """Equations sorted by the leaf (its id) that they concern."""
    found: dict[int, list[tuple[Row, tuple[str, ...]]]] = {}
    for equation in equations:
        for leaf in leaves(equation.scope):
            if leaf.axis.reason:
                continue
            row: Row = {}
            for coefficient, slot in equation.terms:
                if slot.power >= 0:
                    key = _key(slot, leaf.offset, leaf.stride)
                    row[key] = row.get(key, Fraction(0)) + coefficient
            row = {k: c for k, c in row.items() if c}
            if row:
                found.setdefault(id(leaf.axis), []).append((row, equation.modes))
    return found


def solve(
    equations: Iterable[tuple[Row, tuple[str, ...]]],
    unknowns: Iterable[Key],
    rank: Callable[[Key], int],
    node_keys: Iterable[Key],
    flow: Callable[[Key], int] = lambda key: 1,
) -> Solution:
    """Exponents for one label.

    Args:
        unknowns: every key of a stored tensor on this label.
        rank: 2 for weights, whose exponent is ``flow`` where it is free; 1 for norms; 0 for what follows from others.
        flow: +1 on the out side, −1 on the in side of a weight.
        node_keys: keys of the label's neuron groups; all must come out ±1, or the neurons themselves do not scale.
    """
    equations, unknowns, nodes = list(equations), list(unknowns), list(node_keys)
    for wanted in (BOTH, ("scaling",), ("sign",)):
        rows = [row for row, modes in equations if set(modes) & set(wanted)]
        exponents = _choose(rows, unknowns, rank, nodes, flow)
        if exponents is not None:
            return Solution(wanted, exponents)
    return Solution((), {})


def _choose(
    rows: list[Row],
    unknowns: list[Key],
    rank: Callable[[Key], int],
    nodes: list[Key],
    flow: Callable[[Key], int],
) -> dict[Key, int] | None:
    pivots = _eliminate(rows, rank)
    everything = dict.fromkeys([*unknowns, *nodes, *(key for row in rows for key in row)])
    free = sorted((k for k in everything if k not in pivots), key=lambda k: (-rank(k), k))
    choices = [{k for k in free if rank(k) in r} for r in ((2,), (1,), (0,), (0, 2))] + [
        {k} for k in free[:MAX_CANDIDATES]
    ]
    for ones in choices:
        exponents: dict[Key, int] = {}
        for key in everything:
            terms = pivots[key] if key in pivots else {key: Fraction(1)}
            value = sum((c * flow(k) for k, c in terms.items() if k in ones), Fraction(0))
            if value.denominator != 1 or abs(value) > MAX_EXPONENT:
                break
            exponents[key] = int(value)
        else:
            if nodes and all(abs(exponents[k]) == 1 for k in nodes) and any(exponents[k] for k in unknowns):
                return exponents
    return None


def _eliminate(rows: list[Row], rank: Callable[[Key], int]) -> dict[Key, Row]:
    """Dependent unknown → its expression in the free ones (Gauss–Jordan on sparse rows, exact)."""
    pivots: dict[Key, Row] = {}
    used_in: dict[Key, set[Key]] = {}
    for row in rows:
        reduced: Row = {}
        for key, coefficient in row.items():
            for other, c in pivots.get(key, {key: Fraction(1)}).items():
                reduced[other] = reduced.get(other, Fraction(0)) + coefficient * c
        reduced = {k: c for k, c in reduced.items() if c}
        if not reduced:
            continue
        pivot = min(reduced, key=lambda k: (rank(k), -k.power, -k.offset))
        lead = reduced.pop(pivot)
        expression = {k: -c / lead for k, c in reduced.items()}
        for dependent in used_in.pop(pivot, set()):
            old = pivots[dependent]
            weight = old.pop(pivot, Fraction(0))
            for key, c in expression.items():
                old[key] = old.get(key, Fraction(0)) + weight * c
                used_in.setdefault(key, set()).add(dependent)
        pivots[pivot] = expression
        for key in expression:
            used_in.setdefault(key, set()).add(pivot)
    return pivots
