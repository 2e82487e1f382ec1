"""The networks of a zoo of varied CNNs as one would write and train them alone."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsl.zoo.build.wild_cnn import WildCNN

ACTIVATION = {
    "identity": lambda x: x,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
}


class WildModule(nn.Module):
    """One architecture, layer by layer."""

    def __init__(self, cnn: WildCNN) -> None:
        super().__init__()
        self.cnn = cnn
        channels = pairwise((cnn.inputs, *cnn.widths))
        self.layers = nn.ModuleList(
            nn.Conv2d(i, o, k, padding=k // 2) for (i, o), k in zip(channels, cnn.kernels, strict=True)
        )
        self.fc = nn.Linear(cnn.widths[-1], cnn.classes)

    def forward(self, x: Tensor) -> Tensor:
        values: list[Tensor] = []
        for conv, activation, skip in zip(self.layers, self.cnn.activations, self.cnn.skips, strict=True):
            x = conv(x)
            if skip >= 0:
                shared = min(x.shape[1], values[skip].shape[1])
                arriving, missing = values[skip][:, :shared], x.shape[1] - shared
                x = x + (F.pad(arriving, (0, 0, 0, 0, 0, missing)) if missing else arriving)
            x = ACTIVATION[activation](x)
            values.append(x)
        return self.fc(x.mean((2, 3)))
