"""``trace``: module and example inputs in, verified WeightSpec out; ``trace_report`` also says what is not shared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from wsl.spec import SpecError, StoredTensor, WeightSpec
from wsl.trace.assemble import assemble, tidy_names
from wsl.trace.axes import freeze
from wsl.trace.graph import TraceError, export, follow
from wsl.trace.values import Trace
from wsl.verify import FreeDirection, free_directions, verify


@dataclass(frozen=True)
class Frozen:
    """An axis of a stored tensor that is not permuted, and why."""

    tensor: str
    axis: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class TraceReport:
    """What tracing found.

    Attributes:
        spec: verified.
        free: axes that may be permuted alone; frozen ones among them could be permuted but are not.
        frozen: axes (or parts of them) without symmetry, with the reasons.
        left_out: state-dict entries that are no weights: integer buffers such as counters.
        aliases: state-dict entries that share another one's storage and are stored once, under that name.
    """

    spec: WeightSpec
    free: tuple[FreeDirection, ...]
    frozen: tuple[Frozen, ...]
    left_out: tuple[str, ...]
    aliases: Mapping[str, str]


def trace(
    module: nn.Module,
    example_inputs: Tensor | Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> WeightSpec:
    """The weight space of a module: its tensors, labels and symmetries, verified numerically in float64.

    Args:
        module: traced in eval mode with torch.export; its weights and mode are left as they are.
        example_inputs: one tensor, or the positional arguments of ``forward``. ``kwargs``: its named ones.
        tolerance: relative change of the outputs that a group element may cause.
        seed: of the random weights and group elements of the check.

    Raises:
        TraceError: if the module cannot be traced, or holds weights that are NaN, or, naming the label, if a derived
            symmetry fails the check (an error of this package).
    """
    return _traced(module, example_inputs, kwargs or {}, tolerance, seed)[0].spec


def trace_report(
    module: nn.Module,
    example_inputs: Tensor | Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> TraceReport:
    """As :func:`trace`, with the free directions (one run of the network per axis) and all that is frozen."""
    report, inputs = _traced(module, example_inputs, kwargs or {}, tolerance, seed)
    free = free_directions(report.spec, module, inputs, kwargs, tolerance, seed)
    return TraceReport(report.spec, free, report.frozen, report.left_out, report.aliases)


def _traced(
    module: nn.Module, example_inputs: Tensor | Sequence[Any], kwargs: Mapping[str, Any], tolerance: float, seed: int
) -> tuple[TraceReport, tuple[Any, ...]]:
    if not isinstance(example_inputs, Tensor | list | tuple):
        kind = type(example_inputs).__name__
        raise TraceError(f"example inputs are a tensor or a tuple of arguments, not a {kind}; named ones go to kwargs")
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    state, left_out, aliases = _weights(module)
    stored = _row(state)
    training = {m: m.training for m in module.modules()}
    module.eval()
    try:
        facts = follow(export(module, inputs, kwargs), state, aliases)
        _freeze_unused(facts, stored)
        tidy_names(facts.network)
        assembled = assemble(facts, stored, {name for name, _ in module.named_buffers()})
        try:
            spec = verify(assembled.spec, tolerance, seed, inputs, module, kwargs)
        except SpecError as error:
            raise TraceError(f"internal error, {type(module).__qualname__} got a false symmetry: {error}") from error
    finally:
        for part, mode in training.items():
            part.training = mode
    frozen = tuple(Frozen(name, axis, reasons) for (name, axis), reasons in assembled.frozen.items())
    return TraceReport(spec, (), frozen, left_out, aliases), inputs


def _weights(module: nn.Module) -> tuple[dict[str, Tensor], tuple[str, ...], dict[str, str]]:
    """Floating tensors of the state dict, each storage once; names left out; alias → the name it is stored under."""
    state: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    left_out, aliases = [], {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        where = f"{type(module).__qualname__}: {name!r}"
        if not isinstance(tensor, Tensor):
            raise TraceError(
                f"{where} is a {type(tensor).__name__}, not a tensor; keep such state out of the state dict"
            )
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise TraceError(f"{where} is not initialised; run the module once before tracing")
        if tensor.is_complex():
            raise TraceError(f"{where} is {tensor.dtype}; store its real and imaginary parts as real tensors")
        if not tensor.is_floating_point():
            if isinstance(tensor, nn.Parameter):
                raise TraceError(f"{where} is a parameter of type {tensor.dtype}; weights are floating-point tensors")
            left_out.append(name)
        elif id(tensor) in first:
            aliases[name] = first[id(tensor)]
        else:
            if not torch.isfinite(tensor).all():
                raise TraceError(f"{where} holds NaN or infinite values; load finite weights before tracing")
            first[id(tensor)] = name
            state[name] = tensor
    if not state:
        raise TraceError(f"{type(module).__qualname__} has no floating-point weights")
    return state, tuple(left_out), aliases


def _row(state: Mapping[str, Tensor]) -> list[StoredTensor]:
    stored, offset = [], 0
    for name, tensor in state.items():
        stored.append(StoredTensor(name, tuple(tensor.shape), offset))
        offset += math.prod(tensor.shape)
    return stored


def _freeze_unused(facts: Trace, stored: Sequence[StoredTensor]) -> None:
    """Tensors that the forward pass never reads are fixed."""
    for tensor in stored:
        if tensor.name not in facts.parameters:
            value = facts.add_parameter(tensor.name, tensor.shape)
            for dim in value.dims:
                for factor in dim:
                    freeze(factor.axis, "not read by the forward pass")
