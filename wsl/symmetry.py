"""The symmetry group of a spec: draw an element, act with it on a batch of weights, invert it, compose two.

An element holds, per label and network, a permutation π, a factor d (positive scale times sign) and a number of half
turns m of a sine. On a tensor with axes (a, b, …) and scaling exponents (p, q, …) it acts as

    T'[i, j, …] = T[π_a(i), π_b(j), …] · d_a(i)^p · d_b(j)^q · … · (−1)^(m_a(i) if p < 0) · …

and a half turn also adds m·π/ω to the bias of the neuron (after permutation and factor), since
sin(ω(x + mπ/ω)) = (−1)^m sin(ωx). The function of the network is unchanged by construction of the spec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from wsl.activations import half_period
from wsl.batch import WeightBatch
from wsl.spec import LABEL_KINDS, SYMMETRIES, SpecError, VirtualTensor, WeightSpec


@dataclass(frozen=True)
class GroupElement:
    """One element per network: label name → ``[B, n]``; a label that is absent stays as it is."""

    permutation: Mapping[str, Tensor] = field(default_factory=dict)
    factor: Mapping[str, Tensor] = field(default_factory=dict)
    half_turns: Mapping[str, Tensor] = field(default_factory=dict)


def draw(
    spec: WeightSpec,
    size: int,
    generator: torch.Generator | None = None,
    symmetries: Sequence[str] = ("permutation",),
    scale: tuple[float, float] = (0.1, 10.0),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    kinds: Sequence[str] = LABEL_KINDS,
) -> GroupElement:
    """Random elements of the group, one for each of ``size`` networks.

    Args:
        symmetries: which of permutation, scaling, sign and phase to draw, each only on labels that have it.
        scale: the factors of ``scaling`` are log-uniform in this interval.
        kinds: of which kinds of label. Inputs and outputs have symmetries in relaxed specs only, and permuting them
            changes the function; ``("hidden",)`` draws what preserves it there too.

    Raises:
        ValueError: on an unknown symmetry or kind.
    """
    if unknown := set(symmetries) - set(SYMMETRIES):
        raise ValueError(f"unknown symmetries {sorted(unknown)}; known: {SYMMETRIES}")
    if unknown := set(kinds) - set(LABEL_KINDS):
        raise ValueError(f"unknown kinds of label {sorted(unknown)}; known: {LABEL_KINDS}")
    permutation, factor, half_turns = {}, {}, {}

    def uniform(n: int) -> Tensor:
        return torch.rand(size, n, generator=generator, dtype=dtype, device=device)

    for label in (label for label in spec.labels if label.kind in kinds):
        held = [s for s in symmetries if s in label.symmetries]
        if "permutation" in held:
            permutation[label.name] = uniform(label.size).argsort(dim=-1)
        if "scaling" in held or "sign" in held:
            factor[label.name] = torch.ones(size, label.size, dtype=dtype, device=device)
        if "scaling" in held:
            low, high = torch.tensor(scale, dtype=dtype, device=device).log()
            factor[label.name] *= (low + (high - low) * uniform(label.size)).exp()
        if "sign" in held:
            factor[label.name] *= (uniform(label.size) < 0.5).to(dtype) * 2 - 1
        if "phase" in held:
            half_turns[label.name] = torch.floor(uniform(label.size) * 5) - 2
    return GroupElement(permutation, factor, half_turns)


def act(element: GroupElement, batch: WeightBatch, shift: bool = True) -> WeightBatch:
    """The batch after the element has acted on it; all channels alike (half turns shift channel values equally).

    Args:
        shift: whether half turns move biases. Differences of weights (gradients, updates, an equivariant encoder's
            field) transform without it.

    Raises:
        SpecError: if the element turns the phase of a label for which no group with a bias exists.
    """
    values = batch.values
    if element.permutation:
        index = _index(element, batch).unsqueeze(-1)
        values = values.gather(1, index.expand(-1, -1, values.shape[2]))
    if element.factor or element.half_turns:
        values = values * _factor(element, batch).unsqueeze(-1)
    if element.half_turns and shift:
        values = values + _shift(element, batch).unsqueeze(-1)
    return batch.with_values(values)


def inverse(element: GroupElement) -> GroupElement:
    """The element that undoes it: ``act(inverse(g), act(g, batch))`` is the batch.

    Raises:
        ValueError: if a label that turns has factors other than ±1 (no sine allows them), which no element undoes.
    """
    _check_turns(element)
    back = {name: p.argsort(dim=-1) for name, p in element.permutation.items()}
    factor = {name: 1 / _moved(d, back.get(name)) for name, d in element.factor.items()}
    turns = {n: -_moved(m, back.get(n)) * factor.get(n, torch.ones_like(m)) for n, m in element.half_turns.items()}
    return GroupElement(back, factor, turns)


def compose(second: GroupElement, first: GroupElement) -> GroupElement:
    """The element that acts as ``first`` and then ``second``.

    Raises:
        ValueError: if a label that turns has factors other than ±1.
    """
    _check_turns(second)
    _check_turns(first)
    permutation = {n: _moved(p, second.permutation.get(n)) for n, p in first.permutation.items()}
    permutation = dict(second.permutation) | permutation
    factor = {n: _moved(d, second.permutation.get(n)) for n, d in first.factor.items()}
    factor = {n: factor[n] * second.factor[n] for n in factor.keys() & second.factor.keys()} | {
        n: d for n, d in (*factor.items(), *second.factor.items()) if not (n in factor and n in second.factor)
    }
    turns = {n: m.clone() for n, m in second.half_turns.items()}
    for name, m in first.half_turns.items():
        moved = _moved(m, second.permutation.get(name)) * second.factor.get(name, torch.ones_like(m))
        turns[name] = turns[name] + moved if name in turns else moved
    return GroupElement(permutation, factor, turns)


def _moved(values: Tensor, permutation: Tensor | None) -> Tensor:
    return values if permutation is None else values.gather(-1, permutation)


def _check_turns(element: GroupElement) -> None:
    for name in element.half_turns.keys() & element.factor.keys():
        if not torch.equal(element.factor[name].abs(), torch.ones_like(element.factor[name])):
            raise ValueError(f"label {name!r} turns and scales at once; a sine allows factors of ±1 only")


# -- row-sized maps, written through strided views of the row: no loop over networks -----------------------------------


def _in_row(row: Tensor, tensor: VirtualTensor) -> Tensor:
    """The places of a tensor in a contiguous ``[B, P]``, as a view ``[B, *shape]``."""
    return row.as_strided((row.shape[0], *tensor.shape), (row.shape[1], *tensor.strides), tensor.offset)


def _along(values: Tensor, axis: int, tensor: VirtualTensor) -> Tensor:
    """``[B, n]`` as ``[B, 1, …, n, …, 1]``, to broadcast along one axis of the tensor."""
    return values.reshape(-1, *(n if a == axis else 1 for a, n in enumerate(tensor.shape)))


def _index(element: GroupElement, batch: WeightBatch) -> Tensor:
    """``[B, P]``: the place from which each value comes."""
    spec, device = batch.spec, batch.values.device
    index = torch.arange(spec.numel, device=device).repeat(len(batch), 1)
    for tensor in spec.tensors:
        if not any(name in element.permutation for name in tensor.axes):
            continue
        places = torch.full((1,) * (len(tensor.shape) + 1), tensor.offset, device=device)
        for axis, (name, stride) in enumerate(zip(tensor.axes, tensor.strides, strict=True)):
            order = element.permutation.get(name)
            order = torch.arange(tensor.shape[axis], device=device) if order is None else order.to(device)
            places = places + _along(order * stride, axis, tensor)
        _in_row(index, tensor).copy_(places)
    return index


def _factor(element: GroupElement, batch: WeightBatch) -> Tensor:
    """``[B, P]``: what each value is multiplied by; differentiable in the element's factors."""
    spec, values = batch.spec, batch.values
    row = torch.ones(len(batch), spec.numel, dtype=values.dtype, device=values.device)
    for tensor in spec.tensors:
        product: Tensor | None = None
        for axis, (name, power) in enumerate(zip(tensor.axes, tensor.scaling, strict=True)):
            parts = [element.factor[name].to(values) ** power] if power and name in element.factor else []
            if power < 0 and name in element.half_turns:
                parts.append((1 - 2 * element.half_turns[name].remainder(2)).to(values))
            for part in parts:
                shaped = _along(part, axis, tensor)
                product = shaped if product is None else product * shaped
        if product is not None:
            _in_row(row, tensor).copy_(product)
    return row


def _shift(element: GroupElement, batch: WeightBatch) -> Tensor:
    """``[B, P]``: what half turns add to biases."""
    values, turning = batch.values, phase_biases(batch.spec)
    row = torch.zeros(len(batch), batch.spec.numel, dtype=values.dtype, device=values.device)
    for name, (label, turn) in turning.items():
        if label in element.half_turns:
            _in_row(row, batch.spec.tensor[name]).copy_(element.half_turns[label].to(values) * turn)
    return row


@lru_cache(maxsize=4096)
def phase_biases(spec: WeightSpec) -> Mapping[str, tuple[str, float]]:
    """Bias tensor → (label, half period): the one bias of each sine group that a half turn shifts.

    Raises:
        SpecError: if a group whose label claims phase has no bias of its own.
    """
    out: dict[str, tuple[str, float]] = {}
    for label in spec.labels_with("phase"):
        for group in (g for g in spec.groups if g.label == label.name):
            biases = [c.tensors["bias"] for c in spec.incoming(group.name) if "bias" in c.tensors]
            if not biases:
                raise SpecError(f"label {label.name!r} claims phase, but group {group.name!r} has no bias to shift")
            turning = (label.name, half_period(group.parameters))
            if out.setdefault(biases[0], turning) != turning:
                raise SpecError(f"bias {biases[0]!r} is shared by sines of different frequency, which have no phase")
    return out
