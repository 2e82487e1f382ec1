"""Stacks: what a fused projection viewed as (3, heads, channels) is until its three parts are taken apart.

Reordering and selecting act on the pieces one by one; anything else first ties them into one value.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wsl.trace.call import Call
from wsl.trace.rules.shape import reshape, transpose
from wsl.trace.values import Stack, Trace, Value, collapse

_COPIES = {"clone", "contiguous", "detach", "alias", "dropout"}
_VIEWS = {"view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "flatten", "unflatten"}


def apply_to_stack(trace: Trace, call: Call) -> Any:
    """The result of an operation on a stack that keeps its pieces apart, or None if there is no such way."""
    stack = call["self"] if call["self"] is not None else call["input"]
    if not isinstance(stack, Stack) or any(isinstance(p, Stack) for p in stack.pieces):
        return None
    number, rank = len(stack.pieces), len(stack.pieces[0].dims) + 1
    if call.op in _COPIES:
        return stack
    if call.op in ("permute", "transpose", "t"):
        return _transposed(trace, call, stack, rank)
    if call.op in ("select", "unbind", "split", "split_with_sizes", "chunk", "slice"):
        if (call["dim"] or 0) % rank != stack.dim:
            return None
        if call.op == "select":
            return stack.pieces[call["index"] % number]
        if call.op == "unbind":
            return stack.pieces
        if call.op != "slice" and len(call.shapes) == number:
            return tuple(_with_one(piece, stack.dim) for piece in stack.pieces)
        return None
    if call.op in _VIEWS:
        return _viewed(trace, call, stack)
    return None


def _with_one(piece: Value, dim: int) -> Value:
    return replace(piece, dims=(*piece.dims[:dim], (), *piece.dims[dim:]))


def _transposed(trace: Trace, call: Call, stack: Stack, rank: int) -> Stack:
    order = list(range(rank))
    if call.op == "permute":
        order = [d % rank for d in call["dims"]]
    elif call.op == "t":
        order = order[::-1]
    else:
        a, b = call["dim0"] % rank, call["dim1"] % rank
        order[a], order[b] = b, a
    target = order.index(stack.dim)
    rest = [d - (d > stack.dim) for d in order if d != stack.dim]
    moved = [transpose(trace, Call("permute", {"self": p, "dims": rest}, (), call.path)) for p in stack.pieces]
    return Stack(target, tuple(moved))


def _viewed(trace: Trace, call: Call, stack: Stack) -> Stack | None:
    """The stacking dimension must stay a dimension of its own, after equally many values."""
    old = list(stack.pieces[0].shape)
    before = 1
    for size in old[: stack.dim]:
        before *= size
    done = 1
    for position, size in enumerate(call.shape):
        if done == before and size == len(stack.pieces):
            shape = [*call.shape[:position], *call.shape[position + 1 :]]
            pieces = tuple(reshape(trace, piece, shape) for piece in stack.pieces)
            return Stack(position, pieces) if all(isinstance(p, Value) for p in pieces) else None  # type: ignore[arg-type]
        done *= size
    return None


def settled(trace: Trace, argument: Any) -> Any:
    """The argument with every stack collapsed."""
    if isinstance(argument, Stack):
        return collapse(trace, replace(argument, pieces=tuple(settled(trace, p) for p in argument.pieces)))
    if isinstance(argument, list | tuple):
        return [settled(trace, a) for a in argument]
    return argument
