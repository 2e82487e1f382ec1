"""Standardise weights with one mean and one deviation for each parameter tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsl.batch import WeightBatch
from wsl.spec import WeightSpec


class Standardize(nn.Module):
    """(value − mean) / std, with scalars for each virtual tensor: weights and biases of each layer apart.

    Without ``center`` the mean stays 0 and std is the root of the mean square: this commutes with scales and signs.
    A statistic for each neuron would tie the neurons of a layer to their positions and break permutation symmetry, so
    there is none. Until :meth:`fit` is called the values pass unchanged.

    Shapes: ``[B, P, C]`` → ``[B, P, C]``; the buffers ``mean`` and ``std`` are ``[T]``, in the order of the tensors.
    """

    mean: Tensor
    std: Tensor
    owner: Tensor

    def __init__(self, spec: WeightSpec, center: bool = True) -> None:
        super().__init__()
        self.spec, self.center = spec, center
        count = len(spec.tensors)
        owner = torch.empty(spec.numel, dtype=torch.int64)
        for number, tensor in enumerate(spec.tensors):
            owner[torch.from_numpy(tensor.index().ravel())] = number
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("std", torch.ones(count))
        self.register_buffer("owner", owner, persistent=False)

    def fit(self, batch: WeightBatch) -> None:
        """Take mean and std from a batch; a tensor that does not vary keeps its scale (std 1).

        Raises:
            ValueError: if the batch is empty, or a statistic is not finite; the message names the tensor.
        """
        if len(batch) == 0:
            raise ValueError("statistics of an empty batch do not exist; give at least one network")
        for number, tensor in enumerate(self.spec.tensors):
            values = batch[tensor.name].double()
            mean = values.mean() if self.center else values.new_zeros(())
            std = (values - mean).square().mean().sqrt()
            if not (mean.isfinite() and std.isfinite()):
                raise ValueError(f"tensor {tensor.name!r} holds values that are not finite; remove their rows")
            self.mean[number] = mean
            self.std[number] = std if std > 0 else 1.0

    def forward(self, values: Tensor) -> Tensor:
        mean, std = self.mean[self.owner].unsqueeze(-1), self.std[self.owner].unsqueeze(-1)
        return (values - mean) / std
