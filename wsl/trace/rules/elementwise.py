"""Rules for operations on single entries: activations, sums, products. Permutations pass all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from wsl.activations import SYMMETRIES_OF_ACTIVATION
from wsl.trace.axes import Axis
from wsl.trace.call import Call, record, unknown
from wsl.trace.network import Part
from wsl.trace.rules.shape import piece
from wsl.trace.values import BOTH, Dim, Factor, Trace, Value, fixed_dim, size_of

Rule = Callable[[Trace, Call], Any]


def activation(name: str) -> Rule:
    """The rule of an activation function of wsl.activations."""

    def rule(trace: Trace, call: Call) -> Value:
        x = call["self"] if call["self"] is not None else call["input"]
        chosen, parameters = _parameters(name, call)
        allowed = SYMMETRIES_OF_ACTIVATION[chosen]
        trace.neutral(x.dims, tuple(mode for mode in BOTH if mode not in allowed))
        if x.node is None:
            return x if x.constant else _lone(trace, call, x)
        if chosen == "sine":
            parameters["omega"], x = x.scale, Value(x.dims, x.node)
        node = trace.network.add(call.path, trace.network.nodes[x.node].dim, chosen, **parameters)
        trace.network.connect(x, node, "skip")
        return trace.with_node(x, node)

    return rule


def _parameters(name: str, call: Call) -> tuple[str, dict[str, float]]:
    if name == "leaky_relu":
        return name, {"slope": float(call["negative_slope"])}
    if name == "elu":
        plain = call["scale"] in (None, 1) and call["input_scale"] in (None, 1)
        return ("elu", {"alpha": float(call["alpha"])}) if plain else ("unknown", {})
    if name == "gelu":
        return ("gelu_tanh" if call["approximate"] == "tanh" else "gelu"), {}
    if name == "hardtanh":
        low, high = call["min_val"], call["max_val"]
        return {(-1, 1): "hardtanh", (0, 6): "relu6"}.get((low, high), "unknown"), {}
    if name == "softplus" and (call["beta"], call["threshold"]) != (1, 20):
        return "unknown", {}
    return name, {}


def _lone(trace: Trace, call: Call, x: Value) -> Value:
    """A function of parameters alone, such as a softplus that keeps one positive."""
    return record(trace, call, x, x.dims[-1] if x.dims else ())


def same(trace: Trace, call: Call) -> Value:
    """Dropout in eval mode, copies, casts."""
    if call["train"] or (call["dtype"] is not None and not call["dtype"].is_floating_point):
        return unknown(trace, call)[0]
    return call["self"] if call["self"] is not None else call["input"]


def add(trace: Trace, call: Call) -> Value:
    """Sums tie: residual connections. A constant added to neurons allows no factor on them."""
    a, b = call["self"], call["other"]
    factor = 1.0 if call["alpha"] is None else float(call["alpha"])
    factor = factor if call.op == "add" else -factor
    if call.op == "rsub":
        a, b = b, a
    if not isinstance(a, Value):
        return _shifted(trace, call, replace(b, scale=b.scale * factor), a)
    if not isinstance(b, Value):
        return _shifted(trace, call, a, factor * b)
    if isinstance(b, Value) and b.node is not None:
        b = Value(b.dims, b.node, b.scale * factor)
    dims = broadcast(trace, call, a, b, trace.same, tied=True)
    if a.constant and b.constant:
        return Value(dims, constant=True)
    wide = max((v for v in (a, b) if v.node is not None), key=lambda v: (len(v.dims), -_is_table(v)), default=None)
    if wide is None:
        return record(trace, call, Value(dims), dims[-1] if dims else ())
    channel = trace.network.nodes[wide.node].dim  # type: ignore[index]
    node = trace.network.add(call.path, channel)
    for value in (a, b):
        if value.node is None:
            parts = {"value": Part(value, len(value.dims) - 1)} if value.tensors else {}
            trace.network.connect(Value((), node=node), node, "parameter", parts)
        else:
            trace.network.connect(value, node, "skip" if value.dims else "unknown")
    return trace.with_node(Value(dims), node)


def _is_table(value: Value) -> int:
    return 0 if value.node is not None else 1


def _shifted(trace: Trace, call: Call, x: Value, shift: float) -> Value:
    if x.node is None or shift == 0:
        trace.neutral(x.dims if shift else ())
        return x
    trace.neutral(x.dims)
    node = trace.network.add(call.path, trace.network.nodes[x.node].dim, offset=float(shift))
    trace.network.connect(x, node, "skip")
    return trace.with_node(x, node)


def mul(trace: Trace, call: Call) -> Value:
    """Products: exponents add (gates), quotients subtract; a number is kept as the scale of what follows."""
    a, b = call["self"], call["other"]
    quotient = call.op == "div"
    if call["rounding_mode"]:
        return unknown(trace, call)[0]
    if not isinstance(a, Value) or not isinstance(b, Value):
        x, number = (a, b) if isinstance(a, Value) else (b, a)
        if (quotient and x is b) or isinstance(number, complex):
            return elementwise(trace, call)
        if x.node is None:
            return Value(x.dims, tensors=x.tensors if number == 1 else (), constant=x.constant, zero=x.zero)
        return Value(x.dims, x.node, x.scale * (1 / number if quotient else number))
    dims = broadcast(trace, call, a, b, lambda x, y: trace.multiplied(x, y, -1 if quotient else 1), tied=False)
    if a.constant and b.constant:
        return Value(dims, constant=True)
    holder = next((v for v in (a, b) if v.node is not None), None)
    if holder is None or quotient:
        return record(trace, call, Value(dims), dims[-1] if dims else ())
    channel = trace.network.nodes[holder.node].dim  # type: ignore[index]
    matching = [d for d in dims if size_of(d) == size_of(channel)]
    node = trace.network.add(call.path, matching[-1] if matching else channel)
    for value, other in ((a, b), (b, a)):
        if value.node is not None:
            parts = {"value": Part(other, *[_widest(other)] * 2)} if other.node is None and other.tensors else {}
            trace.network.connect(value, node, "multiply", parts)
    return trace.with_node(Value(dims), node)


def _widest(value: Value) -> int | None:
    sizes = value.shape
    return max(range(len(sizes)), key=lambda k: sizes[k]) if sizes else None


def broadcast(trace: Trace, call: Call, a: Value, b: Value, join: Callable, tied: bool) -> tuple[Dim, ...]:
    """Dimensions of two operands lined up from the right; ``join`` states what holds where both have one.

    Where ``tied`` (a sum), an operand that is repeated along a dimension allows no factor on it.
    """
    rank = max(len(a.dims), len(b.dims))
    left = ((),) * (rank - len(a.dims)) + a.dims
    right = ((),) * (rank - len(b.dims)) + b.dims
    out: list[Dim] = []
    for x, y in zip(left, right, strict=True):
        if (size_of(x) == 1) == (size_of(y) == 1) and x and y:
            joined = join(x, y)
            out.append(x if joined is None else joined)
        else:
            wide = y if size_of(x) == 1 else x
            if tied and not (a.zero if wide is y else b.zero):
                trace.neutral((wide,))
            out.append(wide or x or y)
    return tuple(out)


def elementwise(trace: Trace, call: Call) -> Value:
    """Any other function of single entries: permutations pass, factors and signs do not."""
    values = call.values
    for value in values:
        trace.neutral(value.dims)
    dims = values[0].dims
    for other in values[1:]:
        dims = broadcast(trace, call, Value(dims), other, lambda x, y: trace.pairs(x, y) and None, tied=False)
    result = Value(dims, constant=all(v.constant for v in values))
    if result.constant:
        return result
    held = [v for v in values if v.node is not None]
    channel = trace.network.nodes[held[0].node].dim if held else (dims[-1] if dims else ())  # type: ignore[index]
    return record(trace, call, result, channel)


def negative(trace: Trace, call: Call) -> Value:
    """A sign that is kept as the scale of what follows."""
    return mul(trace, Call("mul", {"self": call["self"], "other": -1.0}, call.shapes, call.path))


def glu(trace: Trace, call: Call) -> Value:
    """First half · sigmoid(second half)."""
    x, dim = call["self"], call["dim"] % len(call["self"].dims)
    half = size_of(x.dims[dim]) // 2
    first, second = (piece(trace, call, x, dim, start, half) for start in (0, half))
    gate = activation("sigmoid")(trace, Call("sigmoid", {"self": second}, call.shapes, f"{call.path}.gate"))
    return mul(trace, Call("mul", {"self": first, "other": gate}, call.shapes, call.path))


def softmax(trace: Trace, call: Call) -> Value:
    """Equivariant to permutations; a factor or sign changes it."""
    x = call["self"]
    trace.neutral(x.dims)
    if x.node is None:
        return x
    channel = trace.network.nodes[x.node].dim
    over_channels = size_of(x.dims[call["dim"]]) == size_of(channel) and call.op == "softmax"
    node = trace.network.add(call.path, channel, "softmax" if over_channels else "unknown")
    trace.network.connect(x, node, "skip")
    return trace.with_node(x, node)


def prelu(trace: Trace, call: Call) -> Value:
    """max(x, 0) + a · min(x, 0) with learned a: positive factors pass, a itself is not scaled."""
    x, weight = call["self"], call["weight"]
    trace.neutral(x.dims, ("sign",))
    trace.neutral(weight.dims)
    if size_of(weight.dims[0]) > 1:
        trace.pairs(weight.dims[0], x.dims[1])
    channel = trace.network.nodes[x.node].dim if x.node is not None else x.dims[1]
    return record(trace, call, x, channel)


def filled(trace: Trace, call: Call) -> Value:
    """zeros, ones, arange, …: fixed numbers; zeros look alike under any permutation and factor."""
    zero = call.op.startswith(("zeros", "new_zeros")) or (call.op.startswith("full") and call["fill_value"] == 0)
    if zero:
        dims: tuple[Dim, ...] = tuple((Factor(Axis(n), trace.slot()),) for n in call.shape)
    else:
        dims = tuple(fixed_dim(n, "a constant of the network") for n in call.shape)
    return Value(dims, constant=True, zero=zero)


_ACTIVATIONS = ("relu", "leaky_relu", "tanh", "sigmoid", "silu", "gelu", "elu", "softplus", "hardtanh", "relu6")
_ENTRYWISE = """
    exp log log1p expm1 sqrt rsqrt abs pow cos tan asin atan sinh cosh erf reciprocal mish hardswish hardsigmoid selu
    celu softsign softshrink hardshrink tanhshrink threshold log_sigmoid clamp clamp_min clamp_max round floor ceil sign
    minimum maximum gt lt ge le eq ne where masked_fill logical_and logical_or logical_not square atan2
"""
_COPIES = "dropout feature_dropout alpha_dropout clone contiguous detach alias to _to_copy lift_fresh_copy positive"
_FILLED = "zeros ones full arange zeros_like ones_like full_like new_zeros new_ones new_full empty eye scalar_tensor"

RULES: dict[str, Rule] = {
    **{name: activation(name) for name in _ACTIVATIONS},
    **dict.fromkeys(_ENTRYWISE.split(), elementwise),
    **dict.fromkeys(_COPIES.split(), same),
    **dict.fromkeys(_FILLED.split(), filled),
    **dict.fromkeys(("add", "sub", "rsub"), add),
    **dict.fromkeys(("mul", "div"), mul),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax"), softmax),
    "sin": activation("sine"),
    "glu": glu,
    "prelu": prelu,
    "neg": negative,
}
