"""A deep equivariant network: UNF layers with ReLU, optionally residual and normalised."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from wsl.nn.unf.basis import BasisOptions
from wsl.nn.unf.layout import Layout
from wsl.nn.unf.linear import UNFLinear
from wsl.nn.unf.positions import AxisEmbedding


class ChannelNorm(nn.Module):
    """Layer norm over the C channels of every entry, with one scale and shift per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        channels = self.norm.normalized_shape[0]
        return [self.norm(x.unflatten(-1, (-1, channels))).flatten(-2) for x in features]


class UNFStack(nn.Module):
    """x ← ReLU(UNF(x)), layer by layer; or, residual, x ← x + UNF(ReLU(norm(x))) after a first plain layer.

    Args:
        layout: the weight space.
        channels: c_0 … c_n: features of the input and of every layer. Residual layers keep their number.
        options: basis of all layers.
        residual: residual layers; their coefficients start smaller by √(number of layers), so that the sum keeps its
            scale at any depth.
        norm: normalise over channels before the ReLU of every layer but a first that takes raw features.
        init: see :class:`~wsl.nn.unf.coefficients.Coefficients`.
        embed: labels that get learned embeddings before every layer (input and output neurons, fixed cells).

    Shapes: one tensor ``[B, *sizes, slots·C]`` per bundle, in and out.

    Raises:
        ValueError: if a residual layer would change the number of channels.
    """

    def __init__(
        self,
        layout: Layout,
        channels: tuple[int, ...],
        options: BasisOptions | None = None,
        residual: bool = False,
        norm: bool = False,
        init: Literal["balanced", "flat"] = "balanced",
        embed: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        if residual and len(set(channels[1:])) > 1:
            raise ValueError(f"residual layers keep their number of channels, got {channels[1:]}; use equal ones")
        self.residual = residual
        branch = 2.0 / max(len(channels) - 2, 1)
        self.layers, self.norms, self.embeddings = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for number, (c_in, c_out) in enumerate(pairwise(channels)):
            gain = branch if residual and number else 2.0
            self.layers.append(UNFLinear(layout, c_in, c_out, options, gain, init))
            width = c_in if residual else c_out
            self.norms.append(ChannelNorm(width) if norm and (number or not residual) else nn.Identity())
            self.embeddings.append(AxisEmbedding(layout, embed, c_in) if embed else nn.Identity())

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        for number in range(len(self.layers)):
            features = self.step(number, features)
        return features

    def step(self, number: int, features: list[Tensor]) -> list[Tensor]:
        """The features after layer ``number``, from those before it."""
        layer, norm, features = self.layers[number], self.norms[number], self.embeddings[number](features)
        if not self.residual:
            return [F.relu(y) for y in norm(layer(features))]
        if number == 0:
            return layer(features)
        branch = layer([F.relu(x) for x in norm(features)])
        return [x + y for x, y in zip(features, branch, strict=True)]
