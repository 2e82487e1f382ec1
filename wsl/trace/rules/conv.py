"""Rules for convolution, pooling and resampling: channels are neurons, kernel cells and pixels are fixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from wsl.trace.axes import freeze
from wsl.trace.call import Call, unknown
from wsl.trace.network import Part
from wsl.trace.values import Dim, Trace, Value, size_of


def convolution(trace: Trace, call: Call) -> Value:
    """Groups make channels a product (group, channel); depthwise is one channel per group, tied in to out."""
    x, weight, bias, groups = call["input"], call["weight"], call["bias"], call["groups"] or 1
    transposed = "transpose" in call.op
    rank = len(weight.dims) - 2
    at = len(x.dims) - rank - 1
    trace.settle_input(x, x.dims[at])
    for dim in weight.dims[2:]:
        _fix(dim, "kernel cells")
    for dim in x.dims[at + 1 :]:
        _fix(dim, "positions that a kernel slides over")
    n_in = size_of(x.dims[at])
    x_group, x_in = _grouped(trace, x.dims[at], groups)
    w_group, w_first = _grouped(trace, weight.dims[0], groups)
    w_in, w_out = (w_first, weight.dims[1]) if transposed else (weight.dims[1], w_first)
    trace.cancel(w_in, x_in)
    channel = trace.multiplied(w_group, x_group) + w_out
    if bias is not None:
        trace.same(bias.dims[0], channel)
        trace.neutral(x.dims[:at])
    node = trace.network.add(call.path, channel)
    depthwise = groups == n_in == size_of(channel) and groups > 1
    parts = {
        "weight": Part(weight, *((1, 0) if transposed else (0, 1))),
        "bias": Part(bias, 0) if bias is not None else None,
    }
    if depthwise:
        parts["weight"] = Part(weight, 0, 0)
    attributes = _conv_attributes(call, rank, 1 if depthwise else groups, transposed)
    attributes["kernel"] = list(weight.shape[2:])
    trace.network.connect(x, node, "depthwise" if depthwise else "conv", parts, attributes)
    return trace.with_node(Value(call.resized((*x.dims[:at], channel), at + 1, "positions of a feature map")), node)


def _grouped(trace: Trace, channels: Dim, groups: int) -> tuple[Dim, Dim]:
    """Channels as (group, channel of the group)."""
    if groups == 1:
        return (), channels
    sizes = (groups, size_of(channels) // groups)
    group, inner = trace.cut(channels, sizes, "does not fit the groups of a convolution")
    return group, inner


def _conv_attributes(call: Call, rank: int, groups: int, transposed: bool) -> dict[str, Any]:
    padding = call["padding"]
    if padding == "valid":
        padding = 0
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(each(call["dilation"], rank), call["weight"].shape[2:], strict=True)]
        padding = [t // 2 for t in total] if all(t % 2 == 0 for t in total) else "same"
    attributes: dict[str, Any] = {
        "stride": each(call["stride"], rank),
        "padding": padding if padding == "same" else each(padding, rank),
        "dilation": each(call["dilation"], rank),
    }
    if groups > 1:
        attributes["groups"] = groups
    if transposed:
        attributes |= {"transposed": True, "output_padding": each(call["output_padding"], rank)}
    return attributes


def pool(trace: Trace, call: Call) -> Value | tuple[Value, ...]:
    """Per channel; the maximum does not pass a sign."""
    x, rank = call["self"], int(call.op.split("pool")[1][0])
    at = len(x.dims) - rank - 1
    for dim in x.dims[at + 1 :]:
        _fix(dim, "positions that are pooled")
    operation = ("adaptive_" if "adaptive" in call.op else "") + ("max" if "max" in call.op else "avg")
    if "max" in operation:
        trace.neutral(x.dims[: at + 1], ("sign",))
    attributes: dict[str, Any] = {"op": operation}
    if "adaptive" in operation:
        attributes["size"] = each(call["output_size"], rank)
        if set(attributes["size"]) == {1} and operation == "adaptive_avg":
            attributes = {"op": "global_avg"}
    else:
        attributes["kernel"] = each(call["kernel_size"], rank)
        attributes["stride"] = each(call["stride"], rank) if call["stride"] else attributes["kernel"]
        attributes["padding"] = each(call["padding"], rank)
        attributes |= {"ceil": True} if call["ceil_mode"] else {}
        attributes |= {"dilation": each(call["dilation"], rank)} if call["dilation"] else {}
        attributes |= {"count_include_pad": False} if call["count_include_pad"] is False else {}
    if call["divisor_override"]:
        return unknown(trace, call)
    node = channelwise(trace, call, x, at, "pool", attributes)
    return trace.with_node(Value(call.resized(x.dims, at + 1, "positions of a feature map")), node)


def upsample(trace: Trace, call: Call) -> Value:
    """Per channel and linear in the values."""
    x = call["input"] if call["input"] is not None else call["self"]
    for dim in x.dims[2:]:
        _fix(dim, "positions that are interpolated")
    mode = call.op.removeprefix("upsample_").split("1d")[0].split("2d")[0].split("3d")[0]
    node = channelwise(trace, call, x, 1, "upsample", {"mode": mode, "size": list(call.shape[2:])})
    return trace.with_node(Value(call.resized(x.dims, 2, "positions of a feature map")), node)


def channelwise(trace: Trace, call: Call, x: Value, at: int, kind: str, attributes: dict[str, Any]) -> int:
    """A new node over x's channels, dimension ``at``, that a channel-wise edge enters."""
    trace.settle_input(x, x.dims[at])
    whole = x.node is not None and size_of(trace.network.nodes[x.node].dim) == size_of(x.dims[at])
    node = trace.network.add(call.path, x.dims[at])
    trace.network.connect(x, node, kind if whole else "unknown", {}, attributes)
    return node


def each(value: Any, rank: int) -> list[int]:
    """One number per spatial axis."""
    found: Sequence[int] = value if isinstance(value, list | tuple) else [0 if value is None else int(value)]
    return [int(v) for v in (found if len(found) == rank else [*found] * rank)][:rank]


def _fix(dim: Dim, reason: str) -> None:
    for factor in dim:
        freeze(factor.axis, reason)


_SIZES = (1, 2, 3)
RULES: dict[str, Callable[[Trace, Call], Any]] = {
    **{f"conv{n}d": convolution for n in _SIZES},
    **{f"conv_transpose{n}d": convolution for n in _SIZES},
    **{f"{kind}_pool{n}d": pool for kind in ("max", "avg", "adaptive_avg") for n in _SIZES},
    **{f"upsample_nearest{n}d": upsample for n in _SIZES},
    "upsample_linear1d": upsample,
    "upsample_bilinear2d": upsample,
    "upsample_trilinear3d": upsample,
}
