"""Draw what implicit neural representations represent."""

from __future__ import annotations

import torch
from torch import Tensor

from wsl.batch import WeightBatch
from wsl.execute import execute
from wsl.zoo.coordinates import grid


def render(batch: WeightBatch, height: int, width: int, black: float = 0.0, white: float = 1.0) -> Tensor:
    """The images that INRs represent, ``[B, height·width, channels]``; values are not clipped to [0, 1].

    Args:
        black, white: outputs of the networks that become 0 and 1 (the recipe's ``render.range``, if there is one).

    Raises:
        SpecError: if the networks cannot be executed.
    """
    outputs = execute(batch, torch.from_numpy(grid(height, width)).to(batch.values))
    return outputs if (black, white) == (0, 1) else (outputs - black) / (white - black)
