"""Draw what implicit neural representations represent."""

from __future__ import annotations

import torch
from torch import Tensor

from wsl.batch import WeightBatch
from wsl.execute import execute
from wsl.zoo.coordinates import grid


def render(batch: WeightBatch, height: int, width: int) -> Tensor:
    """The images that INRs represent, ``[B, height·width, channels]``; values are not clipped to [0, 1].

    Raises:
        SpecError: if the networks cannot be executed.
    """
    return execute(batch, torch.from_numpy(grid(height, width)).to(batch.values))
