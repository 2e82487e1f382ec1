"""Stored tensors cut into virtual tensors: one for each combination of cells of their axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from wsl.spec import StoredTensor, VirtualTensor
from wsl.trace.axes import Axis, Cell, Leaf, cells
from wsl.trace.exponents import Key
from wsl.trace.network import Part
from wsl.trace.values import Dim, Trace


class Range(NamedTuple):
    """Positions start … stop of an axis."""

    start: int
    stop: int


@dataclass(frozen=True)
class Piece:
    """A virtual tensor and the range of each stored axis that it covers."""

    tensor: VirtualTensor
    ranges: tuple[Range, ...]


class _Step(NamedTuple):
    label: str
    size: int
    stride: int
    exponent: int
    plain: bool  # fixed, and neither input nor output: may merge with its neighbour


def cut(
    trace: Trace,
    stored: StoredTensor,
    role: str,
    label_of: Callable[[Axis, int], str],
    exponent: Callable[[Axis, Key], int],
) -> list[Piece]:
    """The virtual tensors of a stored one, in the order of their positions."""
    value = trace.parameters[stored.name]
    strides = [math.prod(stored.shape[k + 1 :]) for k in range(len(stored.shape))]
    per_axis = [_cells(dim) for dim in value.dims]
    found = []
    for combination in itertools.product(*per_axis):
        offset, steps, ranges = stored.offset, [], []
        for axis, (cell, size) in enumerate(combination):
            offset += cell.offset * strides[axis]
            ranges.append(Range(cell.offset, cell.offset + size))
            slot = value.dims[axis][0].slot
            for leaf in cell.leaves:
                key = Key(slot.power, leaf.offset, leaf.stride)
                plain = bool(leaf.axis.reason) and not leaf.axis.kinds and leaf.axis.size > 1
                power = exponent(leaf.axis, key)
                steps.append(_Step("", leaf.axis.size, leaf.stride * strides[axis], power, plain))
                if not plain:
                    steps[-1] = steps[-1]._replace(label=label_of(leaf.axis, leaf.axis.size))
        steps = [
            s if s.label else s._replace(label=label_of(Axis(s.size, reason="fixed"), s.size)) for s in _merged(steps)
        ]
        whole = all(r == (0, n) for r, n in zip(ranges, stored.shape, strict=True))
        name = (
            stored.name
            if whole
            else f"{stored.name}[{','.join(_written(r, n) for r, n in zip(ranges, stored.shape, strict=True))}]"
        )
        tensor = VirtualTensor(
            name,
            role,
            offset,
            tuple(s.size for s in steps),
            tuple(s.stride for s in steps),
            tuple(s.label for s in steps),
            tuple(s.exponent for s in steps),
        )
        found.append(Piece(tensor, tuple(ranges)))
    return sorted(found, key=lambda p: p.tensor.offset)


def _cells(dim: Dim) -> list[tuple[Cell, int]]:
    """Cells of a stored axis with their lengths; neighbouring fixed ones (positions) count as one."""
    (factor,) = dim  # a stored axis is one factor
    out: list[tuple[Cell, int]] = []
    for cell in cells(factor.axis):
        size = math.prod(x.axis.size for x in cell.leaves)
        if out and _plain(cell) and _plain(out[-1][0]):
            before, length = out[-1]
            joined = Axis(length + size, reason="fixed")
            out[-1] = (Cell(before.offset, (Leaf(joined, before.offset, 1),)), length + size)
        else:
            out.append((cell, size))
    return out


def _plain(cell: Cell) -> bool:
    """A fixed run of consecutive positions that are neither input nor output."""
    size = math.prod(x.axis.size for x in cell.leaves)
    together = bool(cell.leaves) and cell.leaves[0].stride * cell.leaves[0].axis.size == size
    return together and all(x.axis.reason and not x.axis.kinds for x in cell.leaves)


def _merged(steps: Sequence[_Step]) -> list[_Step]:
    """Neighbouring fixed axes (kernel height and width, pixel row and column) as one."""
    out: list[_Step] = []
    for step in steps:
        if step.plain and out and out[-1].plain and out[-1].stride == step.size * step.stride:
            out[-1] = out[-1]._replace(size=out[-1].size * step.size, stride=step.stride)
        else:
            out.append(step)
    return out


def _written(r: Range, size: int) -> str:
    return ":" if r == (0, size) else f"{r.start}:{r.stop}"


def used(trace: Trace, part: Part) -> dict[str, dict[int, Range]]:
    """Stored tensors that a part reads: name → axis → range; a value of no stored tensor gives nothing."""
    found: dict[str, dict[int, Range]] = {name: {} for name in part.value.tensors}
    for dim in part.value.dims:
        for name, axis, span in _spans(trace, dim):
            found.setdefault(name, {})[axis] = span
    return found


def _spans(trace: Trace, dim: Dim) -> list[tuple[str, int, Range]]:
    owners = {trace.owner.get(f.slot.power) for f in dim}
    owner = owners.pop() if len(owners) == 1 else None
    if owner is None or not dim:
        return []
    inner = min(f.slot.stride for f in dim)
    start = min(f.slot.offset for f in dim)
    size = math.prod(f.size for f in dim)
    return [(owner[0], owner[1], Range(start, start + size))] if inner == 1 else []


def restricted(trace: Trace, part: Part, target: tuple[Range, int] | None, source: tuple[Range, int] | None) -> dict:
    """As :func:`used`, with the target's and the source's dimension narrowed to a range of so many channels."""
    found = used(trace, part)
    for at, wanted in ((part.target, target), (part.source, source)):
        if at is None or wanted is None or at >= len(part.value.dims):
            continue
        span, channels = wanted
        for name, axis, whole in _spans(trace, part.value.dims[at]):
            ratio = (whole.stop - whole.start) // max(channels, 1)
            if ratio:
                found[name][axis] = Range(whole.start + span.start * ratio, whole.start + span.stop * ratio)
    return found


def overlapping(pieces: Sequence[Piece], ranges: Mapping[int, Range]) -> list[str]:
    """Names of the virtual tensors that meet the given ranges."""
    return [
        p.tensor.name
        for p in pieces
        if all(p.ranges[a].start < r.stop and r.start < p.ranges[a].stop for a, r in ranges.items())
    ]
