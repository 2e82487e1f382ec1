"""Small classifiers for the tests of training: shapes, images, schedules, and the same training in plain PyTorch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wsl.zoo.build.classifier_fit import Architecture, LabelledImages, Training

DIGITS = Architecture(8, 8, (1, 16, 16, 16, 10))
ODD = Architecture(9, 7, (3, 5, 20, 4), kernel=2, stride=2)
MLP = Architecture(1, 1, (13, 24, 9, 5), kernel=1)
ARCHITECTURES = pytest.mark.parametrize("architecture", [DIGITS, ODD, MLP], ids=["digits", "odd", "mlp"])
MODULES = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def images(architecture: Architecture, count: int, dtype: type, seed: int = 0) -> LabelledImages:
    random = np.random.default_rng(seed)
    shape = (count, architecture.height, architecture.width, architecture.channels[0])
    labels = random.integers(0, architecture.channels[-1], count).astype(np.int32)
    return LabelledImages(random.normal(size=shape).astype(dtype), labels)


def trainings(architecture: Architecture, dtype: type, dropout: float = 0.0, epochs: int = 3) -> list[Training]:
    """One for each activation and optimiser; three to five steps of six of 30 of 40 images in an epoch."""
    found = []
    for number, activation in enumerate(MODULES):
        for optimizer, rate in (("sgd", 0.1), ("adam", 1e-2), ("rmsprop", 1e-2)):
            random = np.random.default_rng([number, len(optimizer)])
            used = random.permutation(40)[:30].astype(np.int32)
            order = used[random.integers(0, 30, (epochs, 3 + number, 6))]
            start = (random.normal(size=architecture.numel) * 0.3).astype(dtype)
            found.append(
                Training(start, order, used, activation, optimizer, rate, 1e-3, dropout, key=77 * len(found) + 1)  # type: ignore[arg-type]
            )
    return found


def plain_network(architecture: Architecture, activation: str, row: np.ndarray) -> nn.Sequential:
    """The network as one would write it."""
    layers: list[nn.Module] = []
    *convolutions, last, classes = architecture.channels
    for n_in, n_out in pairwise([*convolutions, last]):
        layers += [nn.Conv2d(n_in, n_out, architecture.kernel, architecture.stride), MODULES[activation]()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes))
    network = network.to(torch.from_numpy(row).dtype)
    nn.utils.vector_to_parameters(torch.from_numpy(row.copy()), network.parameters())
    return network


def plain_training(architecture: Architecture, training: Training, given: LabelledImages, epochs: int) -> np.ndarray:
    """One network, by autograd and torch.optim."""
    network = plain_network(architecture, training.activation, training.start)
    x, y = torch.from_numpy(given.pixels).movedim(-1, 1), torch.from_numpy(given.labels).long()
    optimizer: torch.optim.Optimizer
    match training.optimizer:
        case "sgd":
            optimizer = torch.optim.SGD(network.parameters(), lr=training.learning_rate)
        case "adam":
            optimizer = torch.optim.Adam(network.parameters(), lr=training.learning_rate, eps=1e-7)
        case "rmsprop":
            optimizer = torch.optim.RMSprop(network.parameters(), lr=training.learning_rate, alpha=0.9, eps=1e-7)
    weights = [p for name, p in network.named_parameters() if name.endswith("weight")]
    for batch in torch.from_numpy(training.order[:epochs]).flatten(0, 1).long():
        optimizer.zero_grad()
        penalty = sum((w.square().sum() for w in weights), torch.zeros(()))
        (F.cross_entropy(network(x[batch]), y[batch]) + training.l2 * penalty).backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(network.parameters()).detach().numpy()
