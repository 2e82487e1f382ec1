"""What the networks of a zoo look like, in the few words of a card or a figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from wsl.spec import WeightSpec

LONGEST = 44  # letters of an architecture's widths
WEIGHTLESS = ("pool", "skip", "concat", "slice", "upsample", "memory")


def widths(spec: WeightSpec) -> str:
    """Neurons of the groups that weights lead to, in the order of execution: ``2-32-32-1``.

    The parts of a layer that permute apart are summed up with a plus: ``3-8-(4+12)-10``.
    """
    found: list[tuple[str, list[int]]] = []
    for group in spec.groups:
        incoming = [c for c in spec.incoming(group.name) if c.source != c.target]
        if incoming and all(c.kind in WEIGHTLESS for c in incoming):
            continue
        key = _layer(spec, group.name)
        if found and key and found[-1][0] == key:
            found[-1][1].append(spec.size_of(group.name))
        else:
            found.append((key, [spec.size_of(group.name)]))
    text = "-".join(str(s[0]) if len(s) == 1 else f"({'+'.join(map(str, s))})" for _, s in found)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _layer(spec: WeightSpec, group: str) -> str:
    """The stored tensor whose parts lead to the group; empty if there is none."""
    for connection in spec.incoming(group):
        for name in connection.tensors.values():
            offset = spec.tensor[name].offset
            return next(s.name for s in reversed(spec.stored) if s.offset <= offset)
    return ""


def depth(spec: WeightSpec) -> int:
    """Layers with weights on the longest way from an input to an output."""
    deepest: dict[str, int] = {}
    for group in spec.groups:
        ways = [
            deepest.get(c.source, 0) + (c.kind not in WEIGHTLESS and c.kind != "norm" and bool(c.tensors))
            for c in spec.incoming(group.name)
            if c.source != c.target
        ]
        deepest[group.name] = max(ways, default=0)
    return max(deepest.values(), default=0)


def activations(spec: WeightSpec) -> tuple[str, ...]:
    """Of the hidden groups that weights lead to, each once."""
    hidden = (
        group.activation
        for group in spec.groups
        if spec.label[group.label].kind == "hidden" and any(c.kind not in WEIGHTLESS for c in spec.incoming(group.name))
    )
    return tuple(dict.fromkeys(hidden))


def kinds(spec: WeightSpec) -> tuple[str, ...]:
    """Kinds of connections that hold weights."""
    return tuple(dict.fromkeys(c.kind for c in spec.connections if c.tensors))


def counted(values: Iterable[str], most: int = 8) -> str:
    """Each value with how often it occurs, the most frequent first."""
    counts = Counter(values).most_common()
    shown = ", ".join(f"{value} {count:,}" for value, count in counts[:most])
    return shown + (f" and {len(counts) - most} more" if len(counts) > most else "")
