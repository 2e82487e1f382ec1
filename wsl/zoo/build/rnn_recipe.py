"""What a zoo of recurrent networks is made of: the recipe, and the networks drawn from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval, MinLen
from pydantic import Field

from wsl.config import Strict
from wsl.ranges import PositiveInt, Rate
from wsl.zoo.build.draws import Checkpoints, Range, Seed, generator_of, log_uniform


class RNNRecipe(Strict):
    """How a zoo of GRU sequence-to-sequence networks that add numbers is made ("Tiny RNN Zoo").

    Published: operands of up to five digits, 128 hidden neurons, learning rate log-uniform in [1e-4, 1e-2], batches of
    64, 128 or 256; steps, optimiser and size of the data were not.
    """

    kind: Literal["rnn"] = "rnn"
    digits: Annotated[int, Interval(ge=1, le=3)] = Field(2, description="operands have at most this many digits")
    held_out: Annotated[float, Interval(gt=0, lt=1)] = Field(
        0.1, description="share of all pairs of operands that networks are tested on"
    )
    runs: PositiveInt = Field(320, description="networks trained")
    hidden: PositiveInt = Field(128, description="neurons of the encoder's and of the decoder's state")
    learning_rate: Range = Field((1e-4, 1e-2), description="of Adam, log-uniform between these")
    batch_sizes: Annotated[tuple[PositiveInt, ...], MinLen(1)] = Field((64, 128, 256), description="one for each run")
    checkpoints: Checkpoints = Field((2000,), description="a row is kept after each of these; the last ends")
    val_share: Rate = Field(0.1, description="of the runs")
    test_share: Rate = Field(0.2, description="of the runs")
    seed: Seed = Field(0, description="of init, draws, batches and splits")
    block: PositiveInt = Field(16, description="networks trained, and kept in case of a crash, at a time")


@dataclass(frozen=True)
class DrawnRNN:
    """One training run: Adam's learning rate, the batch size, and the seed of its first weights."""

    learning_rate: float
    batch_size: int
    init_seed: int


def draw_rnn(recipe: RNNRecipe, number: int) -> DrawnRNN:
    """The network of this number, a function of (seed, number) alone."""
    rng = generator_of(recipe.seed, number)
    rate, batch = log_uniform(recipe.learning_rate, rng), int(rng.choice(recipe.batch_sizes))
    return DrawnRNN(rate, batch, int(rng.integers(2**62)))
