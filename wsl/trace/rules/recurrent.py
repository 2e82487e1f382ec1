"""Rules for nn.RNN, nn.GRU and nn.LSTM: gates are rows of fused tensors, and all gates range over the hidden neurons.

Flipping the sign of a hidden neuron of a tanh RNN flips its rows and its columns; in a GRU and an LSTM only the rows of
the tanh gate flip, the sigmoid gates keep theirs; the columns of all gates flip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from wsl.trace.axes import Axis, concat, freeze, unify
from wsl.trace.call import Call, record
from wsl.trace.network import Part
from wsl.trace.rules.shape import cat
from wsl.trace.values import Dim, Factor, Slot, Stack, Trace, Value, rows

GATES = {
    "rnn_tanh": ("",),
    "rnn_relu": ("",),
    "gru": ("reset", "update", "new"),
    "lstm": ("input", "forget", "cell", "output"),
}
OPEN_GATES = ("", "new", "cell")  # those whose rows carry the sign of the hidden neuron


def recurrent(trace: Trace, call: Call) -> tuple[Value | Stack, ...]:
    """All layers and directions of one call; returns (output, last hidden state[, last cell state])."""
    x, tensors = call["input"], list(call["params"])
    states = [call["hx"]] if call.op != "lstm" else list(call["hx"])
    directions = 2 if call["bidirectional"] else 1
    size = len(tensors) // (call["num_layers"] * directions)
    for dim in x.dims[:-1]:
        for factor in dim:
            freeze(factor.axis, "steps of a sequence")
    lasts: list[list[Value]] = [[] for _ in states]
    module = call.path.rpartition(".")[0] or call.path
    for layer in range(call["num_layers"]):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            own = tensors[number * size : (number + 1) * size]
            first = [_state(state, number) for state in states]
            name = f"{module}.{layer}" + (".reverse" if direction else "")
            outputs.append(_layer(trace, replace(call, path=name), x, own, first, reverse=direction == 1))
            last = _last(trace, outputs[-1], name, "first" if direction else "last")
            lasts[0].append(last)
            if len(states) == 2:
                lasts[1].append(_cell_state(trace, last, own))
        x = outputs[0] if directions == 1 else _joined(trace, call, outputs, f"{module}.{layer}.both")
    stacked = [Stack(0, tuple(p)) if len(p) > 1 else replace(p[0], dims=((), *p[0].dims)) for p in lasts]
    return (x, *stacked)


def _layer(
    trace: Trace, call: Call, x: Value, tensors: Sequence[Value], first: Sequence[Value | None], reverse: bool
) -> Value:
    gates = GATES[call.op]
    projected = call.op == "lstm" and len(tensors) in (3, 5)
    projection = tensors[-1] if projected else None
    biases = tensors[2 : 4 if call["has_biases"] else 2]
    input_weight, hidden_weight = tensors[:2]
    carried = hidden_weight.dims[1]  # the axis of the state that is fed back
    cell = projection.dims[1] if projection is not None else carried
    values = _exponents(trace, call.op, cell)
    for tensor in (input_weight, hidden_weight, *biases):
        _gate_rows(trace, tensor, gates, values)
    trace.cancel(input_weight.dims[1], x.dims[-1])
    out = values
    if projection is not None:
        trace.cancel(projection.dims[1], values)
        out = projection.dims[0]
    trace.cancel(hidden_weight.dims[1], out)
    for state, dim in zip(first, (out, values), strict=False):
        if state is not None:
            trace.same(state.dims[-1], dim)
    squashed = "identity" if projected else "relu" if call.op == "rnn_relu" else "tanh"
    node = trace.network.add(call.path, out, squashed)
    _connect(trace, call, x, node, tensors, first, reverse)
    return trace.with_node(Value((*x.dims[:-1], out)), node)


def _exponents(trace: Trace, op: str, hidden: Dim) -> Dim:
    """Exponents of the hidden values: a relu lets positive factors pass, a tanh signs."""
    values = trace.derived(hidden)
    trace.neutral([values], ("sign",) if op == "rnn_relu" else ("scaling",))
    return values


def _gate_rows(trace: Trace, tensor: Value, gates: Sequence[str], values: Dim) -> None:
    """Rows of a fused tensor are as many copies of the hidden neurons as there are gates."""
    if not values:
        for factor in tensor.dims[0]:
            freeze(factor.axis, "gates of a single neuron")
        return
    (hidden,) = values
    (fused,) = tensor.dims[0]
    unify(fused.axis, concat([hidden.axis] * len(gates)))
    for number, gate in enumerate(gates):
        slot = Slot(fused.slot.power, fused.slot.offset + number * hidden.size * fused.slot.stride, fused.slot.stride)
        if gate in OPEN_GATES:
            trace.equate(hidden.axis, ((1, slot), (-1, hidden.slot)))
        else:
            trace.equate(hidden.axis, ((1, slot),))


def _connect(
    trace: Trace,
    call: Call,
    x: Value,
    node: int,
    tensors: Sequence[Value],
    first: Sequence[Value | None],
    reverse: bool,
) -> None:
    """One tensor per gate: rows number·h … of the fused ones."""
    gates, parts = GATES[call.op], {}
    names = ("input", "hidden", *(("input_bias", "hidden_bias") if call["has_biases"] else ()))
    for number, gate in enumerate(gates):
        for name, tensor in zip(names, tensors, strict=False):
            size = tensor.shape[0] // len(gates)
            own = rows(tensor, 0, number * size, size)
            parts[f"{gate}_{name}".lstrip("_")] = Part(own or tensor, None, 1 if name == "input" else None)
    if call.op == "lstm" and len(tensors) in (3, 5):
        parts["projection"] = Part(tensors[-1], None, None)
    kind = call.op.split("_")[0]
    attributes = {"batch_first": bool(call["batch_first"]), "reverse": reverse or None}
    if kind == "rnn":
        attributes["nonlinearity"] = call.op.split("_")[1]  # type: ignore[assignment]
    held = [state for state in first if state is not None and state.node is not None]
    learned = {f"initial:{k}": Part(s) for k, s in enumerate(first) if s is not None and s.node is None and s.tensors}
    if learned or (held and kind == "lstm"):  # described, but not to be run without its state
        attributes["op"], kind = kind, "unknown"  # type: ignore[assignment]
    trace.network.connect(x, node, kind, parts | learned, attributes, refers=held[0].node if held else None)
    for state in held:
        trace.network.connect(state, node, "memory")


def _state(state: Value | Stack | None, number: int) -> Value | None:
    """Initial state of one layer and direction; None where it is zero. Layers of one tensor are tied."""
    if isinstance(state, Stack):
        return state.pieces[number] if state.dim == 0 else None
    if state is None or state.zero:
        return None
    for dim in state.dims[:-1]:
        for factor in dim:
            freeze(factor.axis, "layers and batch of an initial state")
    return state


def cell(trace: Trace, call: Call) -> Value | tuple[Value, ...]:
    """One step of nn.RNNCell, nn.GRUCell or nn.LSTMCell."""
    op = call.op.removesuffix("_cell")
    x, gates = call["input"], GATES[op]
    state, *memory = call["hx"] if op == "lstm" else [call["hx"]]
    weights = [call[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if call[name] is not None]
    size = call["w_ih"].shape[0] // len(gates)
    values = _exponents(trace, op, (Factor(Axis(size, reason="length 1" if size == 1 else ""), trace.slot()),))
    for tensor in weights:
        _gate_rows(trace, tensor, gates, values)
    trace.cancel(call["w_ih"].dims[1], x.dims[-1])
    trace.cancel(call["w_hh"].dims[1], state.dims[-1])
    for carried in (*memory, *([state] if op == "gru" else [])):  # what the step adds to
        trace.same(carried.dims[-1], values)
    hidden = record(trace, call, Value((*x.dims[:-1], values)), values)
    return (hidden, hidden) if memory else hidden


def _last(trace: Trace, output: Value, name: str, position: str) -> Value:
    """The state after the last step (of a reversed layer: at the first)."""
    batch = tuple(d for d in output.dims[:-1])[1:] if len(output.dims) == 3 else ()
    node = trace.network.add(f"{name}.{position}", trace.network.nodes[output.node].dim)  # type: ignore[index]
    trace.network.connect(output, node, "skip", {}, {"step": 0 if position == "first" else -1})
    return trace.with_node(Value((*batch, output.dims[-1])), node)


def _cell_state(trace: Trace, last: Value, tensors: Sequence[Value]) -> Value:
    """The cell state is permuted and signed like the hidden neurons."""
    if len(tensors) in (3, 5):
        dims = (*last.dims[:-1], trace.derived(tensors[-1].dims[1]))
        trace.cancel(dims[-1], tensors[-1].dims[1])
        return replace(last, dims=dims)
    return last


def _joined(trace: Trace, call: Call, outputs: list[Value], name: str) -> Value:
    dims = outputs[0].dims
    shape = (*outputs[0].shape[:-1], sum(o.shape[-1] for o in outputs))
    return cat(trace, Call("cat", {"tensors": outputs, "dim": len(dims) - 1}, (shape,), name))


RULES = {
    **dict.fromkeys(("gru", "lstm", "rnn_tanh", "rnn_relu"), recurrent),
    **dict.fromkeys(("gru_cell", "lstm_cell", "rnn_tanh_cell", "rnn_relu_cell"), cell),
}
