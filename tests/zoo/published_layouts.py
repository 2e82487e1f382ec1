"""Miniature sources in the layouts of the published zoos, written as their authors' code writes them."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn


def siren_state(seed: int, widths: tuple[int, ...] = (2, 4, 3, 1), name: str = "seq.{}") -> dict[str, Tensor]:
    """A state dict of a SIREN in the order of its layers."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        layer = name.format(i) if "linear" not in name or not last else f"net.{i}"
        state[f"{layer}.weight"] = torch.randn(n_out, n_in, generator=generator) * 0.3
        state[f"{layer}.bias"] = torch.randn(n_out, generator=generator) * 0.1
    return state


def run_siren(state: dict[str, Tensor], x: Tensor, offset: float) -> Tensor:
    """The plain forward pass of the published code."""
    tensors = list(state.values())
    for weight, bias in zip(tensors[:-2:2], tensors[1:-2:2], strict=True):
        x = torch.sin(30 * (x @ weight.T + bias))
    return x @ tensors[-2].T + tensors[-1] + offset


# -- DWSNets ----------------------------------------------------------------------------------------------------------


def write_mnist_inrs(folder: Path, train: int = 7, test: int = 3) -> dict[str, dict[str, Tensor]]:
    """mnist-inrs/mnist_png_{training,testing}_{label}_{image}/checkpoints/model_final.pth."""
    states = {}
    for part, count in (("training", train), ("testing", test)):
        for image in range(count):
            name = f"mnist_png_{part}_{image % 10}_{image}/checkpoints/model_final.pth"
            path = folder / "mnist-inrs" / name
            path.parent.mkdir(parents=True)
            states[name] = siren_state(len(states))
            torch.save(states[name], path)
    return states


def mnist_splits(states: dict[str, Any], path: Path) -> dict[str, list[str]]:
    """mnist_splits.json: paths of another machine, labels as text, shuffled."""
    train = [name for name in states if "training" in name]
    random.Random(1).shuffle(train)
    split = {"train": train[:-2], "val": train[-2:], "test": [name for name in states if "testing" in name]}
    content = {
        name: {"path": [f"/elsewhere/dataset/mnist-inrs/{p}" for p in paths], "label": [p.split("_")[3] for p in paths]}
        for name, paths in split.items()
    }
    path.write_text(json.dumps(content))
    return split


def write_fashion_inrs(folder: Path) -> dict[str, dict[str, Any]]:
    """fmnist_inrs/{train,test}/model_{image}.pth with the label inside, and splits.json with lists of paths."""
    states: dict[str, dict[str, Any]] = {}
    for part, count in (("train", 6), ("test", 2)):
        (folder / "fmnist_inrs" / part).mkdir(parents=True)
        for image in range(count):
            name = f"{part}/model_{image}.pth"
            states[name] = {**siren_state(100 + len(states)), "label": (3 * image) % 10}
            torch.save(states[name], folder / "fmnist_inrs" / name)
    train = [name for name in states if name.startswith("train")][::-1]
    split = {"train": train[:4], "val": train[4:], "test": [name for name in states if name.startswith("test")]}
    content = {name: [f"../data/fmnist_inrs/{p}" for p in paths] for name, paths in split.items()}
    (folder / "fmnist_inrs" / "splits.json").write_text(json.dumps(content))
    return states


# -- nfn --------------------------------------------------------------------------------------------------------------


def write_nfn_sirens(folder: Path, images: int = 9, copies: int = 2, train: int = 5) -> dict[tuple[int, int], Any]:
    """randinit_smaller_{digit}s/net{i}.pth for all images, randinit_smaller_aug{k}_{digit}s for training images."""
    states = {}
    for copy in range(1 + copies):
        for image in range(images if copy == 0 else train):
            prefix = "randinit_smaller" if copy == 0 else f"randinit_smaller_aug{copy - 1}"
            path = folder / f"{prefix}_{image % 3}s" / f"net{image}.pth"
            path.parent.mkdir(parents=True, exist_ok=True)
            states[copy, image] = siren_state(1000 * copy + image, name="net.{}.linear")
            torch.save(states[copy, image], path)
    return states


# -- Small CNN Zoo ----------------------------------------------------------------------------------------------------

KERAS = (
    ("sequential/conv2d/bias:0", (2,)), ("sequential/conv2d/kernel:0", (3, 3, 1, 2)),
    ("sequential/conv2d_1/bias:0", (3,)), ("sequential/conv2d_1/kernel:0", (3, 3, 2, 3)),
    ("sequential/dense/bias:0", (4,)), ("sequential/dense/kernel:0", (3, 4)),
)  # fmt: skip
STEPS = (0, 40, 86)


def write_small_cnn_zoo(folder: Path, runs: int = 30) -> dict[str, Any]:
    """weights.npy, metrics.csv.gz, layout.csv and a split file with the stray header line."""
    rng = np.random.default_rng(0)
    sizes = [int(np.prod(shape)) for _, shape in KERAS]
    starts = np.cumsum([0, *sizes])
    rows = runs * len(STEPS)
    weights = rng.normal(0, 0.5, (rows, starts[-1])).astype(np.float32)
    np.save(folder / "weights.npy", weights)
    with (folder / "layout.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["varname", "start_idx", "end_idx", "shape"])
        for (name, shape), start, size in zip(KERAS, starts, sizes, strict=False):
            writer.writerow([name, start, start + size, str(shape)])
    activations = ["relu" if run % 2 else "tanh" for run in range(runs)]
    with gzip.open(folder / "metrics.csv.gz", "wt", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ["", "config.activation", "config.learning_rate", "config.optimizer", "modeldir", "step", "test_accuracy",
             "test_loss", "train_accuracy", "train_loss"]
        )  # fmt: skip
        for row in range(rows):
            run, step = row // len(STEPS), STEPS[row % len(STEPS)]
            writer.writerow([row, activations[run], 0.01, "adam", f"/runs/{run}", step, row / rows, 2.0, 0.5, 1.5])
    order = rng.permutation(rows).tolist()
    (folder / "cifar10_split.csv").write_text("0\n" + "".join(f"{row}\n" for row in order))
    return {"weights": weights, "starts": starts, "activations": activations, "order": order, "rows": rows}


def run_keras(row: np.ndarray, starts: np.ndarray, activation: str, x: Tensor) -> Tensor:
    """The plain network on a row in Keras's layout, images ``[N, 1, H, W]``."""
    part = {
        name: torch.from_numpy(row[start : start + int(np.prod(shape))].reshape(shape))
        for (name, shape), start in zip(KERAS, starts, strict=False)
    }
    act = torch.relu if activation == "relu" else torch.tanh
    for layer in ("conv2d", "conv2d_1"):
        kernel = part[f"sequential/{layer}/kernel:0"].permute(3, 2, 0, 1)
        x = act(torch.nn.functional.conv2d(x, kernel, part[f"sequential/{layer}/bias:0"], stride=2))
    return x.mean((2, 3)) @ part["sequential/dense/kernel:0"] + part["sequential/dense/bias:0"]


# -- CNN Wild Park ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CNNConfig:
    """The class that the park's checkpoints name."""

    n_layers: int
    n_classes: int
    channels: list[int]
    kernel_size: list[int]
    stride: list[int]
    padding: list[int]
    residual: list[int]
    activation: list[str]


class WildCNN(nn.Module):
    """The plain network of a config."""

    def __init__(self, config: CNNConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.layers = nn.ModuleList(
            nn.Conv2d(c[i], c[i + 1], config.kernel_size[i], config.stride[i], config.padding[i])
            for i in range(config.n_layers)
        )
        self.fc = nn.Linear(c[-1], config.n_classes)

    def forward(self, x: Tensor) -> Tensor:
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            "relu": torch.relu, "tanh": torch.tanh, "gelu": nn.functional.gelu, "none": lambda z: z,
            "leaky_relu": nn.functional.leaky_relu, "sigmoid": torch.sigmoid,
        }  # fmt: skip
        seen = []
        for layer, source, name in zip(self.layers, self.config.residual, self.config.activation, strict=True):
            x = layer(x)
            if source >= 0:
                shared = min(seen[source].shape[1], x.shape[1])
                x = x.clone()
                x[:, :shared] += seen[source][:, :shared]
            x = functions[name](x)
            seen.append(x)
        return self.fc(x.mean((2, 3)))


WILD = (
    CNNConfig(2, 4, [3, 4, 3], [3, 5], [1, 1], [1, 2], [-1, -1], ["relu", "tanh"]),
    CNNConfig(3, 4, [3, 4, 2, 3], [3, 3, 5], [1, 1, 1], [1, 1, 2], [-1, -1, 0], ["leaky_relu", "gelu", "none"]),
    CNNConfig(3, 4, [3, 2, 3, 4], [3, 3, 3], [1, 1, 1], [1, 1, 1], [-1, -1, 0], ["tanh", "sigmoid", "tanh"]),
)


def write_wild_park(folder: Path) -> dict[str, WildCNN]:
    """cifar10_zooV2/{run}/checkpoint_{number}/checkpoint.pt; config as a class's object, by OmegaConf, or plain."""
    networks = {}
    for run in range(6):
        config = WILD[run % 3]
        stored: Any = (config, OmegaConf.create(vars(config)), {"model": config, "seed": 1})[run // 2]
        for number in (10, 20):
            torch.manual_seed(100 * run + number)
            network = WildCNN(config)
            name = f"NN_tune_trainable_{run}/checkpoint_{number:06d}/checkpoint.pt"
            path = folder / "cifar10_zooV2" / name
            path.parent.mkdir(parents=True)
            torch.save(
                {
                    "model": network.state_dict(),
                    "optimizer": torch.optim.AdamW(network.parameters()).state_dict(),
                    "config": stored,
                    "iteration": number,
                    "last_result": {"test/acc": run / 10 + number / 100, "date": "2023", "config": {"lr": 1e-3}},
                },
                path,
            )
            networks[name] = network
    split = {"train": (5, 0, 3), "val": (2,), "test": (1, 4)}
    names = {part: [n for run in runs for n in networks if f"_{run}/" in n][::-1] for part, runs in split.items()}
    content = {p: {"path": [f"./cifar10_zooV2/{n}" for n in ns], "score": [0.1] * len(ns)} for p, ns in names.items()}
    (folder / "cnn_park_splits.json").write_text(json.dumps(content))
    return networks


# -- Model Zoos -------------------------------------------------------------------------------------------------------


class ZooCNN(nn.Module):
    """The small CNN of 28×28 images, three convolutions of which two are pooled."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            nn.Conv2d(1, 3, 5), nn.MaxPool2d(2, 2), nn.Tanh(), nn.Conv2d(3, 2, 5), nn.MaxPool2d(2, 2), nn.Tanh(),
            nn.Conv2d(2, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 3),
        ]  # fmt: skip
        self.module_list = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.module_list:
            x = layer(x)
        return x


def write_modelzoo(folder: Path, runs: int = 8) -> dict[str, ZooCNN]:
    """{run}/checkpoint_{epoch}/checkpoints, in both ways of writing the epoch, and result.json."""
    networks = {}
    for run in range(runs):
        place = folder / f"NN_tune_trainable_{run:05d}"
        lines = []
        for epoch in (0, 1, 2):
            torch.manual_seed(10 * run + epoch)
            network = ZooCNN()
            name = f"checkpoint_{epoch}" if run % 2 else f"checkpoint_{epoch:06d}"
            path = place / name / "checkpoints"
            path.parent.mkdir(parents=True)
            torch.save(network.state_dict(), path)
            torch.save({}, path.with_name("optimizer"))
            networks[f"{place.name}/{name}/checkpoints"] = network
            trained = -999 if epoch == 0 else epoch / 3
            line = {"train_loss": trained, "train_acc": trained, "test_loss": 1.0, "test_acc": epoch / 4}
            line |= {"training_iteration": epoch, "config": {"model::type": "CNN", "model::nlin": "tanh"}}
            lines.append(json.dumps(line))
        (place / "result.json").write_text("\n".join(lines) + "\n")
    return networks
