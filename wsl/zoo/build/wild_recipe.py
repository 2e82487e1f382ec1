"""What a zoo of varied CNNs is made of: the recipe, and the networks drawn from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import MinLen
from pydantic import AfterValidator, Field

from wsl.config import Strict
from wsl.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt, Rate
from wsl.zoo.build.draws import Checkpoints, Range, Seed, generator_of, log_uniform
from wsl.zoo.build.inr_recipe import Sources
from wsl.zoo.build.wild_cnn import NO_SKIP, WildCNN

Activation = Literal["relu", "gelu", "tanh", "sigmoid", "leaky_relu", "identity", "silu"]
ACTIVATIONS: tuple[Activation, ...] = ("relu", "gelu", "tanh", "sigmoid", "leaky_relu", "identity")


def _odd(values: tuple[int, ...]) -> tuple[int, ...]:
    if any(value % 2 == 0 for value in values):
        raise ValueError(f"kernels should be odd, so that images keep their size, are {values}")
    return values


Choices = Annotated[tuple[PositiveInt, ...], MinLen(1)]


class WildParkRecipe(Strict):
    """How a zoo of CNNs that nearly all differ is made; what is drawn is drawn uniformly for each network or layer."""

    kind: Literal["wild_park"] = "wild_park"
    images: Sources
    limit: PositiveInt | None = Field(None, description="train on a random subset of this many images (null: all)")
    test_images: NonNegativeInt = Field(0, description="images held out to test on, where there is no test file")
    runs: PositiveInt = Field(300, description="networks trained")
    depths: Choices = Field((2, 3, 4, 5), description="numbers of convolutions")
    widths: Choices = Field((4, 8, 16, 32), description="channels of each convolution")
    kernels: Annotated[Choices, AfterValidator(_odd)] = Field((3, 5, 7), description="sizes of each kernel")
    activations: Annotated[tuple[Activation, ...], MinLen(1)] = Field(ACTIVATIONS, description="of each convolution")
    skips: bool = Field(True, description="a skip into each convolution, from none or any at least two back")
    learning_rate: Range = Field((1e-3, 1e-3), description="of AdamW, log-uniform between these")
    weight_decay: Annotated[tuple[NonNegativeFloat, ...], MinLen(1)] = Field((0.0,), description="of AdamW")
    batch_size: PositiveInt = Field(512, description="images of an update")
    checkpoints: Checkpoints = Field((10, 20), description="a row is kept after each of these; the last ends")
    val_share: Rate = Field(0.1, description="of the runs")
    test_share: Rate = Field(0.2, description="of the runs")
    seed: Seed = Field(0, description="of architectures, init, order of images and splits")
    block: PositiveInt = Field(50, description="networks trained, and kept in case of a crash, at a time")


@dataclass(frozen=True)
class DrawnNetwork:
    """One training run: architecture, AdamW's learning rate and weight decay, and the first weights ``[P]``."""

    cnn: WildCNN
    learning_rate: float
    weight_decay: float
    start: np.ndarray


def draw_network(recipe: WildParkRecipe, number: int, inputs: int, classes: int) -> DrawnNetwork:
    """The network of this number, a function of (seed, number) alone.

    Weights and biases start as PyTorch's convolutions and linear layers do: uniform within ±1/√fan_in.
    """
    rng = generator_of(recipe.seed, number)
    depth = int(rng.choice(recipe.depths))
    cnn = WildCNN(
        inputs,
        tuple(rng.choice(recipe.widths, depth).tolist()),
        tuple(rng.choice(recipe.kernels, depth).tolist()),
        tuple(recipe.activations[int(i)] for i in rng.integers(len(recipe.activations), size=depth)),
        tuple(int(rng.integers(NO_SKIP, max(layer - 1, 0))) if recipe.skips else NO_SKIP for layer in range(depth)),
        classes,
    )
    rate, decay = log_uniform(recipe.learning_rate, rng), float(rng.choice(recipe.weight_decay))
    parts, bound = [], 0.0
    for name, shape in cnn.shapes.items():
        if name.endswith("weight"):
            bound = 1 / math.sqrt(math.prod(shape[1:]))
        parts.append(rng.uniform(-bound, bound, math.prod(shape)))
    return DrawnNetwork(cnn, rate, decay, np.concatenate(parts).astype(np.float32))
