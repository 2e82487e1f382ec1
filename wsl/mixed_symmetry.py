"""Group elements of mixed batches: every network moved by an element of its own spec's group, none looked at alone.

All neurons of all networks lie in one flat vector. What an element does to a value of a row is written in a table of
its spec, computed once: a *slot* per axis that has symmetries, with the neuron that the axis points to, the distance
between neighbours along it and the scaling exponent. On a value at position p with slots (neuron n_k, stride s_k,
exponent p_k)

    T'[p] = T[p + Σ_k s_k·(π(n_k) − n_k)] · Π_k d(n_k)^p_k · (−1)^(m(n_k) if p_k < 0) + turn[p]·m(n_0)

as in :mod:`wsl.symmetry`, of which this is the form for networks of many specs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from wsl.batch import MixedWeightBatch
from wsl.spec import SYMMETRIES, VirtualTensor, WeightSpec
from wsl.symmetry import phase_biases


@dataclass(frozen=True)
class MixedElement:
    """One element per network; the neurons of all networks one after the other, ``[ΣS]``, as :func:`neuron_table` says.

    Attributes:
        source: π, the neuron whose place each neuron takes (a position in this same vector).
        factor: d, positive scale times sign; None: 1 everywhere.
        half_turns: m; None: 0 everywhere.
    """

    source: Tensor
    factor: Tensor | None = None
    half_turns: Tensor | None = None


def draw_mixed(
    batch: MixedWeightBatch,
    generator: torch.Generator | None = None,
    symmetries: Sequence[str] = ("permutation",),
    scale: tuple[float, float] = (0.1, 10.0),
    uniform: Callable[[str, Tensor, Tensor], Tensor] | None = None,
    log_scale: bool = True,
) -> MixedElement:
    """Random elements for the networks of a batch, on hidden labels; arguments as :func:`wsl.symmetry.draw`.

    Args:
        uniform: where the random numbers come from, instead of the generator: (symmetry, network ``[S]``, neuron of the
            network ``[S]``) → float64 in (0, 1) ``[S]``, such as :meth:`wsl.data.counter.RowRandom.uniform`.
        log_scale: whether the factors of ``scaling`` are log-uniform in the interval or uniform.

    Raises:
        ValueError: on an unknown symmetry name.
    """
    if unknown := set(symmetries) - set(SYMMETRIES):
        raise ValueError(f"unknown symmetries {sorted(unknown)}; known: {SYMMETRIES}")
    rows, owner, offsets = batch.tables(neuron_table)
    neurons, device, dtype = len(rows), rows.device, batch.values.dtype
    may = {s: rows[:, 1 + i].bool() for i, s in enumerate(SYMMETRIES) if s in symmetries}

    source = torch.arange(neurons, device=device)

    def numbers(symmetry: str) -> Tensor:
        if uniform is not None:
            return uniform(symmetry, owner, source - offsets[:-1][owner])
        return torch.rand(neurons, generator=generator, dtype=torch.float64, device=device)

    order = source
    if "permutation" in may:
        segment = offsets[:-1][owner] + rows[:, 0]  # the first neuron of its label, which grows along the vector
        # 32 bits of a key below those of its segment: exact, so that other networks of the batch change nothing
        key = torch.where(may["permutation"], (numbers("permutation") * 2**32).long(), source - segment)
        order = (segment * 2**32 + key).argsort(stable=True)
    factor = torch.ones(neurons, dtype=torch.float64, device=device)
    if "scaling" in may:
        drawn = numbers("scaling")
        low, high = scale
        drawn = low * (high / low) ** drawn if log_scale else low + (high - low) * drawn
        factor = torch.where(may["scaling"], drawn, factor)
    if "sign" in may:
        factor = torch.where(may["sign"] & (numbers("sign") < 0.5), -factor, factor)
    turns = torch.where(may["phase"], torch.floor(numbers("phase") * 5) - 2, 0.0) if "phase" in may else None
    scaled = {"scaling", "sign"} & set(may)
    return MixedElement(order, factor.to(dtype) if scaled else None, None if turns is None else turns.to(dtype))


def act_mixed(element: MixedElement, batch: MixedWeightBatch, shift: bool = True) -> MixedWeightBatch:
    """The batch after every network's element has acted on it; ``shift`` as in :func:`wsl.symmetry.act`."""
    slots = max((slot_count(batch.specs[i]) for i in batch.spec_ids.unique().tolist()), default=1)
    rows, _, offsets = batch.tables(_row_table_of(slots))
    _, _, first = batch.tables(neuron_table)
    start = first[:-1].repeat_interleave(offsets.diff())
    distance = element.source - torch.arange(len(element.source), device=start.device)
    moved = torch.arange(len(rows), device=rows.device)
    factor = None
    for slot in range(slots):
        neuron = rows[:, 3 * slot] + start
        moved += rows[:, 3 * slot + 1] * distance[neuron]
        for by in _factors(element, neuron, rows[:, 3 * slot + 2]):
            factor = by if factor is None else factor * by
    values = batch.values.index_select(0, moved)
    values = values if factor is None else values * factor.unsqueeze(-1)
    if shift and element.half_turns is not None:
        turn, turning, _ = batch.tables(turn_table)
        bias = turn[:, 0].long() + batch.offsets[turning]
        added = turn[:, 2] * element.half_turns[turn[:, 1].long() + first[:-1][turning]]
        values = values.index_add(0, bias, added.to(values).unsqueeze(-1).expand(-1, values.shape[1]))
    return batch.with_values(values)


def _factors(element: MixedElement, neuron: Tensor, power: Tensor) -> list[Tensor]:
    """What the neurons of one slot multiply values by: d to the power, and the sign of odd turns on in axes."""
    found = []
    if element.factor is not None:
        found.append(element.factor[neuron] ** power)
    if element.half_turns is not None:
        odd = 1 - 2 * element.half_turns.remainder(2)
        found.append(torch.where(power < 0, odd[neuron], 1.0))
    return found


# -- tables of a spec --------------------------------------------------------------------------------------------------


def _first_neurons(spec: WeightSpec) -> dict[str, int]:
    """Hidden label with symmetries → its first neuron in the spec's list; neuron 0 stands for none and never moves."""
    first, count = {}, 1
    for label in spec.labels:
        if label.kind == "hidden" and label.symmetries:
            first[label.name] = count
            count += label.size
    return first


def neuron_table(spec: WeightSpec) -> Tensor:
    """``[S, 5]`` int64 per neuron: the first neuron of its label, and which of SYMMETRIES the label has.

    S is one more than the neurons of hidden labels with symmetries; the first row stands for no neuron.
    """
    rows = [torch.zeros(1, 1 + len(SYMMETRIES), dtype=torch.int64)]
    for name, start in _first_neurons(spec).items():
        label = spec.label[name]
        row = torch.tensor([start, *(int(s in label.symmetries) for s in SYMMETRIES)])
        rows.append(row.expand(label.size, -1))
    return torch.cat(rows)


def _moving_axes(spec: WeightSpec, tensor: VirtualTensor) -> list[int]:
    first = _first_neurons(spec)
    return [axis for axis, name in enumerate(tensor.axes) if name in first]


@lru_cache(maxsize=65536)
def slot_count(spec: WeightSpec) -> int:
    """The largest number of axes with symmetries of any tensor, at least 1."""
    return max((len(_moving_axes(spec, tensor)) for tensor in spec.tensors), default=0) or 1


def row_table(spec: WeightSpec, slots: int) -> Tensor:
    """``[P, 3·slots]`` int32 per value of a row: neuron (0: none), stride and exponent of each slot."""
    first = _first_neurons(spec)
    table = np.zeros((spec.numel, slots, 3), dtype=np.int32)
    for tensor in spec.tensors:
        positions = tensor.index()
        for slot, axis in enumerate(_moving_axes(spec, tensor)):
            shape = [n if a == axis else 1 for a, n in enumerate(tensor.shape)]
            neuron = first[tensor.axes[axis]] + np.arange(tensor.shape[axis]).reshape(shape)
            table[positions, slot, 0] = neuron
            table[positions, slot, 1:] = tensor.strides[axis], tensor.scaling[axis]
    return torch.from_numpy(table.reshape(spec.numel, 3 * slots))


@cache
def _row_table_of(slots: int) -> Callable[[WeightSpec], Tensor]:
    """The same function object for the same number of slots, as remembered tables ask for."""
    return partial(row_table, slots=slots)


def turn_table(spec: WeightSpec) -> Tensor:
    """``[T, 3]`` float64 per bias of a sine: its position in the row, its neuron, its half period."""
    first = _first_neurons(spec)
    rows = []
    for name, (label, half) in phase_biases(spec).items():
        positions = spec.tensor[name].index()
        neurons = first[label] + np.arange(len(positions))
        rows.append(np.stack([positions, neurons, np.full(len(positions), half)], axis=1))
    return torch.from_numpy(np.concatenate(rows)) if rows else torch.zeros(0, 3, dtype=torch.float64)
