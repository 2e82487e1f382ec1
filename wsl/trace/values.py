"""What flows through a traced graph: values whose dimensions know their neurons, and the facts collected on the way.

A value's dimension is a product of *factors*; a factor is an axis (which neurons) and a *slot* (how it scales). Slots
name unknown exponents: "multiplying neuron i by d multiplies this value by d to the power p". Every operation states
linear equations between exponents; :mod:`wsl.trace.exponents` solves them for each label.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

from wsl.trace.axes import Axis, align, concat, freeze, frozen, narrow, product, split, unify
from wsl.trace.network import Network

BOTH = ("scaling", "sign")


class Slot(NamedTuple):
    """Exponents of ``power`` at positions offset + i·stride; power −1 is that of a fixed axis, always 0."""

    power: int
    offset: int = 0
    stride: int = 1


class Factor(NamedTuple):
    """Neurons of a dimension, and their exponents."""

    axis: Axis
    slot: Slot

    @property
    def size(self) -> int:
        return self.axis.size


Dim = tuple[Factor, ...]  # slowest first; factors of length 1 may be left out


@dataclass(frozen=True)
class Value:
    """A tensor of the traced graph.

    ``node`` is the neuron group that holds it (None for parameters and constants), ``scale`` a factor not yet applied
    to that group's values, ``constant`` whether neither inputs nor parameters enter it.
    """

    dims: tuple[Dim, ...]
    node: int | None = None
    scale: float = 1.0
    tensors: tuple[str, ...] = ()
    constant: bool = False
    zero: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(size_of(dim) for dim in self.dims)


@dataclass(frozen=True)
class Stack:
    """Values stacked along dimension ``dim``: fused projections viewed as (3, …) before they are taken apart."""

    dim: int
    pieces: tuple[Value, ...]


class Equation(NamedTuple):
    """Σ coefficient · exponent = 0 for every leaf of ``scope``, in the analyses named by ``modes``."""

    scope: Axis
    terms: tuple[tuple[int, Slot], ...]
    modes: tuple[str, ...]


def size_of(dim: Iterable[Factor]) -> int:
    """Length of a dimension."""
    return math.prod(f.size for f in dim)


def axis_of(dim: Dim) -> Axis:
    """A dimension as one axis."""
    return product([f.axis for f in dim])


def rows(value: Value, dim: int, start: int, length: int) -> Value | None:
    """Positions start … start + length of a dimension that is one factor, such as one gate of a fused tensor."""
    if len(value.dims[dim]) != 1:
        return None
    (factor,) = value.dims[dim]
    axis = narrow(factor.axis, start, length)
    if axis is None:
        return None
    slot = Slot(factor.slot.power, factor.slot.offset + start * factor.slot.stride, factor.slot.stride)
    return replace(value, dims=(*value.dims[:dim], (Factor(axis, slot),), *value.dims[dim + 1 :]))


def fixed_dim(size: int, reason: str, kind: str = "") -> Dim:
    """A dimension that is not permuted."""
    return (Factor(frozen(size, reason, kind), Slot(-1)),)


class Segments(NamedTuple):
    """A fused axis: ``outer`` blocks, each cut at the same borders."""

    outer: int
    borders: tuple[int, ...]


@dataclass
class Trace:
    """Facts about one network: its stored axes, exponent equations, neuron groups, and what was frozen."""

    parameters: dict[str, Value] = field(default_factory=dict)
    owner: dict[int, tuple[str, int]] = field(default_factory=dict)  # power → stored tensor and its axis
    equations: list[Equation] = field(default_factory=list)
    network: Network = field(default_factory=Network)
    first_dims: list[Dim] = field(default_factory=list)  # of the model's inputs: their batch, as a rule
    segments: dict[tuple[str, int], Segments] = field(default_factory=dict)  # stored axes known to be fused
    _powers: int = 0

    def slot(self) -> Slot:
        """A new unknown exponent."""
        self._powers += 1
        return Slot(self._powers)

    # -- statements about neurons and exponents -----------------------------------------------------------------------

    def pairs(self, a: Dim, b: Dim) -> list[tuple[Axis, Slot, Slot]]:
        """Permute two dimensions alike; the pieces that correspond, with the slots of both."""
        if len(a) == len(b) == 1 and a[0].size == b[0].size == 1:
            unify(a[0].axis, b[0].axis)
            return []
        matched = align([f.axis for f in a], [f.axis for f in b])
        out, done_a, done_b = [], [1] * len(a), [1] * len(b)
        for axis, i, j in reversed(matched or []):
            out.append((axis, _inner(a[i].slot, done_a[i]), _inner(b[j].slot, done_b[j])))
            done_a[i] *= axis.size
            done_b[j] *= axis.size
        return out[::-1]

    def same(self, a: Dim, b: Dim) -> None:
        """Equal neurons, equal exponents."""
        for axis, x, y in self.pairs(a, b):
            self.equate(axis, ((1, x), (-1, y)))

    def cancel(self, a: Dim, b: Dim) -> None:
        """Equal neurons, exponents that sum to 0: two dimensions contracted with one another."""
        for axis, x, y in self.pairs(a, b):
            self.equate(axis, ((1, x), (1, y)))

    def multiplied(self, a: Dim, b: Dim, sign: int = 1) -> Dim:
        """The dimension of a product (of a quotient: sign −1): equal neurons, exponents add."""
        out = []
        for axis, x, y in self.pairs(a, b):
            out.append(Factor(axis, self.slot()))
            self.equate(axis, ((1, out[-1].slot), (-1, x), (-sign, y)))
        if size_of(a) == 1:
            return a
        return tuple(out) if size_of(out) == size_of(a) else fixed_dim(size_of(a), "does not fit its factor")

    def neutral(self, dims: Iterable[Dim], modes: tuple[str, ...] = BOTH) -> None:
        """Exponent 0: an operation that scaling (or a sign) does not pass."""
        for dim in dims:
            for factor in dim:
                self.equate(factor.axis, ((1, factor.slot),), modes)

    def equate(self, scope: Axis, terms: Sequence[tuple[int, Slot]], modes: tuple[str, ...] = BOTH) -> None:
        """State an equation."""
        self.equations.append(Equation(scope, tuple(terms), modes))

    def derived(self, dim: Dim) -> Dim:
        """The same neurons with exponents of their own."""
        return tuple(Factor(f.axis, self.slot()) for f in dim)

    def freeze(self, values: Iterable[Value], reason: str) -> None:
        """Nothing that these values range over is permuted or scaled."""
        for value in values:
            for dim in value.dims:
                for factor in dim:
                    freeze(factor.axis, reason)

    def regroup(self, dim: Dim, sizes: Sequence[int]) -> tuple[Dim, ...] | None:
        """The dimension cut into dimensions of these sizes (a reshape), or None where its neurons do not allow it."""
        factors = list(dim)
        out: list[Dim] = []
        for size in reversed(sizes):
            taken: list[Factor] = []
            while (need := size // max(size_of(taken), 1)) > 1:
                if not factors:
                    return None
                factor = factors.pop()
                if factor.size > need:
                    cut = split(factor.axis, (factor.size // need, need)) if factor.size % need == 0 else None
                    if cut is None:
                        return None
                    factors.append(Factor(cut[0], _inner(factor.slot, need)))
                    factor = Factor(cut[1], factor.slot)
                taken.insert(0, factor)
            if size_of(taken) != size:
                return None
            out.insert(0, tuple(taken))
        return None if any(f.size != 1 for f in factors) else tuple(out)

    def cut(self, dim: Dim, sizes: Sequence[int], reason: str) -> tuple[Dim, ...]:
        """As :meth:`regroup`, but a dimension that does not fit is frozen."""
        found = self.regroup(dim, sizes)
        if found is not None:
            return found
        for factor in dim:
            freeze(factor.axis, reason)
        return tuple(fixed_dim(size, reason) for size in sizes)

    # -- stored tensors and groups ------------------------------------------------------------------------------------

    def add_parameter(self, name: str, shape: Sequence[int]) -> Value:
        """A stored tensor with a fresh axis per dimension, cut where an earlier pass saw it taken apart."""
        dims: list[Dim] = []
        for axis, size in enumerate(shape):
            slot = self.slot()
            self.owner[slot.power] = (name, axis)
            dims.append((Factor(_fresh(size, self.segments.get((name, axis))), slot),))
        self.parameters[name] = Value(tuple(dims), tensors=(name,))
        return self.parameters[name]

    def settle_input(self, value: Value, channels: Dim) -> None:
        """An input's channels are the dimension that its first reader takes for them."""
        node = self.network.nodes.get(-1 if value.node is None else value.node)
        if node is not None and node.role == "input" and not self.network.out_of(value.node or 0):
            node.dim = channels

    def with_node(self, value: Value, node: int) -> Value:
        """The value as held by a node of its own."""
        return replace(value, node=node, scale=1.0, tensors=(), constant=False, zero=False)


def collapse(trace: Trace, stack: Stack) -> Value:
    """The stack as one value: all pieces tied, the stacking dimension fixed."""
    first = stack.pieces[0]
    for other in stack.pieces[1:]:
        for a, b in zip(first.dims, other.dims, strict=True):
            trace.same(a, b)
    dims = list(first.dims)
    dims.insert(stack.dim, fixed_dim(len(stack.pieces), "numbers stacked values"))
    return replace(first, dims=tuple(dims))


def _inner(slot: Slot, step: int) -> Slot:
    return Slot(slot.power, slot.offset, slot.stride * step)


def _fresh(size: int, cut: Segments | None) -> Axis:
    if cut is None:
        return Axis(size, reason="length 1" if size == 1 else "")
    ends = [0, *cut.borders, size // cut.outer]
    fused = concat([Axis(b - a, reason="length 1" if b - a == 1 else "") for a, b in pairwise(ends)])
    return fused if cut.outer == 1 else product((Axis(cut.outer), fused))
