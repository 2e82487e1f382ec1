"""Standardise weights with one mean and one deviation for each parameter tensor."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.nn.places import named_alike, slot_names, slots_of
from wsl.spec import WeightSpec
from wsl.spec.family import SpecFamily, specs_of


class Standardize(nn.Module):
    """(value − mean) / std, with scalars for each virtual tensor: weights and biases of each layer apart.

    Without ``center`` the mean stays 0 and std is the root of the mean square: this commutes with scales and signs, so
    an encoder that claims one of them takes it. A statistic for each neuron would tie the neurons of a layer to their
    positions and break permutation symmetry, so there is none. Until :meth:`fit` is called the values pass unchanged.

    For a family whose architectures have tensors of the same names, a name has one mean and deviation in all of them.
    Where they have not, there is one for each role (weight, bias, …) in the first layer, the last one and all between
    (:func:`wsl.nn.places.slot_names`), so that networks of any depth share them.

    Shapes: ``[B, P, C]`` → ``[B, P, C]``, and :meth:`flat` for mixed batches; the buffers ``mean`` and ``std`` are
    ``[T]``, in the order of the tensors (of a family: of :func:`wsl.nn.places.slots_of`).
    """

    mean: Tensor
    std: Tensor
    owner: Tensor

    def __init__(self, spec: WeightSpec | SpecFamily, center: bool = True) -> None:
        super().__init__()
        specs = specs_of(spec)
        self.center = center
        self.slots = slots_of(specs)
        number = {name: place for place, name in enumerate(self.slots)}
        self._slot_of_value = partial(_slot_of_value, by_name=named_alike(specs), number=number)
        self.register_buffer("mean", torch.zeros(len(self.slots)))
        self.register_buffer("std", torch.ones(len(self.slots)))
        self.register_buffer("owner", self._slot_of_value(specs[0]).flatten(), persistent=False)

    def fit(self, batch: WeightBatch | MixedWeightBatch) -> None:
        """Take mean and std from a batch; a tensor that does not vary keeps its scale (std 1), as does an absent one.

        Raises:
            ValueError: if the batch is empty, or a statistic is not finite; the message names the tensor.
        """
        if len(batch) == 0:
            raise ValueError("statistics of an empty batch do not exist; give at least one network")
        mixed = batch.flat() if isinstance(batch, WeightBatch) else batch
        slot = mixed.tables(self._slot_of_value)[0][:, 0]
        for number, name in enumerate(self.slots):
            mine = mixed.values[slot == number].double()
            if not len(mine):
                continue
            mean = mine.mean() if self.center else mine.new_zeros(())
            std = (mine - mean).square().mean().sqrt()
            if not (mean.isfinite() and std.isfinite()):
                raise ValueError(f"tensor {name!r} holds values that are not finite; remove their rows")
            self.mean[number] = mean
            self.std[number] = std if std > 0 else 1.0

    def forward(self, values: Tensor) -> Tensor:
        """Values ``[B, P, C]`` of networks of one spec (of a family: its first), standardised."""
        mean, std = self.mean[self.owner].unsqueeze(-1), self.std[self.owner].unsqueeze(-1)
        return (values - mean) / std

    def flat(self, batch: MixedWeightBatch) -> Tensor:
        """The standardised values ``[ΣP, C]`` of networks of a family."""
        slot = batch.tables(self._slot_of_value)[0][:, 0]
        return (batch.values - self.mean[slot].unsqueeze(-1)) / self.std[slot].unsqueeze(-1)


def _slot_of_value(spec: WeightSpec, by_name: bool, number: dict[str, int]) -> Tensor:
    """``[P, 1]`` int64: the slot that each value of a row belongs to."""
    table = torch.empty(spec.numel, 1, dtype=torch.int64)
    for tensor, name in zip(spec.tensors, slot_names(spec, by_name), strict=True):
        table[torch.from_numpy(tensor.index().ravel())] = number[name]
    return table
