"""What recipes of trained networks draw from: types of their fields, and streams of random numbers."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
from annotated_types import Interval, MinLen
from pydantic import AfterValidator
from torch import Tensor

from wsl.ranges import NonNegativeInt, PositiveFloat

NETWORK_STREAM, ORDER_STREAM = 4, 5  # with the seed: what is drawn for one network, the order of what is learnt from


def _rising(values: tuple[int, ...]) -> tuple[int, ...]:
    if list(values) != sorted(set(values)):
        raise ValueError(f"should rise, is {values}")
    return values


def _range(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound should come first, got {bounds}")
    return bounds


#: lowest and highest value, between which the logarithm is uniform
Range = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_range)]
#: epochs or steps after which a row is kept
Checkpoints = Annotated[tuple[NonNegativeInt, ...], MinLen(1), AfterValidator(_rising)]
Seed = Annotated[int, Interval(ge=0, lt=2**32)]


def generator_of(seed: int, network: int) -> np.random.Generator:
    """All that is drawn for one network is a function of (seed, its number)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, NETWORK_STREAM, network])))


def log_uniform(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    """A number between the bounds whose logarithm is uniform."""
    return math.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1])))


def epoch_order(seed: int, epoch: int, images: int) -> Tensor:
    """The order in which an epoch reads the training images: a function of (seed, epoch)."""
    return torch.from_numpy(np.random.default_rng([seed, ORDER_STREAM, epoch]).permutation(images))


def batch_of(seed: int, step: int, size: int, count: int) -> Tensor:
    """What a step reads, drawn with replacement from ``count``: int64 ``[size]``, a function of (seed, size, step)."""
    return torch.from_numpy(np.random.default_rng([seed, ORDER_STREAM, size, step]).integers(count, size=size))
