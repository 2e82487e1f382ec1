"""Check a spec's symmetries numerically, in float64: no false symmetry (soundness), none needlessly lost (tightness).

Soundness: a random element of the group leaves the network's outputs unchanged. Tightness: permuting one axis of one
tensor alone changes them; where it does not, the axis is a *free direction*, such as the bias of an attention's keys.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from wsl.batch import WeightBatch
from wsl.execute import execute, input_groups, layout_of
from wsl.spec import SYMMETRIES, SpecError, VirtualTensor, WeightSpec
from wsl.symmetry import GroupElement, act, draw

Run = Callable[[WeightBatch], list[Tensor]]
DRAWS = 3  # random weights on which a free direction must be free
VISIBLE = 1e-3  # a relative change that rounding in float32 does not bring about


@dataclass(frozen=True)
class FreeDirection:
    """An axis of a tensor that may be permuted alone: the outputs do not notice."""

    tensor: str
    axis: int
    label: str
    reason: str


def verify(
    spec: WeightSpec,
    tolerance: float = 1e-9,
    seed: int = 0,
    inputs: Tensor | Sequence[Any] | None = None,
    module: nn.Module | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> WeightSpec:
    """The spec, marked verified, after random group elements on all labels left outputs unchanged in float64.

    Without a module, four networks with random weights are run from the spec on 16 random inputs. With one, the module
    itself is run in eval mode on the given inputs, with its own weights and with random ones (running variances
    positive). On random weights each symmetry is drawn alone, then all at once; on a module's own all at once.

    Args:
        inputs: as the network reads them; without a module by default drawn: 5 steps of sequences, 16 pixels along an
            image's axes.
        module: the network that the spec describes. ``kwargs``: named inputs of its ``forward``.

    Raises:
        SpecError: if outputs change by more than ``tolerance`` relative to their size, or are not finite; the message
            names the symmetry and the labels.
    """
    generator = torch.Generator().manual_seed(seed)
    if module is None:
        batches = [_drawn(spec, generator)]
        run = _run_of_spec(_drawn_inputs(spec, generator) if inputs is None else inputs)  # type: ignore[arg-type]
    else:
        run = run_of_module(module, (inputs,) if isinstance(inputs, Tensor) else tuple(inputs or ()), kwargs or {})
        batches = [own_weights(spec, module), random_weights(spec, module, generator)]
    held = [s for s in SYMMETRIES if spec.labels_with(s)]
    for number, batch in enumerate(batches):
        before = run(batch)
        alone = [(s,) for s in held] if number == len(batches) - 1 else []
        for chosen in [*alone, tuple(held)]:
            element = draw(spec, len(batch), generator, chosen, dtype=torch.float64)
            change = _change(run(act(element, batch)), before)
            if not change <= tolerance:
                raise SpecError(_accusation(spec, batch, run, element, chosen, change, tolerance))
    return spec.replace(verified=True)


def free_directions(
    spec: WeightSpec,
    module: nn.Module,
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> tuple[FreeDirection, ...]:
    """Every axis of length above 1 that can be permuted alone, on random parameters and buffers, without any change.

    Axes of labels that permute and frozen axes are both tried, each with two permutations (a shift and a random one).
    What leaves the outputs unchanged is tried on further random weights, lest neurons that happen to be dead pass for
    free; what changes them visibly in float32 needs no float64.
    """
    generator = torch.Generator().manual_seed(seed)
    runs = [run_of_module(module, inputs, kwargs or {}, dtype) for dtype in (torch.float64, torch.float32)]
    left = [(t, axis) for t in spec.tensors for axis, size in enumerate(t.shape) if size > 1]
    for _ in range(DRAWS):
        batch = random_weights(spec, module, generator)
        before = [run(batch) for run in runs]
        left = [(t, axis) for t, axis in left if _unnoticed(batch, t, axis, runs, before, tolerance, generator)]
    uses = Counter(name for tensor in spec.tensors for name in tensor.axes)
    return tuple(
        FreeDirection(t.name, axis, t.axes[axis], _reason(spec, t, t.axes[axis], uses[t.axes[axis]]))
        for t, axis in left
    )


def _unnoticed(
    batch: WeightBatch,
    tensor: VirtualTensor,
    axis: int,
    runs: Sequence[Run],
    before: Sequence[list[Tensor]],
    tolerance: float,
    generator: torch.Generator,
) -> bool:
    """Whether both permutations of one axis leave the outputs unchanged."""
    size = tensor.shape[axis]
    for order in (torch.arange(size).roll(1), torch.randperm(size, generator=generator)):
        moved = _permuted(batch, tensor, axis, order)
        exact, quick = runs
        if _change(quick(moved), before[1]) > VISIBLE or not _change(exact(moved), before[0]) <= tolerance:
            return False
    return True


def run_of_module(
    module: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any], dtype: torch.dtype = torch.float64
) -> Run:
    """A function from a batch of one network to the module's outputs with those weights, in eval mode."""
    copied = copy.deepcopy(module).to(dtype).eval()
    arguments, named = _cast(tuple(inputs), dtype), _cast(dict(kwargs), dtype)

    def run(batch: WeightBatch) -> list[Tensor]:
        state = {name: tensor.to(dtype) for name, tensor in batch.state_dict(0).items()}
        with torch.no_grad():
            return _tensors(functional_call(copied, state, arguments, named))

    return run


def own_weights(spec: WeightSpec, module: nn.Module) -> WeightBatch:
    """The module's weights as a batch of one, float64."""
    state = {name: tensor.detach().double() for name, tensor in module.state_dict().items()}
    return WeightBatch.from_state_dicts(spec, [state])


def random_weights(spec: WeightSpec, module: nn.Module, generator: torch.Generator) -> WeightBatch:
    """Weights of the module's size without its regularities (zero biases, unit variances); buffers keep their sign."""
    batch = own_weights(spec, module)
    buffers = {name for name, _ in module.named_buffers()}
    pieces = []
    for name, tensor in batch.state_dict(0).items():
        size = tensor.square().mean().sqrt() if tensor.numel() else tensor.sum()
        noise = _normal(generator, *tensor.shape)
        if name in buffers and bool((tensor > 0).all()):
            pieces.append(tensor * (0.3 * noise).exp())
        else:
            pieces.append(tensor + noise * (0.4 * size if size > 0 else 0.2))
    return batch.with_values(torch.cat([p.reshape(-1) for p in pieces]).reshape(1, -1, 1))


def _run_of_spec(inputs: Tensor) -> Run:
    return lambda batch: [execute(batch, inputs)]


def _drawn(spec: WeightSpec, generator: torch.Generator) -> WeightBatch:
    """Four networks with random weights, running variances positive."""
    batch = WeightBatch(spec, _normal(generator, 4, spec.numel, 1) * 0.5)
    for connection in spec.connections:
        if connection.kind == "norm" and "var" in connection.tensors:
            batch[connection.tensors["var"]].abs_().add_(0.1)
    return batch


def _drawn_inputs(spec: WeightSpec, generator: torch.Generator) -> Tensor:
    (source,) = input_groups(spec)
    layout, size = layout_of(spec, source), spec.size_of(source)
    if layout.kind == "tokens":
        return torch.randint(size, (16, 5), generator=generator)
    if layout.kind == "image":
        return _normal(generator, 16, size, *(16 for _ in range(layout.rank)))
    return _normal(generator, 16, *(5 for _ in range(layout.rank)), size)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _accusation(
    spec: WeightSpec,
    batch: WeightBatch,
    run: Run,
    element: GroupElement,
    chosen: Sequence[str],
    change: float,
    tolerance: float,
) -> str:
    """The labels that alone change the outputs, each with the element that was drawn for it."""
    before, guilty = run(batch), []
    if _change(run(batch), before) > tolerance:
        return "outputs differ from run to run with the same weights and inputs; remove what is random in eval mode"
    for label in spec.labels:
        alone = GroupElement(*({k: v for k, v in part.items() if k == label.name} for part in vars(element).values()))
        if not _change(run(act(alone, batch)), before) <= tolerance:
            guilty.append(label.name)
    labels = f" (labels {guilty})" if guilty else ""
    return f"{'+'.join(chosen)} changes the outputs by {change:.1e} (relative, allowed {tolerance}){labels}"


def _permuted(batch: WeightBatch, tensor: VirtualTensor, axis: int, order: Tensor) -> WeightBatch:
    index = torch.from_numpy(tensor.index())
    values = batch.values.clone()
    values[:, index.reshape(-1)] = batch.values[:, index.index_select(axis, order).reshape(-1)]
    return batch.with_values(values)


def _reason(spec: WeightSpec, tensor: VirtualTensor, label: str, uses: int) -> str:
    for connection in spec.connections:
        parts = [part for part, name in connection.tensors.items() if name == tensor.name]
        if "key_bias" in parts:
            return "a bias of attention keys adds the same to all scores of a query, which softmax ignores"
        if "bias" in parts and any(
            c.kind == "norm" and c.attributes.get("norm") == "instance"
            for c in spec.connections
            if c.source == connection.target
        ):
            return "a bias before a norm of single channels is subtracted again"
    if uses == 1 and spec.label[label].kind == "hidden":
        return "the only axis of its label"
    return "the outputs do not depend on it for these inputs"


def _change(after: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """Largest relative change of any output; infinite where something is not finite."""
    worst = 0.0
    for new, old in zip(after, before, strict=True):
        if not old.numel():
            continue
        if not (torch.isfinite(new).all() and torch.isfinite(old).all()):
            return float("inf")
        scale = old.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        worst = max(worst, float((new - old).abs().max() / scale))
    return worst


def _cast(argument: Any, dtype: torch.dtype) -> Any:
    if isinstance(argument, Tensor):
        return argument.to(dtype) if argument.is_floating_point() else argument
    if isinstance(argument, dict):
        return {k: _cast(v, dtype) for k, v in argument.items()}
    if isinstance(argument, list | tuple):
        return type(argument)(_cast(a, dtype) for a in argument)
    return argument


def _tensors(output: Any) -> list[Tensor]:
    """All tensors of a module's output, however nested, as float64."""
    if isinstance(output, Tensor):
        return [output.double()]
    if isinstance(output, Mapping):
        return [t for value in output.values() for t in _tensors(value)]
    if isinstance(output, list | tuple):
        return [t for value in output for t in _tensors(value)]
    return []
