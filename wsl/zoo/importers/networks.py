"""The networks of the published CNN zoos as modules, from which their specs are traced and verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsl.activations import activate
from wsl.spec import WeightSpec
from wsl.trace import trace

#: names that published configs use → ours
ACTIVATIONS = {
    "none": "identity", "identity": "identity", "linear": "identity", "relu": "relu", "tanh": "tanh",
    "sigmoid": "sigmoid", "gelu": "gelu", "silu": "silu", "elu": "elu", "leaky_relu": "leaky_relu",
    "leakyrelu": "leaky_relu",
}  # fmt: skip


@dataclass(frozen=True)
class Conv:
    """A convolution with what follows it; ``skip``: the layer whose values are added before the activation, or −1."""

    inputs: int
    outputs: int
    kernel: int
    activation: str
    stride: int = 1
    padding: int = 0
    pool: int = 0
    skip: int = -1


@dataclass(frozen=True)
class Architecture:
    """Convolutions, then global average pooling or flattening, then linear layers; names as in the state dict.

    Attributes:
        convs: one after the other. linears: (inputs, outputs) of each; between them ``activation``.
        names: of the layers, convolutions first.
        side: height and width of the images to trace on.
    """

    convs: tuple[Conv, ...]
    linears: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    activation: str = "identity"
    side: int = 32
    flatten: bool = False


class PublishedCNN(nn.Module):
    """z_i = conv_i(y_{i−1}) + y_e, where the skip's first min(c_e, c_i) channels are added; y_i = σ_i(pool(z_i))."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        made: list[nn.Module] = [
            nn.Conv2d(c.inputs, c.outputs, c.kernel, c.stride, c.padding) for c in architecture.convs
        ]
        made += [nn.Linear(*sizes) for sizes in architecture.linears]
        for name, layer in zip(architecture.names, made, strict=True):
            self._attach(name, layer)

    def _attach(self, name: str, layer: nn.Module) -> None:
        """Add a layer under a dotted name."""
        *path, leaf = name.split(".")
        here: nn.Module = self
        for part in path:
            if part not in dict(here.named_children()):
                here.add_module(part, nn.Module())
            here = here.get_submodule(part)
        here.add_module(leaf, layer)

    def forward(self, x: Tensor) -> Tensor:
        architecture, values = self.architecture, list[Tensor]()
        for conv, name in zip(architecture.convs, architecture.names, strict=False):
            x = self.get_submodule(name)(x)
            if conv.skip >= 0:
                x = _added(x, values[conv.skip])
            if conv.pool:
                x = F.max_pool2d(x, conv.pool)
            x = activate(x, conv.activation, {})
            values.append(x)
        if architecture.convs:
            x = x.flatten(1) if architecture.flatten else x.mean((2, 3))
        last = architecture.names[-1]
        for name in architecture.names[len(architecture.convs) :]:
            x = self.get_submodule(name)(x)
            x = x if name == last else activate(x, architecture.activation, {})
        return x


def _added(x: Tensor, skipped: Tensor) -> Tensor:
    """The skipped values on the first channels; those that are missing are zeros, so that x stays one sum."""
    missing = x.shape[1] - skipped.shape[1]
    if missing <= 0:
        return x + skipped[:, : x.shape[1]]
    return x + torch.cat([skipped, torch.zeros_like(x[:, :missing])], 1)


@lru_cache(maxsize=16384)
def spec_of(architecture: Architecture) -> WeightSpec:
    """The traced spec; the same object for equal architectures.

    Raises:
        TraceError: if the sizes do not fit each other.
    """
    module = PublishedCNN(architecture)
    if architecture.convs:
        example = torch.randn(2, architecture.convs[0].inputs, architecture.side, architecture.side)
    else:
        example = torch.randn(2, architecture.linears[0][0])
    return trace(module, example)


def common_names(count: int, pattern: str, last: Sequence[str]) -> tuple[str, ...]:
    """``pattern`` filled with 0 … count − 1, then ``last``."""
    return (*(pattern.format(number) for number in range(count)), *last)
