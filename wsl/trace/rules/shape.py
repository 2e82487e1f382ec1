"""Rules that rearrange: reshape, transpose, split, concatenate, pad, reduce. Neurons keep what they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from wsl.trace.axes import Axis, concat, freeze, narrow
from wsl.trace.call import Call, record, unknown
from wsl.trace.rules.conv import channelwise
from wsl.trace.values import Dim, Factor, Segments, Slot, Stack, Trace, Value, axis_of, fixed_dim, size_of


def view(trace: Trace, call: Call) -> Value | Stack:
    """A reshape: dimensions are regrouped where their factors allow it, else frozen."""
    x = call["self"] if call["self"] is not None else call["input"]
    return reshape(trace, x, call.shape)


def reshape(trace: Trace, x: Value, shape: Sequence[int]) -> Value | Stack:
    """The value in another shape; a stack where a fused axis is cut into its pieces."""
    out: list[Dim] = []
    stacked: tuple[int, int, list[list[Dim]]] | None = None
    for old, new in _blocks(x.shape, shape):
        factors = tuple(f for dim in x.dims[slice(*old)] for f in dim)
        sizes = tuple(shape[slice(*new)])
        found = trace.regroup(factors, sizes)
        if found is None and stacked is None:
            stacked = _stack(trace, factors, sizes, new[0])
            found = ((),) * len(sizes) if stacked else None
        if found is None:
            for factor in factors:
                freeze(factor.axis, "reshaped across neuron boundaries")
            found = tuple(fixed_dim(size, "reshaped across neuron boundaries") for size in sizes)
        out += found
    if stacked is None:
        return replace(x, dims=tuple(out))
    position, number, pieces = stacked
    values = []
    for i, piece_dims in enumerate(pieces):
        dims = [*out[:position], *piece_dims, *out[position + len(piece_dims) :]]
        value = replace(x, dims=tuple(d for k, d in enumerate(dims) if k != number))
        values.append(_piece_node(trace, value, i, len(pieces)))
    return Stack(number, tuple(values))


def _piece_node(trace: Trace, value: Value, number: int, pieces: int) -> Value:
    """The i-th of equally long pieces of a fused projection in a node of its own."""
    if value.node is None:
        return value
    whole = trace.network.nodes[value.node]
    length = size_of(whole.dim) // pieces
    axis = narrow(whole.dim[0].axis, number * length, length) if len(whole.dim) == 1 else None
    if axis is None:
        return value
    slot = whole.dim[0].slot
    channel = (Factor(axis, Slot(slot.power, slot.offset + number * length * slot.stride, slot.stride)),)
    node = trace.network.add(f"{whole.name}.{number}", channel)
    trace.network.connect(value, node, "skip", source_start=number * length, length=length)
    return trace.with_node(value, node)


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The smallest runs of old and new dimensions with equal products."""
    out, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        a, b = i, j
        left = old[i] if i < len(old) else 1
        right = new[j] if j < len(new) else 1
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while left != right:
            if left < right:
                left *= old[i]
                i += 1
            else:
                right *= new[j]
                j += 1
        out.append(((a, i), (b, j)))
    return out


def _stack(trace: Trace, factors: Dim, sizes: tuple[int, ...], first: int) -> tuple[int, int, list[list[Dim]]] | None:
    """A concat cut into (k, …): k values, each with the remaining dimensions.

    Returns:
        Position of the block, position of the stacking dimension, and the block's dimensions for each piece.
    """
    for number, k in enumerate(sizes):
        inner = math.prod(sizes[number + 1 :])
        split = _before(trace, factors, math.prod(sizes[:number]))
        if k == 1 or split is None or len(split[1]) != 1:
            continue
        head, (fused,) = split
        axes = [narrow(fused.axis, i * inner, inner) for i in range(k)] if fused.axis.root.how == "concat" else []
        outer = trace.regroup(head, sizes[:number])
        if not axes or outer is None or any(axis is None for axis in axes):
            continue
        pieces: list[list[Dim]] = []
        for i, axis in enumerate(axes):
            slot = Slot(fused.slot.power, fused.slot.offset + i * inner * fused.slot.stride, fused.slot.stride)
            rest = trace.regroup((Factor(axis, slot),), sizes[number + 1 :])  # type: ignore[arg-type]
            if rest is None:
                return None
            pieces.append([*outer, (), *rest])
        return first, first + number, pieces
    return None


def _before(trace: Trace, factors: Dim, size: int) -> tuple[Dim, Dim] | None:
    for k in range(len(factors) + 1):
        if size_of(factors[:k]) == size:
            return factors[:k], factors[k:]
    return None


def transpose(trace: Trace, call: Call) -> Value:
    """Dimensions in another order."""
    x = call["self"]
    order = list(range(len(x.dims)))
    if call.op == "permute":
        order = [d % len(order) for d in call["dims"]]
    elif call.op == "t":
        order = order[::-1]
    else:
        a, b = call["dim0"] % len(order), call["dim1"] % len(order)
        order[a], order[b] = b, a
    return replace(x, dims=tuple(x.dims[d] for d in order))


def expand(trace: Trace, call: Call) -> Value:
    """Length-1 dimensions repeated: fixed ones of the new length."""
    x = call["self"]
    old = ((),) * (len(call.shape) - len(x.dims)) + x.dims
    dims = tuple(d if size_of(d) == n else fixed_dim(n, "repeated") for d, n in zip(old, call.shape, strict=True))
    return replace(x, dims=dims)


def piece(trace: Trace, call: Call, x: Value, dim: int, start: int, length: int) -> Value:
    """Positions start … start + length along ``dim``."""
    factors = x.dims[dim]
    if length == size_of(factors):
        return x
    inner, head = 1, list(factors)
    while len(head) > 1 and start % (inner * head[-1].size) == 0 and length % (inner * head[-1].size) == 0:
        inner *= head.pop().size
    axis = narrow(head[0].axis, start // inner, length // inner) if len(head) == 1 and inner else None
    if axis is None:
        _fix(factors, f"taken apart by {call.op}")
        cut: Dim = fixed_dim(length, f"comes from {call.op}")
    else:
        slot = head[0].slot
        first = Factor(axis, Slot(slot.power, slot.offset + start // inner * slot.stride, slot.stride))
        cut = tuple(f for f in (first, *factors[1:]) if f.size != 1)
    out = replace(x, dims=(*x.dims[:dim], cut, *x.dims[dim + 1 :]))
    if x.node is None or not _holds(trace, x, dim):
        return out
    node = trace.network.add(call.path, cut)
    trace.network.connect(x, node, "skip", source_start=start, length=length)
    return trace.with_node(out, node)


def _holds(trace: Trace, x: Value, dim: int) -> bool:
    """Whether ``dim`` is the dimension of x that holds the channels of its node."""
    node = trace.network.nodes[x.node].dim  # type: ignore[index]
    return {id(f.axis.root) for f in node} == {id(f.axis.root) for f in x.dims[dim]}


def slice_(trace: Trace, call: Call) -> Value:
    """A range of a dimension; steps freeze it, but subsample positions."""
    x, dim, step = call["self"], call["dim"] % len(call["self"].dims), call["step"] or 1
    size = size_of(x.dims[dim])
    start = call["start"] or 0
    start = min(max(start + size, 0) if start < 0 else start, size)
    length = call.shape[dim]
    if step == 1:
        return piece(trace, call, x, dim, start, length)
    _fix(x.dims[dim], "read in steps")
    out = replace(x, dims=(*x.dims[:dim], fixed_dim(length, "read in steps"), *x.dims[dim + 1 :]))
    if x.node is None or _holds(trace, x, dim):
        return out if x.node is None else record(trace, call, out, out.dims[dim])
    node = trace.network.add(call.path, trace.network.nodes[x.node].dim)
    stride = [step if k == dim else 1 for k in range(2, len(x.dims))]
    trace.network.connect(x, node, "skip", attributes={"spatial_stride": stride})
    return trace.with_node(out, node)


def split(trace: Trace, call: Call) -> tuple[Value, ...]:
    """Consecutive ranges of a dimension."""
    x, dim = call["self"], (call["dim"] or 0) % len(call["self"].dims)
    out, start = [], 0
    for k, shape in enumerate(call.shapes):
        named = replace(call, path=f"{call.path}.{k}")
        out.append(piece(trace, named, x, dim, start, shape[dim]))
        start += shape[dim]
    return tuple(out)


def select(trace: Trace, call: Call) -> Value | tuple[Value, ...]:
    """One position of a dimension. A factor of a stored axis that is read by number is cut up in the next pass."""
    x = call["self"]
    dim = (call["dim"] or 0) % len(x.dims)
    noted(trace, x.dims[dim])
    _fix(x.dims[dim], f"read by number ({call.op})")
    out = replace(x, dims=(*x.dims[:dim], *x.dims[dim + 1 :]))
    if x.node is not None and _holds(trace, x, dim):
        out = record(trace, call, out, out.dims[-1] if out.dims else ())
    elif x.node is not None:
        step = call["index"] if call.op == "select" and len(x.dims) == 3 and dim == 1 else None
        node = trace.network.add(call.path, trace.network.nodes[x.node].dim)
        attributes = {"op": call.op} if step is None else {"step": -1 if step == x.shape[dim] - 1 else step}
        trace.network.connect(x, node, "unknown" if step is None else "skip", {}, attributes)
        out = trace.with_node(out, node)
    return (out,) * len(call.shapes) if call.op == "unbind" else out


def noted(trace: Trace, dim: Dim) -> None:
    """Remember that a factor of a stored axis numbers its pieces: the next pass cuts the axis there."""
    for factor in dim:
        name, step = trace.owner.get(factor.slot.power), factor.slot.stride
        if name is None or step == 1:
            continue
        (whole,) = trace.parameters[name[0]].dims[name[1]]
        fused_already = whole.axis.root.how == "concat"
        outer = 1 if fused_already else whole.size // (factor.size * step)
        known = trace.segments.get(name, Segments(outer, ()))
        if known.outer == outer:
            ends = {factor.slot.offset + k * step for k in range(factor.size + 1)} | set(known.borders)
            trace.segments[name] = Segments(outer, tuple(sorted(ends - {0, whole.size // outer})))


def cat(trace: Trace, call: Call) -> Value:
    """Values one after the other along a dimension; all other dimensions are tied."""
    values = call["tensors"]
    dim = (call["dim"] or 0) % len(call.shape)
    first = values[0]
    for other in values[1:]:
        for k, (a, b) in enumerate(zip(first.dims, other.dims, strict=True)):
            if k != dim:
                trace.same(a, b)
    slot, start, parts = trace.slot(), 0, []
    for value in values:
        axis = axis_of(value.dims[dim])
        length = size_of(value.dims[dim])
        place = Factor(axis, Slot(slot.power, start, 1))
        trace.same((place,) if length > 1 else (), value.dims[dim])
        parts.append(axis if length > 1 else Axis(1, reason="length 1"))
        start += length
    joined: Dim = (Factor(concat(parts), slot),) if start > 1 else ()
    out = Value((*first.dims[:dim], joined, *first.dims[dim + 1 :]), constant=all(v.constant for v in values))
    if out.constant or not any(v.node is not None or v.tensors for v in values):
        return out
    if all(v.node is None or _holds(trace, v, dim) for v in values):
        node, start = trace.network.add(call.path, joined), 0
        for value in values:
            length = size_of(value.dims[dim])
            trace.network.connect(value, node, "skip", target_start=start, length=length)
            start += length
        return trace.with_node(out, node)
    holder = next((v for v in values if v.node is not None), None)
    return record(trace, call, out, trace.network.nodes[holder.node].dim if holder else joined)


def stack(trace: Trace, call: Call) -> Stack:
    """Values along a new dimension."""
    return Stack(call["dim"] % len(call.shape), tuple(call["tensors"]))


def pad(trace: Trace, call: Call) -> Value | tuple[Value, ...]:
    """Zeros around channels are neurons of their own that nothing enters; around positions they change nothing."""
    x, amounts = call["self"] if call["self"] is not None else call["input"], call["pad"]
    if (call["mode"] or "constant") != "constant" or call["value"]:
        return unknown(trace, call)
    out, padded = list(x.dims), False
    node = x.node
    untouched = [d for d, n in zip(x.dims[1:], call.shape[1:], strict=True) if size_of(d) == n]
    if untouched:
        trace.settle_input(x, untouched[-1])
    for k in range(len(amounts) // 2):
        low, high = amounts[2 * k], amounts[2 * k + 1]
        dim = len(x.dims) - 1 - k
        if not low and not high:
            continue
        if x.node is None or not _holds(trace, x, dim):
            _fix(x.dims[dim], "padded with zeros")
            out[dim] = fixed_dim(call.shape[dim], "padded with zeros")
            continue
        axis, slot, padded = axis_of(x.dims[dim]), trace.slot(), True
        trace.same((Factor(axis, Slot(slot.power, low, 1)),), x.dims[dim])
        axis = concat([Axis(max(low, 0)), axis, Axis(max(high, 0))])
        out[dim] = (Factor(axis, slot),)
        node = trace.network.add(call.path, out[dim])
        trace.network.connect(x, node, "skip", target_start=low, length=size_of(x.dims[dim]))
    if x.node is not None and not padded:
        return record(trace, call, Value(tuple(out)), trace.network.nodes[x.node].dim)
    return replace(x, dims=tuple(out), node=node, scale=1.0 if padded else x.scale)


def reduce(trace: Trace, call: Call) -> Value:
    """Sum, mean or maximum over dimensions: neurons summed over may be permuted, not scaled."""
    x = call["self"]
    given = call["dim"]
    over = range(len(x.dims)) if given is None else given if isinstance(given, list | tuple) else [given]
    dims = {d % len(x.dims) for d in over} or set(range(len(x.dims)))
    kept = [d for k, d in enumerate(x.dims) if k not in dims]
    trace.neutral([x.dims[k] for k in dims])
    if call.op in ("amax", "amin", "logsumexp", "prod", "std", "var", "norm", "any", "all"):
        trace.neutral(kept, ("sign",) if call.op in ("amax", "amin") else ("scaling", "sign"))
    out = tuple(() if k in dims else d for k, d in enumerate(x.dims)) if call["keepdim"] else tuple(kept)
    value = replace(x, dims=out)
    if x.node is None:
        return value if x.constant else record(trace, call, value, out[-1] if out else ())
    at = next((k for k in range(len(x.dims)) if _holds(trace, x, k)), None)
    if call.op == "mean" and at is not None and at not in dims:
        return trace.with_node(value, channelwise(trace, call, x, at, "pool", {"op": "global_avg"}))
    return record(trace, call, value, out[-1] if out else ())


def flip(trace: Trace, call: Call) -> Value:
    """Positions in another order; the dimensions concerned are frozen."""
    x, dims = call["self"], list(call["self"].dims)
    for k in call["dims"] or range(len(dims)):
        _fix(dims[k], f"reordered by {call.op}")
        dims[k] = fixed_dim(size_of(dims[k]), f"reordered by {call.op}")
    value = replace(x, dims=tuple(dims))
    return value if x.node is None else record(trace, call, value, trace.network.nodes[x.node].dim)


def _fix(dim: Dim, reason: str) -> None:
    for factor in dim:
        freeze(factor.axis, reason)


RULES: dict[str, Callable[[Trace, Call], Any]] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze"), view),
    **dict.fromkeys(("permute", "transpose", "t", "swapaxes"), transpose),
    **dict.fromkeys(("expand", "expand_as"), expand),
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), split),
    **dict.fromkeys(("select", "unbind"), select),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "logsumexp", "prod", "std", "var"), reduce),
    **dict.fromkeys(("flip", "roll"), flip),
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
    "slice": slice_,
    "cat": cat,
    "concat": cat,
    "stack": stack,
}
