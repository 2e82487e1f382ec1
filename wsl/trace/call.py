"""One operation of a traced graph, with its arguments by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wsl.trace.network import Part
from wsl.trace.values import Dim, Trace, Value, fixed_dim


@dataclass(frozen=True)
class Call:
    """``op`` is the operator's name without overload; ``shapes`` are those of its outputs; ``path`` its module."""

    op: str
    args: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    path: str

    def __getitem__(self, name: str) -> Any:
        return self.args.get(name)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[0]

    @property
    def values(self) -> list[Value]:
        """All tensor arguments, those inside lists too."""
        found: list[Value] = []
        for arg in self.args.values():
            found += [a for a in (arg if isinstance(arg, list | tuple) else [arg]) if isinstance(a, Value)]
        return found

    def resized(self, dims: tuple[Dim, ...], start: int, reason: str) -> tuple[Dim, ...]:
        """Dimensions from ``start`` on replaced by fixed ones of the output's sizes."""
        return dims[:start] + tuple(fixed_dim(n, reason) for n in self.shape[start:])


def unknown(trace: Trace, call: Call, reason: str = "") -> tuple[Value, ...]:
    """An operation without a rule: freezes all that enters; its outputs are fixed."""
    trace.freeze(call.values, f"enters {reason or call.op + ', which has no rule'}")
    return opaque(trace, call)


def opaque(trace: Trace, call: Call) -> tuple[Value, ...]:
    """Outputs of fixed dimensions, in a node of their own unless they depend on neither inputs nor parameters."""
    outputs = []
    for shape in call.shapes:
        value = Value(tuple(fixed_dim(n, f"comes from {call.op}") for n in shape), constant=True)
        if any(not v.constant for v in call.values):
            value = record(trace, call, value, value.dims[-1] if value.dims else ())
        outputs.append(value)
    return tuple(outputs)


def record(trace: Trace, call: Call, value: Value, channel: Dim) -> Value:
    """The value in a new node that an ``unknown`` edge from each argument enters."""
    node = trace.network.add(call.path, channel)
    parts = {v.tensors[0]: Part(v) for v in call.values if v.tensors}
    for source in call.values:
        if source.node is not None:
            trace.network.connect(source, node, "unknown", parts, {"op": call.op})
            parts = {}
    if parts:
        trace.network.connect(Value((), node=node), node, "parameter", parts, {"op": call.op})
    return trace.with_node(value, node)
