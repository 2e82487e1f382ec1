"""Rules for products that sum over a shared axis: linear, matmul, einsum, embedding."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

from wsl.trace.axes import freeze, leaves
from wsl.trace.call import Call, record, unknown
from wsl.trace.network import Part
from wsl.trace.values import Dim, Trace, Value, axis_of, size_of


def linear(trace: Trace, call: Call) -> Value:
    """y = x Wᵀ + b: in-axes meet, the out-axis is new; a bias allows no scale of other dimensions."""
    x, weight, bias = call["input"], call["weight"], call["bias"]
    trace.cancel(weight.dims[1], x.dims[-1])
    if bias is not None:
        trace.same(bias.dims[0], weight.dims[0])
        trace.neutral(x.dims[:-1])
    node = trace.network.add(call.path, weight.dims[0])
    connect_linear(trace, x, node, Part(weight, 0, 1), Part(bias, 0) if bias is not None else None)
    return trace.with_node(Value((*x.dims[:-1], weight.dims[0])), node)


def connect_linear(trace: Trace, x: Value, node: int, weight: Part, bias: Part | None) -> None:
    """An edge over x's last dimension, which holds the channels of its node, each perhaps with its pixels."""
    parts = {"weight": weight, "bias": bias}
    if x.zero:
        if bias is not None:
            trace.network.connect(Value((), node=node), node, "parameter", {"value": bias})
        return
    if x.node is None:
        trace.network.connect(Value((), node=node), node, "parameter", {"weight": weight, "bias": bias})
        return
    trace.settle_input(x, x.dims[-1])
    channels = trace.network.nodes[x.node].dim
    held, read = (_leaf_ids(dim) for dim in (channels, x.dims[-1]))
    if read[: len(held)] != held:
        trace.network.connect(x, node, "unknown", parts, {"op": "linear over another axis"})
        return
    attributes = {}
    if size_of(x.dims[-1]) != size_of(channels):
        attributes["spatial"] = _pixels(x.dims[-1], size_of(x.dims[-1]) // max(size_of(channels), 1))
    trace.network.connect(x, node, "linear", parts, attributes)


def _leaf_ids(dim: Dim) -> list[int]:
    return [id(leaf.axis) for leaf in leaves(axis_of(dim)) if leaf.axis.size > 1]


def _pixels(dim: Dim, number: int) -> list[int]:
    sizes: list[int] = []
    for factor in reversed(dim):
        if math.prod(sizes) * factor.size > number:
            break
        sizes.insert(0, factor.size)
    return sizes if math.prod(sizes) == number else [number]


def matmul(trace: Trace, call: Call) -> Value | tuple[Value, ...]:
    """Products of matrices, batched or not, as a contraction over the shared axis."""
    a, b = call["self"], call["other"] if call["other"] is not None else call["mat2"]
    if len(a.dims) == 0 or len(b.dims) == 0:
        return unknown(trace, call)
    left = string.ascii_lowercase[: len(a.dims)]
    if len(b.dims) == 1:
        return contract(trace, call, [a, b], [left, left[-1]], left[:-1])
    depth = len(b.dims) - 2
    batch = left[:-2][-depth:] if depth else ""
    extra = string.ascii_uppercase[: depth - len(batch)]
    right = extra + batch + left[-1] + "z"
    return contract(trace, call, [a, b], [left, right], extra + left[:-1] + "z")


def addmm(trace: Trace, call: Call) -> Value:
    """bias + x W."""
    x, weight, bias = call["mat1"], call["mat2"], call["self"]
    out = contract(trace, call, [x, weight], ["ab", "bc"], "ac")
    trace.same(bias.dims[-1], out.dims[-1])
    trace.neutral(out.dims[:-1])
    if out.node is not None and bias.tensors:
        value = {"value": Part(bias, len(bias.dims) - 1)}
        trace.network.connect(Value((), node=out.node), out.node, "parameter", value)
    return out


def einsum(trace: Trace, call: Call) -> Value | tuple[Value, ...]:
    """A contraction written out; repeated letters and ellipses have no rule."""
    equation, operands = call["equation"].replace(" ", ""), call["tensors"]
    if "." in equation or "->" not in equation:
        return unknown(trace, call)
    inputs, output = equation.split("->")
    if any(len(set(letters)) != len(letters) for letters in inputs.split(",")):
        return unknown(trace, call)
    return contract(trace, call, operands, inputs.split(","), output)


def contract(trace: Trace, call: Call, operands: Sequence[Value], letters: Sequence[str], output: str) -> Value:
    """Σ over letters absent from the output of the product of the operands (as in einsum; length 1 broadcasts)."""
    dims: dict[str, Dim] = {}
    for operand, names in zip(operands, letters, strict=True):
        for letter, dim in zip(names, operand.dims, strict=True):
            known = dims.get(letter, ())
            if size_of(dim) == 1 or size_of(known) == 1:
                dims[letter] = dim if size_of(known) == 1 else known
            else:
                dims[letter] = trace.multiplied(dims[letter], dim)
    for letter in set(dims) - set(output):
        trace.neutral([dims[letter]])
    value = Value(tuple(dims[letter] for letter in output), constant=all(o.constant for o in operands))
    if value.constant:
        return value
    if len(operands) == 2 and operands[0].node is not None and operands[1].node is None and operands[1].tensors:
        (x, weight), (names, other) = operands, letters
        kept = [i for i, letter in enumerate(other) if letter not in names]
        summed = [i for i, letter in enumerate(other) if letter not in output]
        if len(kept) == len(summed) == 1 and len(other) == 2 and names[-1] == other[summed[0]]:
            node = trace.network.add(call.path, weight.dims[kept[0]])
            connect_linear(trace, x, node, Part(weight, kept[0], summed[0]), None)
            return trace.with_node(value, node)
    return record(trace, call, value, _channels_of(trace, operands, value))


def _channels_of(trace: Trace, operands: Sequence[Value], value: Value) -> Dim:
    """Channels of a product: those of the operand whose channels end in its last dimension, heads included."""
    last = value.dims[-1] if value.dims else ()
    for operand in reversed(operands):
        if operand.node is not None and last:
            channels = trace.network.nodes[operand.node].dim
            if _leaf_ids(channels)[-len(_leaf_ids(last)) or None :] == _leaf_ids(last):
                return channels
    return last


def embedding(trace: Trace, call: Call) -> Value:
    """Rows of a table: the table's rows are the vocabulary (input neurons), or positions if numbers are constant."""
    weight, indices = call["weight"], call["indices"]
    rows, width = weight.dims
    reason, kind = ("positions", "") if indices.constant else ("vocabulary of the input", "input")
    for factor in rows:
        freeze(factor.axis, reason, kind)
    node = trace.network.add(call.path, width)
    out = trace.with_node(Value((*indices.dims, width)), node)
    if indices.constant:
        trace.network.connect(Value((), node=node), node, "parameter", {"value": Part(weight, 1)})
        return out
    tokens = indices.node
    if tokens is not None and trace.network.nodes[tokens].role == "input":
        trace.network.nodes[tokens].dim = rows
    trace.network.connect(indices, node, "embedding", {"weight": Part(weight, 1, 0)})
    return out


RULES = {
    "linear": linear,
    "matmul": matmul,
    "mm": matmul,
    "bmm": matmul,
    "addmm": addmm,
    "einsum": einsum,
    "embedding": embedding,
}
