"""Unification of structured axes."""

from __future__ import annotations

import pytest

from wsl.trace.axes import Axis, align, cells, concat, freeze, frozen, leaves, narrow, product, split, unify


def positions(axis: Axis) -> list[int]:
    """Every position that the cells of an axis cover, in the order of the cells."""
    out = []
    for cell in cells(axis):
        own = [cell.offset]
        for leaf in cell.leaves:
            own = [p + i * leaf.stride for p in own for i in range(leaf.axis.size)]
        out += own
    return out


@pytest.mark.parametrize(
    "axis",
    [
        Axis(6),
        product([Axis(2), Axis(3)]),
        concat([Axis(2), Axis(4)]),
        product([concat([Axis(2), Axis(3)]), Axis(4)]),
        product([Axis(2), concat([Axis(3), product([Axis(2), Axis(5)])])]),
    ],
)
def test_cells_cover_every_position_once(axis: Axis) -> None:
    assert sorted(positions(axis)) == list(range(axis.size))


def test_a_leaf_takes_on_the_structure_that_it_meets() -> None:
    flat, channel, pixels = Axis(12), Axis(3), frozen(4, "pixels")
    unify(flat, product([channel, pixels]))
    assert [(x.axis, x.offset, x.stride) for x in leaves(flat)] == [(channel, 0, 4), (pixels, 0, 1)]


def test_freezing_reaches_all_that_was_unified() -> None:
    a, b, c = Axis(4), Axis(4), Axis(12)
    unify(c, product([Axis(3), a]))
    unify(a, b)
    freeze(b, "because", "output")
    inner = leaves(c)[1].axis
    assert inner.reason == "because" and inner.kinds == {"output"} and not leaves(c)[0].axis.reason


def test_concats_are_cut_until_they_match() -> None:
    a, b, c, d = Axis(2), Axis(4), Axis(3), Axis(3)
    unify(concat([a, b]), concat([c, d]))
    assert [x.axis.size for x in leaves(b)] == [1, 3]
    assert leaves(c)[0].axis.root is a.root and leaves(b)[1].axis.root is d.root


def test_products_are_cut_until_they_match() -> None:
    heads, channels, flat = Axis(3), Axis(4), Axis(12)
    assert align([heads, channels], [flat]) is not None
    assert [x.axis.root for x in leaves(flat)] == [heads.root, channels.root]


def test_what_does_not_fit_is_frozen() -> None:
    a, b, c, d = Axis(2), Axis(3), Axis(3), Axis(2)
    unify(product([a, b]), product([c, d]))
    assert all(x.reason for axis in (a, b, c, d) for x in (leaf.axis for leaf in leaves(axis)))


def test_narrow_and_split() -> None:
    fused = Axis(12)
    gates = [narrow(fused, 4 * k, 4) for k in range(3)]
    assert [g.size for g in gates if g is not None] == [4, 4, 4]
    assert split(fused, (3, 4)) is None  # three different things are no product
    assert narrow(product([Axis(3), Axis(4)]), 2, 5) is None
    whole = Axis(6)
    assert [p.size for p in split(whole, (2, 3)) or ()] == [2, 3]


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="length 3 and 4"):
        unify(Axis(3), Axis(4))
