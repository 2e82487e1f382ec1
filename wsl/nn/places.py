"""Which tensors of different architectures play the same part, so that statistics of one serve the others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from wsl.spec import WeightSpec


def lined_up(specs: Sequence[WeightSpec]) -> bool:
    """Whether the specs have the same virtual tensors at the same places of a row (and differ in activations only)."""

    def layout(spec: WeightSpec) -> tuple[object, ...]:
        return tuple((t.name, t.offset, t.shape, t.strides) for t in spec.tensors)

    return len({layout(spec) for spec in specs}) == 1


def slots_of(specs: Sequence[WeightSpec]) -> tuple[str, ...]:
    """The parts that tensors of these specs play, in order of first appearance (see :func:`slot_names`)."""
    by_name = named_alike(specs)
    return tuple(dict.fromkeys(name for spec in specs for name in slot_names(spec, by_name)))


def named_alike(specs: Sequence[WeightSpec]) -> bool:
    """Whether the specs have tensors of the same names, in the same order."""
    return len({tuple(t.name for t in spec.tensors) for spec in specs}) == 1


@lru_cache(maxsize=65536)
def slot_names(spec: WeightSpec, by_name: bool) -> tuple[str, ...]:
    """The part that each virtual tensor of a spec plays.

    Args:
        by_name: each name is a part of its own: specs with the same tensors. Else a part is the role (weight, bias, …)
            together with the layer's place, counted from both ends: "first" reads an input group, "last" writes an
            output group, "hidden" is all between; a layer that does both is "first". So networks of any depth have the
            same few parts.
    """
    if by_name:
        return tuple(t.name for t in spec.tensors)
    ends: dict[str, set[str]] = {t.name: set() for t in spec.tensors}
    for connection in spec.connections:
        source, target = (spec.label[spec.group[g].label].kind for g in (connection.source, connection.target))
        for name in connection.tensors.values():
            ends[name] |= {"first"} if source == "input" else {"last"} if target == "output" else set()
    return tuple(f"{min(ends[t.name], default='hidden')} {t.role}" for t in spec.tensors)
