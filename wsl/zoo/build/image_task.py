"""What classifiers of a zoo are trained on: standardised images with labels, some of them held out to test on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wsl.zoo.build.inr_recipe import LIMIT_STREAM, SPLIT_STREAM, Sources, interleaved
from wsl.zoo.images import Images, load_images
from wsl.zoo.layout import ZooError


@dataclass(frozen=True)
class ImageTask:
    """Images in [0, 1], standardised by the training images' mean and standard deviation of each channel.

    Attributes:
        train, test: float32 ``[n, channels, height, width]``; train_labels, test_labels: int64 ``[n]``.
        classes: the number of labels.
        digests: SHA-256 of the source files' content.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int
    digests: dict[str, str]

    @property
    def input_shape(self) -> list[int]:
        """Channels, height, width."""
        return list(self.train.shape[1:])

    def to(self, device: torch.device) -> ImageTask:
        tensors = ("train", "train_labels", "test", "test_labels")
        return dataclasses.replace(self, **{name: getattr(self, name).to(device) for name in tensors})


def image_task(sources: Sources, test_images: int, limit: int | None, seed: int) -> ImageTask:
    """Read images, hold out those to test on where there is no file of them, and standardise.

    Args:
        test_images: how many are held out, with the labels in the proportions of the file.
        limit: a random subset of this many training images.
        seed: of both choices.

    Raises:
        ZooError: if files cannot be read, hold images of different sizes, or nothing is left to train on.
    """
    train = load_images(sources.train)
    test = None if sources.test is None else load_images(sources.test)
    digests = {"train": train.digest} | ({} if test is None else {"test": test.digest})
    if test is not None and test.size != train.size:
        raise ZooError(
            f"{test.name}: images are {test.size} (height, width, channels), those of {train.name} {train.size}"
        )
    if sources.greyscale:
        train, test = train.greyscale(), test and test.greyscale()
    if test is None:
        if not 0 < test_images < len(train):
            raise ZooError(f"{train.name}: of {len(train)} images, zoo.test_images={test_images} cannot be held out")
        order = interleaved(train.labels, np.random.default_rng([seed, SPLIT_STREAM]))
        test, train = _subset(train, order[:test_images]), _subset(train, order[test_images:])
    if limit is not None and limit < len(train):
        order = interleaved(train.labels, np.random.default_rng([seed, LIMIT_STREAM]))
        train = _subset(train, order[:limit])
    pixels = train.pixels.reshape(-1, train.size[2]) / 255.0
    mean, std = pixels.mean(0), pixels.std(0)
    if not (std > 0).all():
        raise ZooError(f"{train.name}: all pixels of a channel are the same; nothing can be learnt from such images")
    x, y = (torch.from_numpy(((f.pixels / 255.0 - mean) / std).astype(np.float32)) for f in (train, test))
    labels = [torch.from_numpy(f.labels) for f in (train, test)]
    classes = int(max(f.labels.max() for f in (train, test))) + 1
    x, y = (images.permute(0, 3, 1, 2).contiguous() for images in (x, y))
    return ImageTask(x, labels[0], y, labels[1], classes, digests)


def split_of_runs(runs: int, val_share: float, test_share: float, seed: int) -> dict[str, np.ndarray]:
    """Run numbers of each split, drawn at random; an empty split is left out.

    Raises:
        ZooError: if none is left to train on.
    """
    val, test = round(val_share * runs), round(test_share * runs)
    if val + test >= runs:
        raise ZooError(
            f"zoo.val_share={val_share} and zoo.test_share={test_share} leave none of {runs} runs to train on"
        )
    order = np.random.default_rng([seed, SPLIT_STREAM]).permutation(runs)
    parts = {"train": order[val + test :], "val": order[test : test + val], "test": order[:test]}
    return {name: np.sort(members) for name, members in parts.items() if len(members)}


def _subset(images: Images, index: np.ndarray) -> Images:
    chosen = np.sort(index)
    return Images(images.pixels[chosen], images.labels[chosen], images.name)
