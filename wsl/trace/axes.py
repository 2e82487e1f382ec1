"""Structured axes: what an axis of a parameter or an activation ranges over, found by unification.

An axis is a leaf (one set of neurons), a *product* of axes (a flattened feature map: channel × pixel) or a *concat* of
axes (the three gates of a GRU, one after the other). Leaves start unknown. ``unify`` states that two axes are permuted
alike: leaves are joined, a leaf that meets a structure takes it on, two structures are cut until their pieces match.
``freeze`` states that an axis is not permuted. Freezing and unifying only ever shrink the symmetry group, so whatever
does not fit together is frozen, and an operation that nobody knows freezes what it touches.

Source: Zhou, Finn and Harrison, "Universal Neural Functionals", section 5 (the idea of analysing the graph); the
structured form is our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_SEGMENTS = 64  # an axis cut into more pieces than this is frozen: nobody permutes single channels


@dataclass(eq=False)
class Axis:
    """A leaf (no parts), or a product or concat of its parts; ``bound`` points to what a unified leaf became."""

    size: int
    how: str = "leaf"  # leaf, product or concat
    parts: tuple[Axis, ...] = ()
    reason: str = ""  # why it is frozen; empty while it may be permuted
    kinds: set[str] = field(default_factory=set)  # "input", "output": the model's own ends
    bound: Axis | None = None

    @property
    def root(self) -> Axis:
        """What the axis has become."""
        axis = self
        while axis.bound is not None:
            axis = axis.bound
        return axis


class Leaf(NamedTuple):
    """A leaf inside an axis: its neuron i sits at positions ``offset + i·stride`` (of the whole axis)."""

    axis: Axis
    offset: int
    stride: int


class Cell(NamedTuple):
    """A part of an axis that is a plain product of leaves, beginning at ``offset``."""

    offset: int
    leaves: tuple[Leaf, ...]


def frozen(size: int, reason: str, kind: str = "") -> Axis:
    """A new axis that is not permuted."""
    return Axis(size, reason=reason, kinds={kind} if kind else set())


def product(parts: Sequence[Axis]) -> Axis:
    """The product of axes, slowest first; axes of length 1 vanish."""
    flat = [leaf for part in parts for leaf in _flat(part.root, "product") if leaf.size != 1]
    if len(flat) == 1:
        return flat[0]
    if not flat:
        return parts[0].root if parts else Axis(1, reason="length 1")
    return Axis(math.prod(p.size for p in flat), "product", tuple(flat))


def concat(parts: Sequence[Axis]) -> Axis:
    """The parts one after the other."""
    flat = [leaf for part in parts for leaf in _flat(part.root, "concat") if leaf.size != 0]
    if len(flat) == 1:
        return flat[0]
    return Axis(sum(p.size for p in flat), "concat", tuple(flat))


def _flat(axis: Axis, how: str) -> list[Axis]:
    if axis.how != how:
        return [axis]
    return [leaf for part in axis.parts for leaf in _flat(part.root, how)]


def freeze(axis: Axis, reason: str, kind: str = "") -> None:
    """No part of this axis is permuted; the first reason given stays."""
    for leaf in leaves(axis):
        leaf.axis.reason = leaf.axis.reason or reason
        if kind:
            leaf.axis.kinds.add(kind)


def unify(a: Axis, b: Axis) -> None:
    """The two axes are permuted alike.

    Raises:
        ValueError: if the lengths differ.
    """
    a, b = a.root, b.root
    if a is b:
        return
    if a.size != b.size:
        raise ValueError(f"axes of length {a.size} and {b.size} cannot be permuted alike")
    if a.how == "leaf" and b.how == "leaf":
        a.bound = b
        b.reason = b.reason or a.reason
        b.kinds |= a.kinds
    elif a.how == "leaf" or b.how == "leaf":
        leaf, structure = (a, b) if a.how == "leaf" else (b, a)
        leaf.bound = structure
        if leaf.reason:
            for kind in leaf.kinds or {""}:
                freeze(structure, leaf.reason, kind)
    elif a.how == b.how == "concat":
        _unify_concats(a, b)
    elif a.how == b.how == "product":
        align(_flat(a, "product"), _flat(b, "product"))
    else:
        _unify_product_concat(a, b) if a.how == "product" else _unify_product_concat(b, a)


def align(left: Sequence[Axis], right: Sequence[Axis]) -> list[tuple[Axis, int, int]] | None:
    """Unify two products given as factors, cutting factors until they match.

    Returns:
        The common factors, slowest first, each with the index of its factor on the left and on the right; None if the
        factors cannot be matched, in which case all are frozen.
    """
    a, b = list(enumerate(left)), list(enumerate(right))
    pairs: list[tuple[Axis, int, int]] = []
    while a or b:
        while a and a[-1][1].size == 1:
            a.pop()
        while b and b[-1][1].size == 1:
            b.pop()
        if not a and not b:
            break
        (i, x), (j, y) = (a.pop() if a else (0, Axis(1))), (b.pop() if b else (0, Axis(1)))
        if x.size != y.size:
            small = min(x.size, y.size)
            big = x if x.size > y.size else y
            pieces = split(big, (big.size // small, small)) if big.size % small == 0 and small > 1 else None
            if pieces is None:
                for axis in (*left, *right):
                    freeze(axis, "reshaped across neuron boundaries")
                return None
            if big is x:
                a.append((i, pieces[0]))
                x = pieces[1]
            else:
                b.append((j, pieces[0]))
                y = pieces[1]
        unify(x, y)
        pairs.append((x, i, j))
    return pairs[::-1]


def split(axis: Axis, sizes: tuple[int, ...]) -> tuple[Axis, ...] | None:
    """The axis as a product of axes of these sizes, or None if its structure has no such factors."""
    axis = axis.root
    if axis.size != math.prod(sizes):
        return None
    if sum(s != 1 for s in sizes) <= 1:
        return tuple(axis if s != 1 else Axis(1, reason="length 1") for s in sizes)
    if axis.how == "leaf":
        parts = tuple(Axis(s, reason=axis.reason, kinds=set(axis.kinds)) for s in sizes)
        axis.bound = product(parts)
        return parts
    if axis.how == "concat":
        return None
    factors = _flat(axis, "product")
    parts_found: list[Axis] = []
    for size in reversed(sizes):
        taken: list[Axis] = []
        while math.prod(t.size for t in taken) < size and factors:
            need = size // math.prod(t.size for t in taken)
            factor = factors.pop()
            if factor.size > need:
                cut = split(factor, (factor.size // need, need)) if factor.size % need == 0 else None
                if cut is None:
                    return None
                factors.append(cut[0])
                factor = cut[1]
            taken.insert(0, factor)
        if math.prod(t.size for t in taken) != size:
            return None
        parts_found.insert(0, product(taken))
    return tuple(parts_found)


def narrow(axis: Axis, start: int, length: int) -> Axis | None:
    """Positions start … start + length of the axis: cuts leaves and concats; None where the structure has no cut."""
    axis = axis.root
    if length == axis.size:
        return axis
    if axis.how == "leaf":
        sizes = [s for s in (start, length, axis.size - start - length) if s]
        parts = tuple(Axis(s, reason=axis.reason, kinds=set(axis.kinds)) for s in sizes)
        axis.bound = concat(parts)
        return parts[1 if start else 0]
    if axis.how == "product":
        head, tail = axis.parts[0].root, product(axis.parts[1:])
        if start % tail.size or length % tail.size:
            return None
        cut = narrow(head, start // tail.size, length // tail.size)
        return None if cut is None else product((cut, tail))
    pieces, position = [], 0
    for part in _flat(axis, "concat"):
        low, high = max(start, position), min(start + length, position + part.size)
        if low < high:
            piece = narrow(part, low - position, high - low)
            if piece is None:
                return None
            pieces.append(piece)
        position += part.size
    return concat(pieces)


def _unify_concats(a: Axis, b: Axis) -> None:
    borders: set[int] = set()
    for axis in (a, b):
        position = 0
        for part in _flat(axis, "concat"):
            position += part.size
            borders.add(position)
    if len(borders) > MAX_SEGMENTS:
        freeze(a, "cut into too many pieces")
        freeze(b, "cut into too many pieces")
        return
    start = 0
    for border in sorted(borders):
        x, y = narrow(a, start, border - start), narrow(b, start, border - start)
        if x is None or y is None:
            freeze(a, "concatenated across neuron boundaries")
            freeze(b, "concatenated across neuron boundaries")
            return
        unify(x, y)
        start = border


def _unify_product_concat(a: Axis, b: Axis) -> None:
    """A product of a short fixed axis with the rest is a concat of equal pieces; anything else is frozen."""
    head, tail = a.parts[0].root, product(a.parts[1:])
    if head.size <= MAX_SEGMENTS:
        pieces = [narrow(b, i * tail.size, tail.size) for i in range(head.size)]
        if all(p is not None for p in pieces):
            freeze(head, "numbers the pieces of a concatenation")
            for piece in pieces:
                unify(piece, tail)  # type: ignore[arg-type]
            return
    freeze(a, "reshaped across neuron boundaries")
    freeze(b, "reshaped across neuron boundaries")


def leaves(axis: Axis) -> list[Leaf]:
    """All leaves of an axis, each where it lies."""
    axis = axis.root
    if axis.how == "leaf":
        return [Leaf(axis, 0, 1)]
    found, after, position = [], axis.size, 0
    for part in axis.parts:
        if axis.how == "product":
            after //= part.size
            found += [Leaf(x.axis, x.offset * after, x.stride * after) for x in leaves(part)]
        else:
            found += [Leaf(x.axis, x.offset + position, x.stride) for x in leaves(part)]
            position += part.size
    return found


def cells(axis: Axis) -> list[Cell]:
    """The axis cut into plain products of leaves, in order of their positions."""
    axis = axis.root
    if axis.how == "leaf":
        return [Cell(0, (Leaf(axis, 0, 1),))]
    if axis.how == "concat":
        found, position = [], 0
        for part in axis.parts:
            found += [_moved(cell, position, 1) for cell in cells(part)]
            position += part.size
        return found
    found, after = [Cell(0, ())], axis.size
    for part in axis.parts:
        after //= part.size
        inner = [_moved(cell, 0, after) for cell in cells(part)]
        found = [Cell(f.offset + c.offset, f.leaves + c.leaves) for f in found for c in inner]
    return found


def _moved(cell: Cell, shift: int, factor: int) -> Cell:
    moved = (Leaf(x.axis, x.offset * factor + shift, x.stride * factor) for x in cell.leaves)
    return Cell(cell.offset * factor + shift, tuple(moved))
