"""Noise on weights, and weights left out; each network for itself, without a look at its neighbours in the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from wsl.batch import MixedWeightBatch
from wsl.data.counter import RowRandom
from wsl.nn.tensor_statistics import segments
from wsl.spec import WeightSpec


def add_noise(batch: MixedWeightBatch, random: RowRandom, share: float) -> MixedWeightBatch:
    """Normal noise on every weight and bias, of ``share`` × the standard deviation of its own tensor in its network.

    A tensor of equal entries, such as the bias of a single output, has no deviation and gets no noise; buffers
    (running means and variances) are left alone.
    """
    segment, lengths = segments(batch)
    values = batch.values.double()
    count = lengths.double().unsqueeze(1)

    def mean(x: Tensor) -> Tensor:
        return x.new_zeros(len(lengths), x.shape[1]).index_add(0, segment, x) / count

    std = mean((values - mean(values)[segment]).square()).sqrt()[segment]
    owner, position, learned = _places(batch)
    normal = torch.special.ndtri(random.uniform("noise", owner, position)).unsqueeze(1)
    return batch.with_values((values + learned * share * std * normal).to(batch.values.dtype))


def drop_weights(batch: MixedWeightBatch, random: RowRandom, rate: float) -> MixedWeightBatch:
    """Every weight and bias is 0 with probability ``rate``, and else multiplied by 1/(1 − rate); buffers stay."""
    owner, position, learned = _places(batch)
    kept = (random.uniform("dropout", owner, position) >= rate).double().unsqueeze(1) / (1 - rate)
    return batch.with_values(batch.values * torch.where(learned > 0, kept, 1.0).to(batch.values.dtype))


def _places(batch: MixedWeightBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Of every value: its network, its position in that network's row, and ``[ΣP, 1]`` whether it was learned."""
    learned, owner, offsets = batch.tables(_learned)
    return owner, torch.arange(len(owner), device=owner.device) - offsets[:-1][owner], learned


def _learned(spec: WeightSpec) -> Tensor:
    """``[P, 1]`` float64: 0 for values of buffers, else 1."""
    table = torch.ones(spec.numel, 1, dtype=torch.float64)
    for tensor in spec.tensors:
        if tensor.role == "buffer":
            table[torch.from_numpy(tensor.index().ravel())] = 0.0
    return table
