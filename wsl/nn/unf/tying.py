"""Which coefficients are one and the same: an index of units for every exchange that is not simply dense."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wsl.nn.unf.basis import BasisOptions, Exchange, Sink, Source
from wsl.nn.unf.layout import Layout, Member
from wsl.nn.unf.partitions import Blocks
from wsl.nn.unf.roles import Place, roles, same_block

#: per (source slot, sink slot) the unit, −1 for none, and how many terms of that sink slot share it
Ties = tuple[np.ndarray, np.ndarray]
#: roles of output and input, relation of their blocks, partition of their own axes
TermKey = tuple[str, str, str, str]


def tie(layout: Layout, plan: tuple[Exchange, ...], options: BasisOptions) -> tuple[list[Ties | None], int]:
    """Ties of every exchange (None: a dense matrix of its own) and the number of units."""
    if options.theta == "role_shared":
        return _tie_roles(layout, plan)
    out: list[Ties | None] = []
    units = 0
    for exchange in plan:
        if exchange.allowed is None:
            out.append(None)
            continue
        index = np.full(exchange.allowed.shape, -1, dtype=np.int64)
        count = int(exchange.allowed.sum())
        index[exchange.allowed] = units + np.arange(count)
        out.append((index, np.ones(index.shape)))
        units += count
    return out, units


def _tie_roles(layout: Layout, plan: tuple[Exchange, ...]) -> tuple[list[Ties | None], int]:
    """One unit per (roles of output and input, same block or not, partition of their own axes, fixed cells)."""
    role_of = roles(layout.spec)
    shape_of: dict[TermKey, tuple[int, int]] = {}
    terms: list[list[tuple[TermKey, slice, slice]]] = []
    for exchange in plan:
        found: list[tuple[TermKey, slice, slice]] = []
        for source, into, rows in _members(layout, exchange.sources):
            for sink, out, columns in _members(layout, exchange.sinks):
                if exchange.allowed is not None and not exchange.allowed[rows.start, columns.start]:
                    continue
                (role_out, place_out), (role_in, place_in) = role_of[out.tensor.name], role_of[into.tensor.name]
                key = (role_out, role_in, _relation(place_out, place_in), _partition(sink, out, source, into))
                shape_of[key] = (into.cells, out.cells)
                found.append((key, rows, columns))
        terms.append(found)
    first, units = {}, 0
    for key in sorted(shape_of):  # sorted by contents: a deeper spec with the same roles has the same units
        first[key] = units
        units += shape_of[key][0] * shape_of[key][1]
    ties: list[Ties | None] = []
    for exchange, found in zip(plan, terms, strict=True):
        slots = [sum(layout.bundles[s.bundle].slots for s in side) for side in (exchange.sources, exchange.sinks)]
        index = np.full(slots, -1, dtype=np.int64)
        for key, rows, columns in found:
            n_in, n_out = shape_of[key]
            index[rows, columns] = first[key] + np.arange(n_in * n_out).reshape(n_in, n_out)
        ties.append((index, _multiplicity(index)))
    return ties, units


def _relation(a: Place, b: Place) -> str:
    return "same" if same_block(a, b) else "other"


def _multiplicity(index: np.ndarray) -> np.ndarray:
    """How often each entry occurs in its column, float64."""
    out = np.ones(index.shape)
    for column in range(index.shape[1]):
        _, inverse, counts = np.unique(index[:, column], return_inverse=True, return_counts=True)
        out[:, column] = counts[inverse]
    return out


def _members(
    layout: Layout, side: tuple[Source, ...] | tuple[Sink, ...]
) -> Iterator[tuple[Source | Sink, Member, slice]]:
    """(end, tensor, its slots within the exchange)."""
    start = 0
    for end in side:
        for member in layout.bundles[end.bundle].members:
            yield end, member, slice(start + member.slots.start, start + member.slots.stop)
        start += layout.bundles[end.bundle].slots


def _partition(sink: Sink | Source, out: Member, source: Sink | Source, into: Member) -> str:
    """The term's partition in the tensors' own axes, so that it does not depend on the names of labels."""
    assert isinstance(sink, Sink) and isinstance(source, Source)
    out_blocks = _own_axes(sink.port.blocks, out)
    in_blocks = _own_axes(source.reduction.blocks, into)
    matched = dict(zip(sink.port.connected, source.reduction.kept, strict=True))
    blocks = [(out_blocks[o], in_blocks[i]) for o, i in matched.items()]
    blocks += [(block, ()) for o, block in enumerate(out_blocks) if o not in matched]
    blocks += [((), block) for i, block in enumerate(in_blocks) if i not in matched.values()]
    return repr(sorted(blocks))


def _own_axes(blocks: Blocks, member: Member) -> list[tuple[int, ...]]:
    return [tuple(sorted(member.order[axis] for axis in block)) for block in blocks]


def tie_biases(layout: Layout, plan: tuple[Exchange, ...], options: BasisOptions) -> tuple[np.ndarray, int]:
    """Index of bias units over the sink slots of the exchange without labels (−1: no bias), and their number."""
    role_of = roles(layout.spec)
    keys: list[tuple[str, str, int] | None] = []
    (plain,) = [exchange for exchange in plan if not exchange.key]
    for number, (sink, out, _) in enumerate(_members(layout, plain.sinks)):
        assert isinstance(sink, Sink)
        if options.bias == "none" or (options.bias == "reduced" and sink.port.on_diagonal):
            keys += [None] * out.cells
            continue
        shared = options.theta == "role_shared"
        name = role_of[out.tensor.name][0] if shared else f"{number:09d}"
        blocks = repr(sorted(_own_axes(sink.port.blocks, out)))
        keys += [(name, blocks, cell) for cell in range(out.cells)]
    number_of = {key: i for i, key in enumerate(sorted({key for key in keys if key is not None}))}
    return np.array([-1 if key is None else number_of[key] for key in keys], dtype=np.int64), len(number_of)
