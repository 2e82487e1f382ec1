"""Sine biases within half a period, for networks of any specs, none looked at alone.

With k the integer for which ωb − kπ lies in (−π/2, π/2],

    sin(ω(w·x + b)) = (−1)^k sin(ω(w·x + b − kπ/ω)),

so b := b − kπ/ω, and the weights that leave the neuron take (−1)^k. This is the phase part of :mod:`wsl.canonical`;
what remains of the group of a sine are signs, under which the folded bias is odd.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from wsl.batch import MixedWeightBatch
from wsl.spec import WeightSpec
from wsl.symmetry import phase_biases


def fold_phases(batch: MixedWeightBatch) -> MixedWeightBatch:
    """The same functions, with folded biases; k is a constant to autograd. C = 1."""
    return folded_with_signs(batch)[0]


def folded_with_signs(batch: MixedWeightBatch) -> tuple[MixedWeightBatch, Tensor]:
    """:func:`fold_phases`, and the signs ``[ΣP, 1]`` that values took: (−1)^k of weights that leave a sine, else 1.

    A field over the folded parameters times these signs is one over the parameters as they were.
    """
    shifts, owner, _ = batch.tables(shift_table)
    flips, flipping, _ = batch.tables(flip_table)
    if not len(shifts):
        return batch, torch.ones_like(batch.values)
    flat = batch.values.detach().squeeze(-1)
    start = batch.offsets[owner]
    half = shifts[:, 2].to(flat)
    turns = torch.ceil(flat[shifts[:, 1].long() + start] / half - 0.5)  # k
    total = torch.zeros_like(flat).index_add(0, shifts[:, 0].long() + start, -turns * half)
    of_decider = torch.zeros_like(flat).index_copy(0, shifts[:, 1].long() + start, turns)
    start = batch.offsets[flipping]
    odd = torch.zeros_like(flat).index_add(0, flips[:, 0] + start, of_decider[flips[:, 1] + start])
    signs = (1 - 2 * odd.remainder(2)).unsqueeze(-1)
    return batch.with_values(batch.values * signs + total.unsqueeze(-1)), signs


def _deciders(spec: WeightSpec) -> dict[str, np.ndarray]:
    """Label → positions in the row of the biases that decide k: those of its first sine."""
    found: dict[str, np.ndarray] = {}
    for name, (label, _) in phase_biases(spec).items():
        found.setdefault(label, spec.tensor[name].index().ravel())
    return found


def shift_table(spec: WeightSpec) -> Tensor:
    """``[M, 3]`` float64 per bias of a sine: its position in the row, that of the bias that decides, half a period."""
    deciders, rows = _deciders(spec), [np.zeros((0, 3))]
    for name, (label, half) in phase_biases(spec).items():
        positions = spec.tensor[name].index().ravel()
        rows.append(np.stack([positions, deciders[label], np.full(len(positions), half)], axis=1))
    return torch.from_numpy(np.concatenate(rows))


def flip_table(spec: WeightSpec) -> Tensor:
    """``[M, 2]`` int64 per weight that leaves a sine: its position in the row, that of the bias that decides."""
    deciders, rows = _deciders(spec), [np.zeros((0, 2), dtype=np.int64)]
    for tensor in spec.tensors:
        for axis, (name, power) in enumerate(zip(tensor.axes, tensor.scaling, strict=True)):
            if name in deciders and power < 0:
                along = deciders[name].reshape([-1 if a == axis else 1 for a in range(len(tensor.shape))])
                decider = np.broadcast_to(along, tensor.shape)
                rows.append(np.stack([tensor.index().ravel(), decider.ravel()], axis=1))
    return torch.from_numpy(np.concatenate(rows))
