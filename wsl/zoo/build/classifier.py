"""Zoos of small image classifiers: runs with hyper-parameters of their own, kept along training with their accuracy."""

from __future__ import annotations

import functools
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import wsl
from wsl.batch import WeightBatch
from wsl.execute import execute
from wsl.spec import WeightSpec, mlp_spec
from wsl.trace import trace
from wsl.verify import verify
from wsl.zoo.build.classifier_fit import (
    MEASURED,
    Architecture,
    LabelledImages,
    Training,
    default_kernel,
    train,
)
from wsl.zoo.build.classifier_recipe import (
    IMAGES,
    INIT,
    ORDER,
    RUNS,
    SPLIT,
    CNNRecipe,
    Draw,
    MLPRecipe,
    draw,
    generator,
    initial_row,
)
from wsl.zoo.build.inr_recipe import interleaved
from wsl.zoo.build.job import Arrays, Job, Shown
from wsl.zoo.images import Images, load_images
from wsl.zoo.layout import ZooError

Recipe = CNNRecipe | MLPRecipe
IMAGES_AT_ONCE = 512  # when networks are run again
MODULES: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
CONVENTION = (
    "pixels uint8 / 127.5 - 1, colours averaged if images.greyscale; convolutions without padding, each followed by "
    "its activation, the mean over positions, a linear layer (mlp: linear layers of the flattened image); accuracy and "
    "mean cross-entropy over the run's own training images and over all test images"
)


def classifier_job(recipe: Recipe) -> Job:
    """The networks of a recipe: the checkpoints of run 0, those of run 1, and so on.

    Raises:
        ZooError: if images cannot be read, are too few, or too small for the convolutions.
    """
    images, test, digests = labelled_images(recipe)
    classes = int(max(images.labels.max(), test.labels.max())) + 1
    architecture = recipe.architecture(images.pixels.shape[1:], classes)
    draws = [draw(recipe, run) for run in range(recipe.runs)]
    _check(recipe, architecture, len(images.labels), draws)
    flat = (-1, architecture.height, architecture.width, architecture.channels[0])
    images, test = (LabelledImages(part.pixels.reshape(flat), part.labels) for part in (images, test))
    each, kernel = len(recipe.checkpoints), default_kernel()
    run_ids = np.repeat(np.arange(recipe.runs), each)
    used = [name for name in MODULES if any(drawn.activation == name for drawn in draws)]
    columns = {name: np.array([getattr(drawn, name) for drawn in draws])[run_ids] for name in Draw._fields}
    blocks = [range(start, min(start + recipe.block, recipe.runs)) for start in range(0, recipe.runs, recipe.block)]

    def fit(block: range) -> Arrays:
        runs = range(block.start // each, block.stop // each)
        trainings = [training_of(recipe, architecture, run, draws[run], len(images.labels)) for run in runs]
        found = train(architecture, trainings, images, test, recipe.checkpoints, kernel)
        return _block([one.rows for one in found], [one.measured for one in found])

    return Job(
        description={
            "config": recipe.model_dump(mode="json"),
            "convention": CONVENTION,
            "input_shape": [images.pixels.shape[3], *images.pixels.shape[1:3]],
            "kernel": kernel,
            "source_sha256": digests,
            "torch": torch.__version__,
            "wsl": wsl.__version__,
        },
        specs=[spec_of(architecture, recipe.kind, activation) for activation in used],
        spec_ids=np.array([used.index(drawn.activation) for drawn in draws])[run_ids],
        blocks=[range(runs.start * each, runs.stop * each) for runs in blocks],
        fit=fit,
        measured=MEASURED,
        columns=columns | {"epoch": np.tile(np.array(recipe.checkpoints, dtype=np.int64), recipe.runs)},
        run_ids=run_ids,
        splits={name: np.flatnonzero(np.isin(run_ids, runs)) for name, runs in _split_runs(recipe).items()},
        shown=Shown("test_accuracy", "mean test accuracy {:.3f}"),
    )


def labelled_images(recipe: Recipe) -> tuple[LabelledImages, LabelledImages, dict[str, str]]:
    """Training images and test images as the networks read them, and the digests of the files.

    Raises:
        ZooError: if a file cannot be read, the two differ in size, or nothing is left to train or to test on.
    """
    files = [load_images(name) for name in (recipe.images.train, recipe.images.test) if name is not None]
    digests = {name: file.digest for name, file in zip(("train", "test"), files, strict=False)}
    if len(files) == 2:
        if files[0].size != files[1].size:
            raise ZooError(f"{files[1].name}: images are {files[1].size}, those of {files[0].name} {files[0].size}")
        return _read(files[0], recipe), _read(files[1], recipe), digests
    (file,) = files
    if not 0 < recipe.test_images < len(file):
        raise ZooError(
            f"{file.name}: {len(file)} images and no test file; zoo.test_images={recipe.test_images} should be above 0 "
            "and leave some to train on"
        )
    order = interleaved(file.labels, generator(recipe, SPLIT, IMAGES))
    parts = np.sort(order[recipe.test_images :]), np.sort(order[: recipe.test_images])
    train, test = (_read(Images(file.pixels[part], file.labels[part], file.name), recipe) for part in parts)
    return train, test, digests


def _read(file: Images, recipe: Recipe) -> LabelledImages:
    pixels = file.pixels.astype(np.float32) / np.float32(127.5) - 1
    if recipe.images.greyscale:
        pixels = pixels.mean(3, keepdims=True, dtype=np.float32)
    return LabelledImages(pixels, file.labels.astype(np.int32))


def _check(recipe: Recipe, architecture: Architecture, images: int, draws: list[Draw]) -> None:
    if min(min(sides) for sides in architecture.sides) < 1:
        raise ZooError(
            f"images of {architecture.height} × {architecture.width} shrink to {architecture.sides[-1]} in "
            f"{len(architecture.channels) - 2} convolutions; lower zoo.stride or zoo.kernel, or remove channels"
        )
    smallest = int(images * min(drawn.train_fraction for drawn in draws))
    if smallest < recipe.batch_size:
        raise ZooError(
            f"zoo.train_fractions leave {smallest} of {images} training images; lower zoo.batch_size="
            f"{recipe.batch_size}"
        )


def training_of(recipe: Recipe, architecture: Architecture, run: int, drawn: Draw, images: int) -> Training:
    """Everything that the training of a run depends on, a function of (recipe, run)."""
    used = generator(recipe, run, IMAGES).permutation(images)[: int(images * drawn.train_fraction)].astype(np.int32)
    random = generator(recipe, run, ORDER)
    steps = len(used) // recipe.batch_size
    epochs = [random.permutation(used)[: steps * recipe.batch_size] for _ in range(recipe.checkpoints[-1])]
    order = np.array(epochs, dtype=np.int32).reshape(-1, steps, recipe.batch_size)
    start = initial_row(architecture, drawn, generator(recipe, run, INIT))
    settings = (drawn.activation, drawn.optimizer, drawn.learning_rate, drawn.l2, drawn.dropout)
    return Training(start, order, used, *settings, key=int(random.integers(2**32)))


def _block(rows: list[np.ndarray], measured: list[np.ndarray]) -> Arrays:
    """The arrays of a block; a network whose loss is not finite has diverged, and its row says so."""
    values, numbers = np.concatenate(rows), np.concatenate(measured)
    values[~np.isfinite(numbers).all(1)] = np.nan
    return {"values": values} | {name: numbers[:, k].astype(np.float32) for k, name in enumerate(MEASURED)}


def _split_runs(recipe: Recipe) -> dict[str, np.ndarray]:
    order = generator(recipe, SPLIT, RUNS).permutation(recipe.runs)
    val, test = (round(recipe.runs * share) for share in (recipe.val_share, recipe.test_share))
    found = {"train": order[val + test :], "val": order[:val], "test": order[val : val + test]}
    return {name: runs for name, runs in found.items() if len(runs)}


@functools.cache
def spec_of(architecture: Architecture, kind: str, activation: str) -> WeightSpec:
    """The verified spec of the networks with one activation."""
    if kind == "mlp":
        return verify(mlp_spec(architecture.channels, activation))
    layers: list[nn.Module] = []
    *_, last, classes = architecture.channels
    for n_in, n_out in pairwise(architecture.channels[:-1]):
        layers += [nn.Conv2d(n_in, n_out, architecture.kernel, architecture.stride), MODULES[activation]()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes)]
    example = torch.zeros(2, architecture.channels[0], architecture.height, architecture.width)
    return trace(nn.Sequential(*layers), example)


@torch.no_grad()
def measured_again(recipe: Recipe, batch: WeightBatch, run_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Test accuracy and test loss of networks, from their spec and weights and the recipe's images.

    Raises:
        ZooError: if the images cannot be read.
    """
    _, test, _ = labelled_images(recipe)
    inputs = torch.from_numpy(test.pixels).to(batch.values)
    inputs = inputs.flatten(1) if recipe.kind == "mlp" else inputs.movedim(-1, 1)
    labels = torch.from_numpy(test.labels).long()
    right, loss = torch.zeros(2, len(batch), dtype=torch.float64)
    for part, label in zip(inputs.split(IMAGES_AT_ONCE), labels.split(IMAGES_AT_ONCE), strict=True):
        logits = execute(batch, part).double()
        right += (logits.argmax(2) == label).sum(1)
        each = F.cross_entropy(logits.flatten(0, 1), label.repeat(len(batch)), reduction="none")
        loss += each.reshape(len(batch), -1).sum(1)
    return {"test_accuracy": (right / len(labels)).numpy(), "test_loss": (loss / len(labels)).numpy()}
