"""From a module to its graph of aten operations, and the pass that follows neurons through that graph."""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from wsl.spec import SpecError
from wsl.trace.axes import freeze
from wsl.trace.call import Call, unknown
from wsl.trace.rules import attention, contract, conv, elementwise, norm, recurrent, shape
from wsl.trace.stacks import apply_to_stack, settled
from wsl.trace.values import Segments, Trace, Value, fixed_dim

RULES = {
    **contract.RULES,
    **conv.RULES,
    **norm.RULES,
    **elementwise.RULES,
    **shape.RULES,
    **recurrent.RULES,
    **attention.RULES,
}
UNUSUAL = (IndexError, KeyError, TypeError, ValueError)  # arguments of a form that a rule does not expect
MAX_PASSES = 4  # each pass cuts the axes that the one before saw taken apart; fused projections need two


class TraceError(SpecError):
    """A module cannot be traced; the message names the module, the tensor and the reason."""


def export(module: nn.Module, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ExportedProgram:
    """The module's graph in eval mode, functional, with high-level operations kept whole.

    Raises:
        TraceError: if the module does not run on the inputs, or torch.export cannot follow it.
    """
    with _running(module, "does not run on the example inputs"), torch.no_grad():
        module(*inputs, **kwargs)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque kernel; the slow path computes the same function
    try:
        with _running(module, "cannot be followed by torch.export (is there control flow that depends on values?)"):
            return torch.export.export(module, inputs, dict(kwargs)).run_decompositions({})
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


@contextmanager
def _running(module: nn.Module, complaint: str) -> Iterator[None]:
    """Turns an exception into a TraceError that names the innermost module that was running; quiet otherwise."""
    entered: list[str] = []
    hooks = []
    for name, part in module.named_modules():
        path = f"{type(module).__qualname__}.{name}" if name else type(module).__qualname__
        hooks.append(part.register_forward_pre_hook(lambda *_, path=path: entered.append(path)))
        hooks.append(part.register_forward_hook(lambda *_: entered.pop() and None))
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        where = entered[-1] if entered else type(module).__qualname__
        raise TraceError(f"{where} {complaint}: {type(error).__name__}: {lines[0] if lines else ''}") from error
    finally:
        for hook in hooks:
            hook.remove()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def follow(program: ExportedProgram, stored: Mapping[str, Tensor], aliases: Mapping[str, str]) -> Trace:
    """Neurons followed through the graph, repeated until no further stored axis has to be cut.

    Args:
        stored: the tensors of the row. ``aliases``: other names of some of them (tied weights).
    """
    segments: dict[tuple[str, int], Segments] = {}
    for _ in range(MAX_PASSES):
        trace = Trace(segments=dict(segments))
        _one_pass(trace, program, stored, aliases)
        if trace.segments == segments:
            break
        segments = trace.segments
    return trace


def _one_pass(trace: Trace, program: ExportedProgram, stored: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
    known = _entering(trace, program, stored, aliases)
    for node in program.graph.nodes:
        if node.op == "call_function":
            known[node.name] = _apply(trace, node, known)
        elif node.op == "output":
            _leave(trace, node, known)


def _entering(
    trace: Trace, program: ExportedProgram, stored: Mapping[str, Tensor], aliases: Mapping[str, str]
) -> dict[str, Any]:
    """Values of the graph's placeholders: stored tensors, inputs of the model, constants."""
    known: dict[str, Any] = {}
    placeholders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        name = spec.arg.name
        example = placeholders[name].meta.get("val") if name in placeholders else None
        target = aliases.get(spec.target or "", spec.target or "")
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and target in stored:
            if not placeholders[name].users:
                continue
            known[name] = trace.parameters.get(target) or trace.add_parameter(target, stored[target].shape)
        elif spec.kind == InputKind.USER_INPUT and isinstance(example, Tensor):
            dims = tuple(fixed_dim(n, "an input of the model", "input") for n in example.shape)
            at = _channels_of_input(example)
            node = trace.network.add(name, dims[at] if dims else ())
            trace.network.nodes[node].role = "input"
            known[name] = Value(dims, node)
            trace.first_dims += dims[:1]
        elif isinstance(example, Tensor):
            dims = tuple(fixed_dim(n, "a constant of the network") for n in example.shape)
            known[name] = Value(dims, constant=True)
    return known


def _channels_of_input(example: Tensor) -> int:
    """Channels are dimension 1 of images (4 or 5 dimensions), the last one otherwise."""
    return 1 if example.dim() >= 4 else -1


def _apply(trace: Trace, node: Any, known: Mapping[str, Any]) -> Any:
    arguments = _arguments(node, known)
    if node.target is operator.getitem:
        return arguments["self"][arguments["index"]]
    call = Call(_name(node), arguments, _shapes(node), _module_path(node))
    result = apply_to_stack(trace, call)
    if result is not None:
        return result
    kept = {"hx": call["hx"]} if call.op in recurrent.GATES else {}  # layers of a state stay apart
    call = Call(call.op, {k: settled(trace, v) for k, v in arguments.items()} | kept, call.shapes, call.path)
    if call.op == "_assert_tensor_metadata":
        return None
    rule = RULES.get(call.op)
    if rule is None:
        return _only(unknown(trace, call))
    try:
        return rule(trace, call)
    except UNUSUAL as error:
        return _only(unknown(trace, call, f"{call.op}, used in a way that its rule does not cover ({error})"))


def _only(outputs: tuple[Value, ...]) -> Any:
    return outputs[0] if len(outputs) == 1 else outputs


def _arguments(node: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    def resolve(argument: Any) -> Any:
        if isinstance(argument, torch.fx.Node):
            return known.get(argument.name)  # None: a branch of control flow
        if isinstance(argument, list | tuple):
            return [resolve(a) for a in argument]
        return argument

    if node.target is operator.getitem:
        return {"self": known[node.args[0].name], "index": node.args[1]}
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {f"argument{k}": resolve(a) for k, a in enumerate(node.args)}
    arguments = {a.name: a.default_value if a.has_default_value() else None for a in schema.arguments}
    arguments |= {a.name: resolve(v) for a, v in zip(schema.arguments, node.args, strict=False)}
    return arguments | {k: resolve(v) for k, v in node.kwargs.items()}


def _name(node: Any) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    if packet is None or getattr(node.target, "namespace", "aten") != "aten":
        return str(node.target)
    return packet.__name__


def _shapes(node: Any) -> tuple[tuple[int, ...], ...]:
    value = node.meta.get("val")
    values: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    return tuple(tuple(int(n) for n in v.shape) for v in values if isinstance(v, Tensor))


def _module_path(node: Any) -> str:
    """Where in the module an operation stands: the path of its innermost module, and the operation."""
    stack = node.meta.get("nn_module_stack") or {}
    path = ""
    for name, _ in stack.values():
        path = name or path
    return f"{path}.{node.name}" if path else node.name


def _leave(trace: Trace, node: Any, known: Mapping[str, Any]) -> None:
    def flat(argument: Any) -> list[Any]:
        if isinstance(argument, list | tuple):
            return [value for a in argument for value in flat(a)]
        return [known[argument.name]] if isinstance(argument, torch.fx.Node) else []

    for found in flat(node.args[0]):
        value = settled(trace, found)
        if not isinstance(value, Value):
            continue
        for dim in value.dims:
            for factor in dim:
                freeze(factor.axis, "an output of the model", "output")
        if value.node is not None:
            trace.network.nodes[value.node].role = "output"
            if value.scale != 1.0:
                scaled = trace.network.add("scaled output", trace.network.nodes[value.node].dim)
                trace.network.connect(value, scaled, "skip")
                trace.network.nodes[value.node].role, trace.network.nodes[scaled].role = "hidden", "output"
