"""Canonical weights: one representative of every orbit under scaling, sign and sine phase.

Neurons are fixed layer by layer, inputs first, so that the columns of a row are settled before the row decides:

``scaling``  divide the neuron's row and bias by their joint Euclidean norm, multiply its outgoing column by it.
``sign``     make the sum of the row (and bias, where it has no phase) positive.
``phase``    choose the integer k with ωb − kπ in (−π/2, π/2], set b := b − kπ/ω and give the outgoing column (−1)^k.
             Together with sign this is the orbit of (w, b) → (−1)^k (w, b − kπ/ω).

*Zero rows* (nothing to divide by) and *ties* (a row that sums to zero; next its cubes, then its entries weighted by
position where the row's columns cannot be permuted, then a folded bias) are left open: their columns take no part in
the rows of the next layer, and in a second pass, outputs first, the outgoing column decides in the same way. A neuron
whose row and column both say nothing keeps factor 1. Permutations stay as they are: a canonical batch goes into an
encoder that respects them.

The factors are differentiable in the weights; the choices (sign, k) are constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wsl.batch import WeightBatch
from wsl.spec import SpecError, VirtualTensor, WeightSpec
from wsl.symmetry import GroupElement, act, phase_biases

CANONICAL: tuple[str, ...] = ("scaling", "sign", "phase")


def canonicalise(batch: WeightBatch, symmetries: Sequence[str] = CANONICAL) -> tuple[WeightBatch, GroupElement]:
    """The canonical batch, and the element that took the batch there.

    An equivariant encoder's field Δ on canonical weights is mapped back with ``act(inverse(g), Δ, shift=False)``;
    edited canonical weights with ``act(inverse(g), edited)``.

    Args:
        batch: C = 1.
        symmetries: which of scaling, sign and phase to remove, each on the hidden labels that have it.

    Raises:
        ValueError: on another symmetry, on a batch with C ≠ 1, or on weights that are not finite.
    """
    if unknown := set(symmetries) - set(CANONICAL):
        raise ValueError(f"cannot canonicalise {sorted(unknown)}; can: {CANONICAL}")
    if batch.values.shape[-1] != 1:
        raise ValueError(f"canonical weights are defined for one channel, this batch has {batch.values.shape[-1]}")
    if not batch.values.isfinite().all():
        row, position = (~batch.values.isfinite().squeeze(-1)).nonzero()[0].tolist()
        raise ValueError(f"network {row} has the value {batch.values[row, position, 0].item()} at position {position}")
    state = _State(batch, tuple(symmetries))
    for name in state.order:
        state.settle(name)
    for name in reversed(state.order):
        state.settle_open(name)
    element = GroupElement(factor=state.factor, half_turns=state.turns)
    return act(element, batch), element


def _execution_order(spec: WeightSpec, symmetries: Sequence[str]) -> tuple[str, ...]:
    """Hidden labels with any of the symmetries, in the order in which their groups are computed."""
    ordered = dict.fromkeys([g.label for g in spec.groups] + [label.name for label in spec.labels])
    found = [spec.label[n] for n in ordered if set(symmetries) & set(spec.label[n].symmetries)]
    for label in found:
        if not any(t.axes.count(label.name) == 1 for t in spec.tensors):
            raise SpecError(
                f"label {label.name!r} has no row and no column of its own by which to fix its scale or sign"
            )
    return tuple(label.name for label in found if label.kind == "hidden")


@dataclass
class _State:
    """Choices so far: label → ``[B, n]``. ``blank`` and ``open`` mark neurons whose scale, sign is undecided."""

    batch: WeightBatch
    symmetries: tuple[str, ...]
    factor: dict[str, Tensor] = field(default_factory=dict)
    turns: dict[str, Tensor] = field(default_factory=dict)
    blank: dict[str, Tensor] = field(default_factory=dict)
    open: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec = self.batch.spec
        self.weights = {name: t.squeeze(-1) for name, t in self.batch.tensors().items()}
        self.order = _execution_order(spec, self.symmetries)
        self.turning = phase_biases(spec) if "phase" in self.symmetries else {}

    def holds(self, symmetry: str, label: str) -> bool:
        return symmetry in self.symmetries and symmetry in self.batch.spec.label[label].symmetries

    # -- first pass: rows -------------------------------------------------------------------------------------------

    def settle(self, label: str) -> None:
        """Scale, sign and turns of a label from its neurons' rows."""
        size = (len(self.batch), self.batch.spec.label[label].size)
        factor = self.batch.values.new_ones(size)
        undecided = torch.zeros(size, dtype=torch.bool, device=factor.device)
        if self.holds("scaling", label):
            norm, self.blank[label] = _norm(self.around(label, +1, self.blank), factor)
            factor = factor / norm
        if self.holds("sign", label):
            sign = _sign(self.around(label, +1, self.open), factor)
            undecided = sign == 0
            factor = factor * torch.where(undecided, 1, sign)
        if self.holds("phase", label):
            self.turns[label], folded = self.fold(label, factor)
            if self.holds("sign", label):
                flip = torch.where(undecided & (folded < 0), -1, 1).to(factor)
                undecided = undecided & (folded == 0)
                factor, self.turns[label] = factor * flip, self.turns[label] * flip
        self.factor[label] = factor
        self.open[label] = undecided | self.blank.get(label, torch.zeros_like(undecided))

    def fold(self, label: str, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Half turns that bring the first bias of a label into half a period around zero, and that bias."""
        name, half = next((n, half) for n, (of, half) in self.turning.items() if of == label)
        bias = self.weights[name].detach() * factor.detach()
        turns = -torch.ceil(bias / half - 0.5)
        return turns, bias + turns * half

    # -- second pass: columns of what rows left open ----------------------------------------------------------------

    def settle_open(self, label: str) -> None:
        """Scale and sign of open neurons from their columns."""
        factor = self.factor.pop(label)  # columns are read as if this label were untouched
        if label in self.blank and self.blank[label].any():
            blank, unmarked = self.blank.pop(label), {n: b for n, b in self.blank.items() if n != label}
            norm, _ = _norm(self.around(label, -1, unmarked), factor)
            factor = torch.where(blank, norm, factor)
        if self.holds("sign", label) and self.open[label].any():
            unmarked = {n: b for n, b in self.open.items() if n != label}
            sign = _sign(self.around(label, -1, unmarked), factor)
            if label in self.turns:
                sign = sign * (1 - 2 * self.turns[label].remainder(2))
            sign = torch.where(self.open[label] & (sign != 0), sign, 1)
            factor = factor * sign
            if label in self.turns:
                self.turns[label] = self.turns[label] * sign
        self.factor[label] = factor
        self.open.pop(label)

    def around(self, label: str, power: int, undecided: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Rows (power +1) or columns (−1) of a label: per tensor ``[B, n, entries]`` and the weights of its positions.

        All settled factors of the other axes are applied; entries of undecided neurons are zero. Tensors that another
        unsettled label moves, that this label moves twice, or that hold its phase, are left out.
        """
        found = []
        for tensor in self.batch.spec.tensors:
            if tensor.axes.count(label) != 1 or tensor.scaling[tensor.axes.index(label)] != power:
                continue
            others = [a for a, name in enumerate(tensor.axes) if name != label]
            moved = [a for a in others if tensor.scaling[a] and tensor.axes[a] in self.order]
            if tensor.name in self.turning or any(tensor.axes[a] not in self.factor for a in moved):
                continue
            values = self.weights[tensor.name]
            for axis in moved:
                values = values * self.gauge(tensor, axis, undecided)
            entries = values.movedim(1 + tensor.axes.index(label), 1).flatten(2) if others else values.unsqueeze(-1)
            found.append((entries, self.positions(tensor, others, entries)))
        return found

    def gauge(self, tensor: VirtualTensor, axis: int, undecided: dict[str, Tensor]) -> Tensor:
        name, power = tensor.axes[axis], tensor.scaling[axis]
        gauge = self.factor[name] ** power
        if power < 0 and name in self.turns:
            gauge = gauge * (1 - 2 * self.turns[name].remainder(2))
        if name in undecided:
            gauge = gauge.masked_fill(undecided[name], 0)
        return gauge.reshape(-1, *(n if a == axis else 1 for a, n in enumerate(tensor.shape)))

    def positions(self, tensor: VirtualTensor, others: list[int], entries: Tensor) -> Tensor:
        """1, 2, … along a row whose columns have an order of their own, 0 where they can be permuted."""
        labels = self.batch.spec.label
        ordered = others and not any("permutation" in labels[tensor.axes[a]].symmetries for a in others)
        count = torch.arange(1, entries.shape[-1] + 1, dtype=entries.dtype, device=entries.device)
        return count if ordered else torch.zeros_like(count)


def _norm(parts: list[tuple[Tensor, Tensor]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Joint Euclidean norm of the entries ``[B, n]``, 1 where it is zero, and where it is zero."""
    if not parts:
        return torch.ones_like(like), torch.ones_like(like, dtype=torch.bool)
    entries = torch.cat([e for e, _ in parts], dim=-1)
    largest = entries.detach().abs().amax(dim=-1, keepdim=True) if entries.shape[-1] else like.unsqueeze(-1) * 0
    zero = largest == 0
    scaled = entries / largest.masked_fill(zero, 1)  # squares neither overflow nor vanish
    norm = scaled.square().sum(dim=-1, keepdim=True).masked_fill(zero, 1).sqrt() * largest.masked_fill(zero, 1)
    return norm.squeeze(-1), zero.squeeze(-1)


def _sign(parts: list[tuple[Tensor, Tensor]], like: Tensor) -> Tensor:
    """Sign (±1) of the first odd statistic of the entries that is not zero within rounding; 0 if none is."""
    sign = torch.zeros_like(like)
    if not parts:
        return sign
    entries = torch.cat([e.detach() for e, _ in parts], dim=-1)
    positions = torch.cat([p for _, p in parts])
    if not entries.shape[-1]:
        return sign
    largest = entries.abs().amax(dim=-1, keepdim=True)
    entries = entries / largest.masked_fill(largest == 0, 1)
    rounding = 8 * torch.finfo(entries.dtype).eps * entries.shape[-1]
    for terms in (entries, entries**3, entries * positions):
        total = terms.sum(dim=-1)
        clear = total.abs() > rounding * terms.abs().sum(dim=-1)
        sign = torch.where((sign == 0) & clear, total.sign(), sign)
    return sign
