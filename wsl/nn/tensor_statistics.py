"""Seven statistics of every parameter tensor: of networks of one architecture, or of many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.nn.places import lined_up, named_alike, slot_names, slots_of
from wsl.spec import WeightSpec

STATISTICS = 7


class TensorStatistics:
    """Mean, variance and quantiles 0, ¼, ½, ¾, 1 of the entries of each tensor, as features of a network.

    Args:
        specs: the architectures; the batches are of some of them.

    Attributes:
        features: F, seven for each tensor where all architectures have tensors of the same names. Otherwise eight for
            each slot of :func:`wsl.nn.places.slot_names`: the mean of the seven over the slot's tensors, and how many
            there are; a slot that a network does not have is all zeros.

    Shapes: batch of B networks, C = 1 → ``[B, F]``.
    """

    def __init__(self, specs: Sequence[WeightSpec]) -> None:
        self.first = specs[0]
        self.lined_up, self.by_name = lined_up(specs), named_alike(specs)
        self.slots = {name: number for number, name in enumerate(slots_of(specs))}
        self.features = len(self.slots) * (STATISTICS if self.by_name else STATISTICS + 1)
        self._table: Callable[[WeightSpec], Tensor] = partial(_tensor_table, by_name=self.by_name, slots=self.slots)

    def __call__(self, batch: WeightBatch | MixedWeightBatch) -> Tensor:
        if isinstance(batch, WeightBatch) and self.by_name:
            return statistics(batch)
        if isinstance(batch, MixedWeightBatch) and self.lined_up:
            return statistics(WeightBatch(self.first, batch.stacked()))
        mixed = MixedWeightBatch.collate([batch]) if isinstance(batch, WeightBatch) else batch
        tensors, owner, _ = mixed.tables(self._table)
        found = _segment_statistics(mixed, tensors[:, 0])
        into = owner * len(self.slots) + tensors[:, 1]
        out = found.new_zeros(len(mixed) * len(self.slots), STATISTICS).index_add(0, into, found)
        if self.by_name:
            return out.reshape(len(mixed), -1)
        count = found.new_zeros(len(out)).index_add(0, into, torch.ones_like(found[:, 0])).unsqueeze(1)
        return torch.cat([out / count.clamp(min=1), count], dim=1).reshape(len(mixed), -1)


def statistics(batch: WeightBatch) -> Tensor:
    """Seven numbers for every virtual tensor, ``[B, 7 · tensors]``."""
    out = []
    for tensor in batch.tensors().values():
        entries = tensor.flatten(1).sort(dim=1).values  # sorted once: quantiles are look-ups, sums have one order
        at = torch.linspace(0, entries.shape[1] - 1, 5, dtype=torch.float64, device=entries.device)
        low, weight = at.floor().long(), at.frac().to(entries.dtype)
        quantiles = torch.lerp(entries[:, low], entries[:, (low + 1).clamp_max(entries.shape[1] - 1)], weight)
        moments = torch.stack([entries.mean(1), entries.var(1, correction=0)], dim=1)
        out.append(torch.cat([moments, quantiles], dim=1))
    return torch.cat(out, dim=1)


def _segment_statistics(batch: MixedWeightBatch, lengths: Tensor) -> Tensor:
    """Seven numbers for every tensor of every network ``[T, 7]``; ``lengths [T]`` are those of the tensors."""
    segment, _ = segments(batch)
    values = batch.values.squeeze(-1)
    order = values.argsort(stable=True)
    entries = values[order[segment[order].argsort(stable=True)]]  # tensor after tensor, each sorted
    starts = lengths.cumsum(0) - lengths

    def mean(x: Tensor) -> Tensor:
        return torch.segment_reduce(x, "sum", lengths=lengths) / lengths

    means = mean(entries)
    variances = mean((entries - means.repeat_interleave(lengths)).square())
    at = torch.linspace(0, 1, 5, dtype=torch.float64, device=values.device) * (lengths - 1).unsqueeze(1)
    low, weight = at.floor().long(), at.frac().to(values)
    high = torch.minimum(low + 1, (lengths - 1).unsqueeze(1))
    low, high = entries[low + starts.unsqueeze(1)], entries[high + starts.unsqueeze(1)]
    return torch.cat([means.unsqueeze(1), variances.unsqueeze(1), torch.lerp(low, high, weight)], dim=1)


def segments(batch: MixedWeightBatch) -> tuple[Tensor, Tensor]:
    """The tensors of all networks, numbered one network after the other.

    Returns:
        the number of the tensor that each value belongs to, ``[ΣP]`` int64; the lengths of the tensors ``[T]``.
    """
    lengths, _, first = batch.tables(_lengths)
    number, owner, _ = batch.tables(_tensor_of_value)
    return number[:, 0] + first[:-1][owner], lengths[:, 0]


def _lengths(spec: WeightSpec) -> Tensor:
    """``[T, 1]`` int64: how many values each tensor has."""
    return torch.tensor([[tensor.numel] for tensor in spec.tensors])


def _tensor_of_value(spec: WeightSpec) -> Tensor:
    """``[P, 1]`` int64: the tensor that each value of a row belongs to."""
    table = torch.empty(spec.numel, 1, dtype=torch.int64)
    for number, tensor in enumerate(spec.tensors):
        table[torch.from_numpy(tensor.index().ravel())] = number
    return table


def _tensor_table(spec: WeightSpec, by_name: bool, slots: dict[str, int]) -> Tensor:
    """``[T, 2]`` int64 per tensor: its length and its slot."""
    names = slot_names(spec, by_name)
    return torch.tensor([[t.numel, slots[name]] for t, name in zip(spec.tensors, names, strict=True)])
