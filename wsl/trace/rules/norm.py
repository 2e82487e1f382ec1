"""Rules for normalisation layers.

A norm over neurons mixes them: permutations pass, factors do not. Batch norm in eval mode acts per channel, affinely:
γ (x − μ) / √(v + ε) + β. A factor d on x is undone exactly by d on μ and 1/d on γ; scaling the variance by d² would
not be exact, because of ε.
"""

from __future__ import annotations

from wsl.trace.call import Call, unknown
from wsl.trace.network import Part
from wsl.trace.values import Dim, Trace, Value, fixed_dim, size_of


def batch_norm(trace: Trace, call: Call) -> Value:
    """γ (x − μ) / √(v + ε) + β per channel, with stored μ and v."""
    x, gamma, beta = call["input"], call["weight"], call["bias"]
    mean, var, at = call["running_mean"], call["running_var"], 1
    if call["training"] or mean is None or var is None:
        return unknown(trace, call)[0]
    channel = x.dims[at]
    trace.same(mean.dims[0], channel)
    trace.pairs(var.dims[0], channel)
    trace.neutral(var.dims)
    trace.neutral((*x.dims[:at], *x.dims[at + 1 :]))
    out = _affine(trace, channel, gamma, beta)
    parts = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    return _normed(trace, call, x, at, out, parts, {"norm": "batch", "eps": call["eps"]})


def layer_norm(trace: Trace, call: Call) -> Value:
    """Over the last dimensions: no factor and no sign passes, since the mean is subtracted."""
    x, gamma, beta = call["input"], call["weight"], call["bias"]
    first = len(x.dims) - len(call["normalized_shape"])
    trace.neutral(x.dims)
    dims = list(x.dims)
    for k, at in enumerate(range(first, len(dims))):
        out = trace.derived(dims[at]) if gamma is not None or beta is not None else dims[at]
        dims[at] = out
        for tensor in (gamma, beta):
            if tensor is not None:
                trace.same(tensor.dims[k], out)
    parts = {"gamma": gamma, "beta": beta}
    value = Value((*x.dims[:-1], dims[-1])) if first == len(dims) - 1 else Value(tuple(dims))
    return _normed(trace, call, x, len(dims) - 1, value.dims[-1], parts, {"norm": "layer", "eps": call["eps"]}, value)


def rms_norm(trace: Trace, call: Call) -> Value | tuple[Value, ...]:
    """x / √(mean x² + ε) · γ: a sign of one neuron passes, a factor does not."""
    x, gamma = call["input"], call["weight"]
    if len(call["normalized_shape"]) != 1:
        return unknown(trace, call)
    trace.neutral(x.dims, ("scaling",))
    trace.neutral(x.dims[:-1])
    out = trace.multiplied(x.dims[-1], gamma.dims[0]) if gamma is not None else x.dims[-1]
    attributes = {"norm": "rms", "eps": call["eps"] if call["eps"] is not None else 1.1920928955078125e-07}
    return _normed(trace, call, x, len(x.dims) - 1, out, {"gamma": gamma}, attributes)


def group_norm(trace: Trace, call: Call) -> Value:
    """Channels are a product (group, channel of the group)."""
    x, gamma, beta, groups = call["input"], call["weight"], call["bias"], call["num_groups"]
    trace.neutral(x.dims)
    n = size_of(x.dims[1])
    group, inner = trace.cut(x.dims[1], (groups, n // groups), "does not fit the groups of a norm")
    out = _affine(trace, (*group, *inner), gamma, beta)
    attributes = {"norm": "group", "eps": call["eps"], "groups": groups}
    return _normed(trace, call, x, 1, out, {"gamma": gamma, "beta": beta}, attributes)


def instance_norm(trace: Trace, call: Call) -> Value | tuple[Value, ...]:
    """Each channel by its own statistics, which undo its factor only up to ε."""
    x, gamma, beta = call["input"], call["weight"], call["bias"]
    if not call["use_input_stats"]:
        return unknown(trace, call)
    trace.neutral(x.dims)
    out = _affine(trace, x.dims[1], gamma, beta)
    attributes = {"norm": "instance", "eps": call["eps"]}
    return _normed(trace, call, x, 1, out, {"gamma": gamma, "beta": beta}, attributes)


def _affine(trace: Trace, channel: Dim, gamma: Value | None, beta: Value | None) -> Dim:
    """Channels after · γ + β."""
    out = trace.multiplied(channel, gamma.dims[0]) if gamma is not None else channel
    if beta is not None:
        trace.same(beta.dims[0], out)
    return out


def _normed(
    trace: Trace,
    call: Call,
    x: Value,
    at: int,
    channel: Dim,
    tensors: dict[str, Value | None],
    attributes: dict,
    value: Value | None = None,
) -> Value:
    trace.settle_input(x, x.dims[at])
    node = trace.network.add(call.path, channel)
    whole = x.node is not None and size_of(trace.network.nodes[x.node].dim) == size_of(x.dims[at])
    parts = {name: Part(t, len(t.dims) - 1, len(t.dims) - 1) for name, t in tensors.items() if t is not None}
    trace.network.connect(x, node, "norm" if whole else "unknown", parts, attributes)
    dims = (*x.dims[:at], channel, *x.dims[at + 1 :])
    return trace.with_node(value or Value(dims), node)


def native_batch_norm(trace: Trace, call: Call) -> tuple[Value, ...]:
    """The form that functional graphs hold: the batch statistics it returns as well are empty in eval mode."""
    out = batch_norm(trace, call)
    return (out, *(Value(tuple(fixed_dim(n, "empty") for n in s), constant=True) for s in call.shapes[1:]))


RULES = {
    "batch_norm": batch_norm,
    "_native_batch_norm_legit_no_training": native_batch_norm,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
}
