"""Train small image classifiers, each with its own hyper-parameters, and keep them along the way.

    h_l = dropout(σ(conv_l(h_{l-1})))  (l < L),   logits = W · mean over positions of h_{L-1} + b
    loss = mean cross-entropy of the batch + l2 · Σ |weights|²  (biases are free of it)

An MLP is the case of one position. Two kernels do the same: ``native``, compiled C, is the default; ``torch`` needs no
compiler, runs on any device and is what the C is tested against. Optimisers are those of PyTorch with ε = 1e-7, Adam
with β = (0.9, 0.999), RMSprop with α = 0.9, SGD without momentum. Dropout is a hash of (key, step, layer, element).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from wsl.zoo.build import classifier_native, classifier_torch

Kernel = Literal["native", "torch"]
Activation = Literal["relu", "tanh", "gelu"]
Optimizer = Literal["sgd", "adam", "rmsprop"]
MEASURED = ("train_accuracy", "train_loss", "test_accuracy", "test_loss")


@dataclass(frozen=True)
class Architecture:
    """Convolutions without padding, the mean over positions, a linear layer.

    Attributes:
        height, width: of the images.
        channels: of the images, of each convolution, and the number of classes.
        kernel, stride: of every convolution, along both sides.
    """

    height: int
    width: int
    channels: tuple[int, ...]
    kernel: int = 3
    stride: int = 1

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the weight and the bias of each layer, in the order of a row."""
        last = len(self.channels) - 2
        found: list[tuple[int, ...]] = []
        for layer, (n_in, n_out) in enumerate(pairwise(self.channels)):
            found += [(n_out, n_in) if layer == last else (n_out, n_in, self.kernel, self.kernel), (n_out,)]
        return found

    @property
    def numel(self) -> int:
        """P: values of a row."""
        return sum(int(np.prod(shape)) for shape in self.shapes)

    @property
    def sides(self) -> list[tuple[int, int]]:
        """Height and width of the images and after each convolution."""
        found = [(self.height, self.width)]
        for _ in self.channels[1:-1]:
            found.append(tuple((side - self.kernel) // self.stride + 1 for side in found[-1]))  # type: ignore[arg-type]
        return found


class LabelledImages(NamedTuple):
    """Images ``[n, height, width, channels]`` as the networks read them, and labels int32 ``[n]``."""

    pixels: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Training:
    """How one network is trained.

    Attributes:
        start: its row before training, ``[P]``.
        order: numbers of the training images of each step, int32 ``[epochs, steps, batch]``.
        used: numbers of the images that ``order`` draws from, int32; train accuracy and loss are over these.
        learning_rate, l2, dropout: see the module docstring; dropout is the share set to zero, in [0, 1).
        key: of dropout, below 2³².
    """

    start: np.ndarray
    order: np.ndarray
    used: np.ndarray
    activation: Activation
    optimizer: Optimizer
    learning_rate: float
    l2: float = 0.0
    dropout: float = 0.0
    key: int = 0

    @property
    def threshold(self) -> int:
        """Dropout in units of 2⁻²⁴, which is how the kernels compare it."""
        return round(self.dropout * 2**24)


class Trained(NamedTuple):
    """Rows ``[checkpoints, P]`` and the numbers of ``MEASURED``, float64 ``[checkpoints, 4]``.

    Both are NaN from the checkpoint after the one at which a network has diverged.
    """

    rows: np.ndarray
    measured: np.ndarray


def default_kernel() -> Kernel:
    """``native`` where a C compiler works, else ``torch``."""
    return "native" if classifier_native.available() else "torch"


def train(
    architecture: Architecture,
    trainings: Sequence[Training],
    images: LabelledImages,
    test: LabelledImages,
    checkpoints: Sequence[int],
    kernel: Kernel | None = None,
    device: str = "cpu",
) -> list[Trained]:
    """Train networks and keep each after the epochs of ``checkpoints`` (0: before training).

    Args:
        checkpoints: rising; training ends with the last, which every ``order`` must reach.
        kernel: None chooses by :func:`default_kernel`. ``device``: of the torch kernel.

    Raises:
        ValueError: if the images or starts do not fit the architecture, or an order is too short.
    """
    size = (architecture.height, architecture.width, architecture.channels[0])
    if min(min(sides) for sides in architecture.sides) < 1:
        raise ValueError(f"{architecture}: the sides of its layers are {architecture.sides}; all must be positive")
    for training in trainings:
        shapes = (images.pixels.shape[1:], test.pixels.shape[1:], training.start.shape)
        if shapes != (size, size, (architecture.numel,)) or len(training.order) < checkpoints[-1]:
            raise ValueError(
                f"images, test images and start of shapes {shapes}, {len(training.order)} epochs of order: {size}, "
                f"({architecture.numel},) and {checkpoints[-1]} fit {architecture}"
            )
    if (kernel or default_kernel()) == "torch":
        found = classifier_torch.train_rows(architecture, trainings, images, test, checkpoints, device)
    else:
        found = [classifier_native.train_row(architecture, each, images, test, checkpoints) for each in trainings]
    return [Trained(*arrays) for arrays in found]
