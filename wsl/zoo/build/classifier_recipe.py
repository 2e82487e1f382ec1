"""What a zoo of small classifiers is made of: the recipes, and the hyper-parameters drawn for each run.

The Small CNN Zoo (Unterthiner et al., "Predicting Neural Network Accuracy from Weights", 2020) drew optimiser, learning
rate, initialisation, L2, dropout, share of the training images and activation at random for each of 30,000 CNNs.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Interval, MinLen
from pydantic import Field, model_validator

from wsl.config import Strict
from wsl.ranges import NonNegativeInt, PositiveInt
from wsl.zoo.build.classifier_fit import Activation, Architecture, Optimizer
from wsl.zoo.build.inr_recipe import Sources

Init = Literal["glorot_normal", "he_normal", "orthogonal", "normal", "truncated_normal"]
Share = Annotated[float, Interval(gt=0, le=1)]
NonNegative = Annotated[float, Ge(0)]
DRAW, INIT, IMAGES, ORDER, RUNS = range(5)  # with seed and run, the streams of random numbers
SPLIT = 2**32  # in place of a run: the stream of what belongs to the whole zoo
DEVIATION_OF_TRUNCATED = 0.8796256610342398  # of a standard normal without its tails beyond 2


class ClassifierRecipe(Strict):
    """What recipes of classifiers share. Ranges are [lowest, highest], of which each run draws."""

    images: Sources
    test_images: NonNegativeInt = Field(0, description="held out of the training file, where there is no test file")
    runs: PositiveInt = Field(1000, description="networks trained, each with its own hyper-parameters")
    checkpoints: Annotated[tuple[NonNegativeInt, ...], MinLen(1)] = Field(
        (0, 1, 2, 3, 20, 40, 60, 80, 86), description="epochs after which a network is kept, each a row of its run"
    )
    batch_size: PositiveInt = Field(512, description="images of a step; what is left of an epoch is dropped")
    activations: Annotated[tuple[Activation, ...], MinLen(1)] = ("relu", "tanh")
    optimizers: Annotated[tuple[Optimizer, ...], MinLen(1)] = ("adam", "rmsprop", "sgd")
    learning_rate: tuple[float, float] = Field((5e-4, 5e-2), description="log-uniform")
    l2: tuple[float, float] = Field((1e-8, 1e-2), description="log-uniform; times the sum of squared weights")
    dropout: tuple[Annotated[float, Interval(ge=0, lt=1)], Annotated[float, Interval(ge=0, lt=1)]] = (0.0, 0.7)
    initializers: Annotated[tuple[Init, ...], MinLen(1)] = (
        "glorot_normal",
        "he_normal",
        "orthogonal",
        "normal",
        "truncated_normal",
    )
    init_std: tuple[float, float] = Field((1e-2, 0.5), description="log-uniform; of normal and truncated_normal")
    train_fractions: Annotated[tuple[Share, ...], MinLen(1)] = (0.1, 0.25, 0.5, 1.0)
    val_share: Annotated[float, Interval(ge=0, lt=1)] = Field(0.1, description="of the runs")
    test_share: Annotated[float, Interval(ge=0, lt=1)] = Field(0.2, description="of the runs")
    seed: Annotated[int, Interval(ge=0, lt=2**32)] = Field(0, description="of everything drawn")
    block: Annotated[int, Ge(1)] = Field(4, description="runs trained, and kept in case of a crash, at a time")

    @model_validator(mode="after")
    def _ordered(self) -> ClassifierRecipe:
        for name, lowest in (("learning_rate", 0.0), ("l2", 0.0), ("init_std", 0.0), ("dropout", -1.0)):
            low, high = getattr(self, name)
            if not lowest < low <= high:
                above = "above 0 and " if lowest == 0 else ""
                raise ValueError(f"{name}=[{low}, {high}]: should be [lowest, highest], {above}rising")
        if list(self.checkpoints) != sorted(set(self.checkpoints)):
            raise ValueError(f"checkpoints={list(self.checkpoints)}: should rise")
        if self.val_share + self.test_share >= 1:
            shares = self.val_share + self.test_share
            raise ValueError(f"val_share + test_share = {shares:g}: leaves no run to train on")
        return self


class CNNRecipe(ClassifierRecipe):
    """A zoo like the Small CNN Zoo: 3 × 3 convolutions, the mean over positions, a linear layer."""

    kind: Literal["cnn"] = "cnn"
    channels: Annotated[tuple[PositiveInt, ...], MinLen(1)] = Field((16, 16, 16), description="of the convolutions")
    kernel: PositiveInt = 3
    stride: PositiveInt = 2

    def architecture(self, size: tuple[int, int, int], classes: int) -> Architecture:
        height, width, channels = size
        return Architecture(height, width, (channels, *self.channels, classes), self.kernel, self.stride)


class MLPRecipe(ClassifierRecipe):
    """A zoo of multi-layer perceptrons on flattened images."""

    kind: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[PositiveInt, ...], MinLen(1)] = Field((32, 32), description="widths of the hidden layers")
    activations: Annotated[tuple[Activation, ...], MinLen(1)] = ("relu", "tanh", "gelu")

    def architecture(self, size: tuple[int, int, int], classes: int) -> Architecture:
        return Architecture(1, 1, (math.prod(size), *self.hidden, classes), kernel=1)


class Draw(NamedTuple):
    """The hyper-parameters of a run; each is a column of the zoo."""

    activation: Activation
    optimizer: Optimizer
    learning_rate: float
    l2: float
    dropout: float
    initializer: Init
    init_std: float
    train_fraction: float


def generator(recipe: ClassifierRecipe, run: int, stream: int) -> np.random.Generator:
    """Random numbers of a run, a function of (seed, run, stream)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([recipe.seed, run, stream])))


def draw(recipe: ClassifierRecipe, run: int) -> Draw:
    """The hyper-parameters of a run."""
    random = generator(recipe, run, DRAW)

    def log_uniform(limits: tuple[float, float]) -> float:
        return float(math.exp(random.uniform(math.log(limits[0]), math.log(limits[1]))))

    def choice(options: tuple[Any, ...]) -> Any:
        return options[int(random.integers(len(options)))]

    return Draw(
        activation=choice(recipe.activations),
        optimizer=choice(recipe.optimizers),
        learning_rate=log_uniform(recipe.learning_rate),
        l2=log_uniform(recipe.l2),
        dropout=float(random.uniform(*recipe.dropout)),
        initializer=choice(recipe.initializers),
        init_std=log_uniform(recipe.init_std),
        train_fraction=choice(recipe.train_fractions),
    )


def initial_row(architecture: Architecture, drawn: Draw, random: np.random.Generator) -> np.ndarray:
    """A fresh network, float32 ``[P]``; biases are zero.

    ``glorot_normal`` and ``he_normal`` have the variance 2 / (fan_in + fan_out) and 2 / fan_in, without the tails
    beyond two deviations; ``truncated_normal`` is cut there too; ``orthogonal`` is of ``[out, in · cells]``.
    """
    parts = []
    for shape in architecture.shapes:
        if len(shape) == 1:
            parts.append(np.zeros(shape))
            continue
        cells = math.prod(shape[2:])
        fan_in, fan_out = shape[1] * cells, shape[0] * cells
        match drawn.initializer:
            case "orthogonal":
                parts.append(_orthogonal(shape[0], fan_in, random).ravel())
            case "normal":
                parts.append(drawn.init_std * random.standard_normal(math.prod(shape)))
            case "truncated_normal":
                parts.append(drawn.init_std * _truncated(math.prod(shape), random))
            case "glorot_normal" | "he_normal":
                variance = 2 / (fan_in + fan_out) if drawn.initializer == "glorot_normal" else 2 / fan_in
                scale = math.sqrt(variance) / DEVIATION_OF_TRUNCATED
                parts.append(scale * _truncated(math.prod(shape), random))
    return np.concatenate(parts).astype(np.float32)


def _truncated(count: int, random: np.random.Generator) -> np.ndarray:
    values = random.standard_normal(count)
    while (far := np.abs(values) > 2).any():
        values[far] = random.standard_normal(int(far.sum()))
    return values


def _orthogonal(rows: int, columns: int, random: np.random.Generator) -> np.ndarray:
    """Orthonormal rows, or columns where there are fewer, uniformly distributed."""
    q, r = np.linalg.qr(random.standard_normal((max(rows, columns), min(rows, columns))))
    q = q * np.sign(np.diag(r))
    return q if rows >= columns else q.T
