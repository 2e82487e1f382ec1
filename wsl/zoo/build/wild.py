"""Zoos of varied CNNs ("CNN Wild Park"), with checkpoints along training as rows and measured accuracies as labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

import wsl
from wsl.batch import WeightBatch
from wsl.execute import execute
from wsl.verify import verify
from wsl.zoo.build.adamw import AdamW
from wsl.zoo.build.draws import epoch_order
from wsl.zoo.build.image_task import ImageTask, image_task, split_of_runs
from wsl.zoo.build.job import Arrays, Job, Shown
from wsl.zoo.build.wild_cnn import NO_SKIP
from wsl.zoo.build.wild_fit import WildNetworks, losses
from wsl.zoo.build.wild_recipe import DrawnNetwork, WildParkRecipe, draw_network

__all__ = ["WildParkRecipe", "wild_park_job"]

CONVENTION = (
    "layer i: activation(conv(x) + the first min(c_source, c_i) channels of the output of layer skip_i); stride 1, "
    "zero padding that keeps the size; mean over pixels, linear layer; pixels / 255, standardised with the training "
    "images' mean and standard deviation of each channel; accuracies are shares of all training and all test images, "
    "measured after training up to `epoch`"
)
IMAGES_AT_ONCE = 512  # when networks are run again
MEASURED = ("test_accuracy", "train_accuracy", "test_loss", "train_loss")


def wild_park_job(recipe: WildParkRecipe) -> Job:
    """The networks of a recipe, row by row: run after run, each with its checkpoints.

    Raises:
        ZooError: if images cannot be read, or the splits leave nothing to train on.
    """
    task = _task_of(recipe)
    networks = [draw_network(recipe, number, task.input_shape[0], task.classes) for number in range(recipe.runs)]
    numbers = {cnn: number for number, cnn in enumerate(dict.fromkeys(network.cnn for network in networks))}
    epochs = recipe.checkpoints
    run = np.repeat(np.arange(len(networks)), len(epochs))
    splits = split_of_runs(len(networks), recipe.val_share, recipe.test_share, recipe.seed)
    images = torch.randn(2, *task.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = recipe.block * len(epochs)
    return Job(
        description={
            "config": recipe.model_dump(mode="json"),
            "convention": CONVENTION,
            "input_shape": task.input_shape,
            "source_sha256": task.digests,
            "torch": torch.__version__,
            "wsl": wsl.__version__,
        },
        specs=[verify(cnn.spec(), inputs=images) for cnn in numbers],
        spec_ids=np.array([numbers[network.cnn] for network in networks])[run],
        blocks=[range(start, min(start + step, len(run))) for start in range(0, len(run), step)],
        fit=lambda rows: train(recipe, task, networks[run[rows.start] : run[rows.stop - 1] + 1]),
        measured=MEASURED,
        columns={"epoch": np.tile(epochs, len(networks))} | {k: v[run] for k, v in _columns(recipe, networks).items()},
        run_ids=run,
        splits={name: np.flatnonzero(np.isin(run, members)) for name, members in splits.items()},
        shown=Shown("test_accuracy", "mean test accuracy {:.2f}"),
    )


def train(recipe: WildParkRecipe, task: ImageTask, drawn: Sequence[DrawnNetwork]) -> Arrays:
    """Train these networks together; the weights, losses and accuracies of each at every checkpoint.

    All networks see the same images in the same order. On a GPU, if there is one.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = task.to(device)
    rows = torch.from_numpy(np.concatenate([network.start for network in drawn])).to(device)
    networks = WildNetworks([network.cnn for network in drawn], rows)
    rates, decays = (
        torch.tensor([getattr(network, name) for network in drawn], device=device)[networks.owner]
        for name in ("learning_rate", "weight_decay")
    )
    optimizer = AdamW(networks.parameters, rates, decays)
    found: list[tuple[np.ndarray, ...]] = []
    for epoch in range(recipe.checkpoints[-1] + 1):
        if epoch in recipe.checkpoints:
            test = networks.scores(task.test, task.test_labels)
            seen = networks.scores(task.train, task.train_labels)
            found.append((networks.rows.cpu().numpy(), test.accuracy, seen.accuracy, test.loss, seen.loss))
        if epoch < recipe.checkpoints[-1]:
            order = epoch_order(recipe.seed, epoch, len(task.train)).to(device)
            for batch in order.split(recipe.batch_size):
                losses(networks.logits(task.train[batch]), task.train_labels[batch]).sum().backward()
                optimizer.step()
    values, *measured = zip(*found, strict=True)
    ends = np.cumsum([len(network.start) for network in drawn])[:-1]
    by_checkpoint = [np.split(checkpoint, ends) for checkpoint in values]
    in_rows = [checkpoint[number] for number in range(len(drawn)) for checkpoint in by_checkpoint]
    columns = {name: np.stack(column, 1).ravel() for name, column in zip(MEASURED, measured, strict=True)}
    return {"values": np.concatenate(in_rows)} | columns


@torch.no_grad()
def measured_again(recipe: WildParkRecipe, batch: WeightBatch, run_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Test accuracy and loss of networks on the recipe's images, from their spec and weights.

    Raises:
        ZooError: if the images cannot be read.
    """
    task = _task_of(recipe)
    right, loss = torch.zeros(2, len(batch), dtype=torch.float64)
    for x, y in zip(task.test.split(IMAGES_AT_ONCE), task.test_labels.split(IMAGES_AT_ONCE), strict=True):
        logits = execute(batch, x.to(batch.values))
        right += (logits.argmax(2) == y).sum(1)
        loss += losses(logits.double(), y) * len(y)
    return {"test_accuracy": (right / len(task.test)).numpy(), "test_loss": (loss / len(task.test)).numpy()}


@lru_cache(maxsize=1)
def _task_of(recipe: WildParkRecipe) -> ImageTask:
    return image_task(recipe.images, recipe.test_images, recipe.limit, recipe.seed)


def _columns(recipe: WildParkRecipe, networks: Sequence[DrawnNetwork]) -> dict[str, np.ndarray]:
    """What each network was drawn to be; entries of layers that it does not have are 0, ``none`` and −1."""
    deepest = max(recipe.depths)

    def of_layers(name: str, filler: object) -> dict[str, np.ndarray]:
        padded = [[*getattr(n.cnn, f"{name}s"), *[filler] * (deepest - n.cnn.depth)] for n in networks]
        return {f"{name}_{layer}": np.array([row[layer] for row in padded]) for layer in range(deepest)}

    columns = {
        "depth": np.array([n.cnn.depth for n in networks]),
        "parameters": np.array([len(n.start) for n in networks]),
        "learning_rate": np.array([n.learning_rate for n in networks]),
        "weight_decay": np.array([n.weight_decay for n in networks]),
    }
    for name, filler in (("width", 0), ("kernel", 0), ("activation", "none"), ("skip", NO_SKIP)):
        columns |= of_layers(name, filler)
    return columns
