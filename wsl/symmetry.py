"""The symmetry group of a spec: draw an element, act with it on a batch of weights, invert it.

An element holds, per label and network, a permutation π, a factor d (positive scale times sign) and a number of half
turns m of a sine. On a tensor with axes (a, b, …) and scaling exponents (p, q, …) it acts as

    T'[i, j, …] = T[π_a(i), π_b(j), …] · d_a(i)^p · d_b(j)^q · … · (−1)^(m_a(i) if p < 0) · …

and a half turn also adds m·π/ω to the bias of the neuron (after permutation and factor), since
sin(ω(x + mπ/ω)) = (−1)^m sin(ωx). The function of the network is unchanged by construction of the spec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wsl.activations import half_period
from wsl.batch import WeightBatch
from wsl.spec import SYMMETRIES, SpecError, WeightSpec


@dataclass(frozen=True)
class GroupElement:
    """One element per network: label name → ``[B, n]``; a label that is absent stays as it is."""

    permutation: dict[str, Tensor] = field(default_factory=dict)
    factor: dict[str, Tensor] = field(default_factory=dict)
    half_turns: dict[str, Tensor] = field(default_factory=dict)


def draw(
    spec: WeightSpec,
    size: int,
    generator: torch.Generator | None = None,
    symmetries: Sequence[str] = ("permutation",),
    scale: tuple[float, float] = (0.1, 10.0),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> GroupElement:
    """Random elements of the group, one for each of ``size`` networks.

    Args:
        symmetries: which of permutation, scaling, sign and phase to draw, each only on labels that have it.
        scale: the factors of ``scaling`` are log-uniform in this interval.

    Raises:
        ValueError: on an unknown symmetry name.
    """
    if unknown := set(symmetries) - set(SYMMETRIES):
        raise ValueError(f"unknown symmetries {sorted(unknown)}; known: {SYMMETRIES}")
    element = GroupElement()

    def uniform(n: int) -> Tensor:
        return torch.rand(size, n, generator=generator, dtype=dtype, device=device)

    for label in spec.labels:
        held = [s for s in symmetries if s in label.symmetries]
        if "permutation" in held:
            element.permutation[label.name] = uniform(label.size).argsort(dim=-1)
        if "scaling" in held or "sign" in held:
            low, high = torch.tensor(scale, dtype=dtype, device=device).log()
            size_of = (low + (high - low) * uniform(label.size)).exp() if "scaling" in held else 1.0
            sign = (uniform(label.size) < 0.5).to(dtype) * 2 - 1 if "sign" in held else 1.0
            element.factor[label.name] = size_of * sign
        if "phase" in held:
            element.half_turns[label.name] = torch.floor(uniform(label.size) * 5) - 2
    return element


def act(element: GroupElement, batch: WeightBatch) -> WeightBatch:
    """The batch after the element has acted on it; all channels alike (half turns shift channel values equally).

    Raises:
        SpecError: if the element turns the phase of a label for which no group with a bias exists.
    """
    spec, values = batch.spec, batch.values
    size = values.shape[0]
    pieces_index, pieces_factor, pieces_shift = [], [], []
    order = []
    shifted = _phase_biases(spec) if element.half_turns else {}
    for tensor in spec.tensors:
        n = len(tensor.shape)
        index = torch.full((1,) * (n + 1), tensor.offset, dtype=torch.int64, device=values.device)
        factor = torch.ones((1,) * (n + 1), dtype=values.dtype, device=values.device)
        for axis, (name, stride, power) in enumerate(zip(tensor.axes, tensor.strides, tensor.scaling, strict=True)):
            shape = [1] * (n + 1)
            shape[axis + 1] = tensor.shape[axis]
            permutation = element.permutation.get(name)
            if permutation is None:
                permutation = torch.arange(tensor.shape[axis], device=values.device).unsqueeze(0)
            shape[0] = permutation.shape[0]
            index = index + (permutation * stride).reshape(shape)
            shape[0] = size
            if power and name in element.factor:
                factor = factor * element.factor[name].to(values.dtype).reshape(shape) ** power
            if power < 0 and name in element.half_turns:
                factor = factor * (1 - 2 * element.half_turns[name].remainder(2)).to(values.dtype).reshape(shape)
        full = (size, *tensor.shape)
        pieces_index.append(index.expand(full).reshape(size, -1))
        pieces_factor.append(factor.expand(full).reshape(size, -1))
        if tensor.name in shifted:
            label, turn = shifted[tensor.name]
            pieces_shift.append((len(order), element.half_turns[label].to(values.dtype) * turn))
        order.append(tensor)
    moved = values.gather(1, torch.cat(pieces_index, 1).unsqueeze(-1).expand(-1, -1, values.shape[2]))
    moved = moved * torch.cat(pieces_factor, 1).unsqueeze(-1)
    if pieces_shift:
        parts = list(moved.split([t.numel for t in order], dim=1))
        for position, shift in pieces_shift:
            parts[position] = parts[position] + shift.unsqueeze(-1)
        moved = torch.cat(parts, 1)
    return batch.with_values(_to_row_order(spec, moved))


def inverse(element: GroupElement) -> GroupElement:
    """The element that undoes permutations and factors.

    Raises:
        ValueError: if the element turns phases; half turns act after factors and have no inverse of this form.
    """
    if element.half_turns:
        raise ValueError("an element with half turns has no inverse in this form; undo the turns first")
    back = {name: p.argsort(dim=-1) for name, p in element.permutation.items()}
    factor = {n: 1 / (d.gather(-1, back[n]) if n in back else d) for n, d in element.factor.items()}
    return GroupElement(permutation=back, factor=factor)


def _to_row_order(spec: WeightSpec, moved: Tensor) -> Tensor:
    """Values listed tensor by tensor, back in the order of the row."""
    positions = torch.cat([torch.from_numpy(t.index().ravel()) for t in spec.tensors])
    if torch.equal(positions, torch.arange(spec.numel)):
        return moved
    return moved.index_select(1, positions.argsort().to(moved.device))


def _phase_biases(spec: WeightSpec) -> dict[str, tuple[str, float]]:
    """Bias tensor → (label, half period): the one bias of each sine group that a half turn shifts."""
    out: dict[str, tuple[str, float]] = {}
    for label in spec.labels_with("phase"):
        for group in (g for g in spec.groups if g.label == label.name):
            biases = [c.tensors["bias"] for c in spec.incoming(group.name) if "bias" in c.tensors]
            if not biases:
                raise SpecError(f"label {label.name!r} claims phase, but group {group.name!r} has no bias to shift")
            out[biases[0]] = (label.name, half_period(group.parameters))
    return out
