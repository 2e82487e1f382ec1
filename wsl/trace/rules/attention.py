"""Rule for scaled dot-product attention: softmax(q kᵀ · scale + mask) v over heads.

Channels of q and k meet in the product, so a factor on one is undone on the other; channels of v pass to the output;
heads permute together in all three. The scores enter a softmax, so no factor may reach them.
"""

from __future__ import annotations

import math

from wsl.trace.axes import freeze
from wsl.trace.call import Call, unknown
from wsl.trace.rules.elementwise import broadcast
from wsl.trace.values import Dim, Factor, Trace, Value, fixed_dim, size_of


def attention(trace: Trace, call: Call) -> Value | tuple[Value, ...]:
    """The mixed values; grouped queries and dropout have no rule."""
    query, key, value, mask = call["query"], call["key"], call["value"], call["attn_mask"]
    if call["enable_gqa"] or call["dropout_p"] or len(query.dims) != len(value.dims) or value.scale != 1:
        return unknown(trace, call)
    trace.cancel(query.dims[-1], key.dims[-1])
    trace.pairs(key.dims[-2], value.dims[-2])
    trace.neutral((query.dims[-2], key.dims[-2], value.dims[-2]))
    batch: list[Dim] = []
    for q, k, v in zip(query.dims[:-2], key.dims[:-2], value.dims[:-2], strict=True):
        trace.cancel(q, k)
        batch.append(_joined(trace, q, v))
    scores = Value((*query.dims[:-2], query.dims[-2], key.dims[-2]))
    if mask is not None:
        trace.neutral(mask.dims)
        broadcast(trace, call, scores, mask, lambda x, y: trace.pairs(x, y) and None, tied=False)
    if call["is_causal"]:
        for dim in (query.dims[-2], key.dims[-2]):
            for factor in dim:
                freeze(factor.axis, "steps of a sequence")
    out = Value((*batch, query.dims[-2], value.dims[-1]))
    holder = value if value.node is not None else query
    if holder.node is None:
        return unknown(trace, call)
    node = trace.network.add(call.path, trace.network.nodes[holder.node].dim)
    attributes = {"heads": _heads(query), "causal": bool(call["is_causal"]) or None, "masked": mask is not None or None}
    attributes["batch_first"] = False if _over_first(trace, query) else None
    scale = call["scale"] if call["scale"] is not None else 1 / math.sqrt(query.shape[-1])
    attributes["scale"] = scale * query.scale * key.scale
    for part, tensor in (("query", query), ("key", key), ("value", value)):
        trace.network.connect(Value(tensor.dims, tensor.node), node, f"attend {part}", {}, attributes)
    return trace.with_node(out, node)


def _joined(trace: Trace, q: Dim, v: Dim) -> Dim:
    """Heads of the output: the neurons of both, the exponents of the values."""
    if size_of(q) == 1 or size_of(v) == 1:
        return v if size_of(q) == 1 else q
    pieces = tuple(Factor(axis, slot) for axis, _, slot in trace.pairs(q, v))
    return pieces or fixed_dim(size_of(v), "heads that do not fit")


def _over_first(trace: Trace, query: Value) -> bool:
    """Whether attention runs over the first dimension of an input of the model ([T, N, d])."""
    steps = {id(f.axis.root) for f in query.dims[-2]}
    return any(id(f.axis.root) in steps for dim in trace.first_dims for f in dim)


def _heads(query: Value) -> int:
    return query.shape[-3] if len(query.dims) > 3 else 1


RULES = {"scaled_dot_product_attention": attention}
