"""Change an implicit neural representation, by its weights alone, so that it shows another image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from wsl.batch import WeightBatch
from wsl.encoders.base import Encoder
from wsl.ranges import PositiveInt
from wsl.spec import WeightSpec
from wsl.tasks.base import Task
from wsl.tasks.gathered import Rows
from wsl.tasks.optimisation import MakeOptimizer, MakeScheduler
from wsl.zoo.render import render


class Editing(Task):
    r"""New weights are the old ones plus the encoder's field; the edited network is drawn and compared with its target.

    .. math:: \mathcal{L} = \frac{1}{B \cdot HW} \sum_{b, p} \Big( \frac{1}{k} \sum_{n=1}^{k}
        \mathrm{render}(w_b + Δ^{(n)}_b)_p - y_{b,p} \Big)^2

    Gradients reach the encoder through the rendering. Metrics: ``mse`` is 100 times the mean over images and pixels of
    the squared error, the unit of the published tables, and ``mse_unedited`` the same of the networks as they are.

    Sources: Zhou et al., "Permutation Equivariant Neural Functionals", section 4.3; Kofinas et al., "Graph Neural
    Networks for Learning Equivariant Representations of Neural Networks", section 4.2; k networks whose images are
    averaged: "output capacity expansion" (arXiv 2602.01083).

    Args:
        networks: k, how many edited networks there are of each; their images are averaged.
    """

    monitor = "val/mse"
    mode = "min"
    reads: ClassVar[tuple[type, ...]] = (WeightSpec,)
    needs_images = True
    needs_field = True

    def __init__(
        self,
        encoder: Encoder,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler,
        seed: int = 0,
        *,
        networks: PositiveInt = 1,
    ) -> None:
        super().__init__(encoder, optimizer, scheduler, seed)
        self.networks = networks

    @classmethod
    def out_features(cls, classes: int, options: Mapping[str, Any]) -> int:
        """k updates for each parameter."""
        return int(options["networks"])

    def edited(self, batch: WeightBatch) -> WeightBatch:
        """The k edited networks of each, one after the other: ``[B·k, P, 1]``, without targets."""
        values = batch.values + self.encoder(batch)
        return WeightBatch(batch.spec, values.transpose(1, 2).flatten(0, 1).unsqueeze(-1))

    def output(self, batch: WeightBatch) -> Tensor:
        """What the edited networks show, ``[B, height, width, channels]``."""
        return self.drawn(self.edited(batch), batch).unflatten(0, (len(batch), self.networks)).mean(1)

    def drawn(self, networks: WeightBatch, batch: WeightBatch) -> Tensor:
        """Images of networks in the size of the batch's targets, in the units of the networks' outputs."""
        assert batch.target is not None, "images come with their targets"
        height, width = batch.target.shape[1:3]
        return render(networks, height, width).unflatten(1, (height, width))

    def loss(self, output: Tensor, batch: WeightBatch) -> Tensor:
        return squared_error(output, batch).mean()

    def recorded(self, output: Tensor, batch: WeightBatch) -> tuple[Tensor, Tensor]:
        """Squared errors ``[B]`` of the edited networks, and of those before: a few numbers instead of images."""
        with torch.no_grad():
            return squared_error(output, batch), squared_error(self.drawn(batch, batch), batch)

    def metrics(self, rows: Rows) -> dict[str, float]:
        edited, before = (100 * error.double().mean().item() for error in (rows.output, rows.target))
        return {"mse": edited, "mse_unedited": before}


def squared_error(images: Tensor, batch: WeightBatch) -> Tensor:
    """Mean over the pixels of each image, ``[B]``."""
    assert batch.target is not None, "images come with their targets"
    return (images - batch.target).square().flatten(1).mean(1)
