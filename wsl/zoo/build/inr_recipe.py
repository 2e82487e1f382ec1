"""What a zoo of INRs is made of: the recipe, and the networks that follow from it and the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Interval, MinLen
from pydantic import Field, model_validator

from wsl.config import Strict
from wsl.ranges import NonNegativeInt, PositiveFloat, PositiveInt
from wsl.zoo.build.siren_fit import Convention, Siren
from wsl.zoo.images import Images
from wsl.zoo.layout import ZooError

TRAIN, TEST = 0, 1  # which file an image comes from
SPLIT_STREAM, LIMIT_STREAM = 2, 3  # with the seed, the streams of random numbers that do not belong to a network


class Sources(Strict):
    """Where the images are."""

    train: str = Field(description="`digits`, or an .npz or IDX file: images to train and validate on")
    test: str | None = Field(description="the file of test images; null: test images are held out of `train`")
    greyscale: bool = Field(False, description="reduce colour images to one channel")


class SharedStart(Strict):
    """How a start that all networks of a view share is learned (see :mod:`wsl.zoo.build.shared_start`)."""

    images: PositiveInt = Field(64, description="training images fitted in a round")
    rounds: PositiveInt = Field(50, description="moves of the start")
    steps: PositiveInt = Field(32, description="updates of each fit")
    rate: Annotated[float, Interval(gt=0, le=1)] = Field(1.0, description="of the first move, towards the mean")


class INRRecipe(Strict):
    """How a zoo of SIRENs, one for each view of each image, is made. The defaults are those of the published sets."""

    kind: Literal["inr"] = "inr"
    images: Sources
    limit: PositiveInt | None = Field(None, description="use a random subset of this many images (null: all)")
    hidden: Annotated[tuple[PositiveInt, ...], MinLen(1)] = Field((32, 32), description="widths of the sine layers")
    convention: Convention = Field("dwsnets", description="of the start and of the pixels' range: whose published sets")
    shared_start: SharedStart | None = Field(None, description="learn one start for all images; null: each has its own")
    omega: PositiveFloat = Field(30.0, description="ω in h = sin(ω z), in every layer and in the init")
    output_offset: float = Field(0.5, description="added to the output, so that a fresh network draws mid-grey")
    learning_rate: PositiveFloat = Field(5e-4, description="of Adam")
    steps: PositiveInt = Field(1000, description="updates at most; every update sees the whole image")
    stop_psnr: PositiveFloat | None = Field(40.0, description="a network is done at this PSNR in dB (null: never)")
    views: PositiveInt = Field(1, description="networks for each training image, each with its own random init")
    val_images: NonNegativeInt = Field(5000, description="validation images, held out of the training file by label")
    test_images: NonNegativeInt = Field(0, description="the same for test images, where there is no test file")
    seed: Annotated[int, Interval(ge=0, lt=2**32)] = Field(0, description="of init, splits and subset")
    block: Annotated[int, Ge(1)] = Field(32, description="networks fitted, and kept in case of a crash, at a time")

    @model_validator(mode="after")
    def _offset_fits(self) -> INRRecipe:
        if self.convention == "nfn" and self.output_offset:
            raise ValueError(f"output_offset={self.output_offset}: convention=nfn has none; set output_offset=0.0")
        return self

    @property
    def pixel_range(self) -> tuple[float, float]:
        """What black and white are for the networks."""
        return (0.0, 1.0) if self.convention == "dwsnets" else (-1.0, 1.0)

    def targets(self, pixels: np.ndarray) -> np.ndarray:
        """Images uint8 ``[n, height, width, channels]`` as networks draw them, float32 ``[n, N, channels]``."""
        low, high = self.pixel_range
        unit = pixels.reshape(len(pixels), -1, pixels.shape[3]).astype(np.float32) / np.float32(255)
        return unit if (low, high) == (0, 1) else np.float32(low) + np.float32(high - low) * unit

    def siren(self, channels: int) -> Siren:
        return Siren((2, *self.hidden, channels), self.omega, self.output_offset)

    @property
    def stop_mse(self) -> float:
        """The error of ``stop_psnr``: PSNR = −10 log₁₀ MSE for pixels in [0, 1]."""
        return 0.0 if self.stop_psnr is None else 10 ** (-self.stop_psnr / 10)


@dataclass(frozen=True)
class Plan:
    """The images chosen, and the networks to fit to them, row by row.

    Attributes:
        pixels: uint8 ``[n_images, height, width, channels]``; labels: int64 ``[n_images]``.
        source: int64 ``[n_images]``, 0 from the training file, 1 from the test file; source_index: position there.
        image, view: int64 ``[rows]``.
        splits: train, val, test → rows; an empty split is left out.
        digests: SHA-256 of the source files' content.
    """

    pixels: np.ndarray
    labels: np.ndarray
    source: np.ndarray
    source_index: np.ndarray
    image: np.ndarray
    view: np.ndarray
    splits: dict[str, np.ndarray]
    digests: dict[str, Any]

    def __len__(self) -> int:
        return len(self.image)

    def seeds(self, recipe: INRRecipe, rows: np.ndarray) -> list[tuple[int, int, int, int]]:
        """What the init of each row is a function of: seed, source, position of the image there, view."""
        image = self.image[rows]
        columns = (self.source[image].tolist(), self.source_index[image].tolist(), self.view[rows].tolist())
        return [(recipe.seed, *key) for key in zip(*columns, strict=True)]


def plan(recipe: INRRecipe, train: Images, test: Images | None) -> Plan:
    """Choose images and splits.

    Raises:
        ZooError: if the two files hold images of different sizes, or the splits leave nothing to train on.
    """
    if test is not None and test.size != train.size:
        raise ZooError(
            f"{test.name}: images are {test.size} (height, width, channels), those of {train.name} {train.size}; "
            "give files of one size, or set zoo.images.greyscale=true"
        )
    files = [train] if test is None else [train, test]
    total = sum(map(len, files))
    share = min(1.0, (recipe.limit or total) / total)
    chosen = [_subset(recipe, number, len(file), share) for number, file in enumerate(files)]
    labels = np.concatenate([file.labels[index] for file, index in zip(files, chosen, strict=True)])
    source = np.repeat([TRAIN, TEST][: len(files)], [len(index) for index in chosen])
    split = _split(recipe, labels, source, share, train.name)
    views = np.where(split == "train", recipe.views, 1)
    image = np.repeat(np.arange(len(labels)), views)
    view = np.arange(len(image)) - np.repeat(views.cumsum() - views, views)
    names = [name for name in ("train", "val", "test") if (split == name).any()]
    return Plan(
        pixels=np.concatenate([file.pixels[index] for file, index in zip(files, chosen, strict=True)]),
        labels=labels,
        source=source,
        source_index=np.concatenate(chosen),
        image=image,
        view=view,
        splits={name: np.flatnonzero(split[image] == name) for name in names},
        digests={name: file.digest for name, file in zip(("train", "test"), files, strict=False)},
    )


def _subset(recipe: INRRecipe, number: int, size: int, share: float) -> np.ndarray:
    """Positions of the images used of a file, rising; a smaller subset is part of a larger one."""
    if share >= 1:
        return np.arange(size)
    generator = np.random.default_rng([recipe.seed, LIMIT_STREAM, number])
    return np.sort(generator.permutation(size)[: max(1, round(size * share))])


def _split(recipe: INRRecipe, labels: np.ndarray, source: np.ndarray, share: float, name: str) -> np.ndarray:
    """The split of each image; held-out images have the labels in the proportions of the file."""
    split = np.where(source == TEST, "test", "train").astype("<U5")
    generator = np.random.default_rng([recipe.seed, SPLIT_STREAM])
    held_out = [("val", recipe.val_images)]
    if not (source == TEST).any():
        held_out.append(("test", recipe.test_images))
    wanted = {split_name: round(count * share) for split_name, count in held_out}
    available = np.flatnonzero(split == "train")
    if sum(wanted.values()) >= len(available):
        raise ZooError(
            f"{name}: {len(available)} images, of which zoo.val_images and zoo.test_images hold out {wanted}; "
            "none is left to train on: lower them"
        )
    by_label = interleaved(labels[available], generator)
    start = 0
    for split_name, count in wanted.items():
        split[available[by_label[start : start + count]]] = split_name
        start += count
    return split


def interleaved(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random order in which every stretch has the labels in about the proportions of the whole."""
    shuffled = generator.permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        place[members] = (np.arange(len(members)) + generator.random()) / len(members)
    return np.argsort(place, kind="stable")
