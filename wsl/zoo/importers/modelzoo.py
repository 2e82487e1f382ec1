"""Folders as in "Model Zoos: A Dataset of Diverse Populations of Neural Network Models" (Schürholt et al.).

    {zoo}/{run}/checkpoint_{epoch}/checkpoints      a state dict module_list.0.weight, …, saved by Ray Tune
    {zoo}/{run}/result.json                         one JSON object on a line for each epoch, with the run's config

Architectures are those that ``model::type`` names: MLP, and three CNNs whose layers are separated by pooling as below.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from wsl.trace import TraceError
from wsl.zoo.importers import splits
from wsl.zoo.importers.networks import ACTIVATIONS, Architecture, Conv, spec_of
from wsl.zoo.importers.source import (
    LARGEST_JSON,
    FaultyNetworkError,
    Network,
    Source,
    load,
    numbered,
    relative,
    row_of,
    state_of,
)
from wsl.zoo.layout import ZooError

#: model::type → side of the images, and after which convolutions a 2×2 max pool stands
POOLS: dict[str, tuple[int, tuple[bool, ...]]] = {
    "CNN": (28, (True, True, False)),
    "CNN2": (28, (True, True, False)),
    "CNN3": (32, (True, True, True)),
}
MEASURED = {"test_acc": "test_accuracy", "test_loss": "test_loss"}
TRAINED = {"train_acc": "train_accuracy", "train_loss": "train_loss"}  # −999 in the line of epoch 0: left out with it


def modelzoo(
    folder: Path, epochs: Sequence[int] | None = None, val: float = 0.15, test: float = 0.15, seed: int = 0
) -> Source:
    """One zoo.

    Args:
        folder: holds the folders of the runs.
        epochs: the checkpoints to take; None: the last one of each run. With epoch 0 there are no columns of the
            training set, which was not measured then.
        val, test: runs to validate and to test on (a share, or a number), drawn with ``seed``: no split was published.

    Raises:
        ZooError: if no run has such a checkpoint.
    """
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob("*/checkpoint_*/checkpoints")):
        if (number := re.fullmatch(r"checkpoint_(\d+)", path.parent.name)) is not None:
            found.setdefault(path.parent.parent.name, {})[int(number[1])] = path
    chosen = [
        (run, epoch, path)
        for run, held in found.items()
        for epoch, path in held.items()
        if (epoch == max(held) if epochs is None else epoch in epochs)
    ]
    if not chosen:
        raise ZooError(f"{folder}: holds no {{run}}/checkpoint_{{epoch}}/checkpoints of epochs {epochs or 'any'}")
    runs = [run for run, _, _ in chosen]
    paths = [path for _, _, path in chosen]
    missing = [f"{run}/checkpoint_{e}" for run, held in found.items() for e in epochs or () if e not in held]
    run_ids = numbered(runs)
    metrics = MEASURED if any(epoch == 0 for _, epoch, _ in chosen) else MEASURED | TRAINED
    return Source(
        root=folder,
        recipe={
            "reference": "Schürholt et al. 2022, Model Zoos: A Dataset of Diverse Populations of Neural Network Models",
            "licence": "CC-BY 4.0 where the set itself says nothing else",
            "epochs": list(epochs) if epochs else "the last of each run",
            "split": splits.told(val, test, seed),
        },
        names=relative(folder, paths),
        read=lambda number: _read(paths[number], chosen[number][1], metrics),
        run_ids=run_ids,
        splits=splits.drawn(run_ids, val, test, seed),
        columns={"run": np.array(runs), "epoch": np.array([epoch for _, epoch, _ in chosen], dtype=np.int64)},
        missing=missing,
    )


def _read(path: Path, epoch: int, metrics: Mapping[str, str]) -> Network:
    results = _results(path.parent.parent / "result.json")
    if epoch not in results:
        raise FaultyNetworkError(f"{path}: result.json has no line with training_iteration {epoch}")
    result = results[epoch]
    state = state_of(path, load(path))
    try:
        columns = {ours: float(result[theirs]) for theirs, ours in metrics.items()}
        spec = spec_of(_architecture(result["config"], state))
        return Network(spec, row_of(spec, state), columns)
    except (FaultyNetworkError, TraceError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FaultyNetworkError(f"{path}: does not fit its config ({error})") from error


@lru_cache(maxsize=4)
def _results(path: Path) -> dict[int, Any]:
    """The lines of result.json by epoch."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise FaultyNetworkError(f"{path}: {path.stat().st_size} bytes are no list of results")
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {int(line["training_iteration"]): line for line in lines}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, FaultyNetworkError):
            raise
        raise FaultyNetworkError(f"{path}: missing or damaged ({error!r}); download the run again") from error


def _architecture(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Architecture:
    kind, activation = config["model::type"], str(config.get("model::nlin", "leakyrelu")).lower()
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}")
    weights = {name.removesuffix(".weight"): tensor.shape for name, tensor in state.items() if name.endswith(".weight")}
    kernels = [shape for shape in weights.values() if len(shape) == 4]
    linears = tuple((shape[1], shape[0]) for shape in weights.values() if len(shape) == 2)
    if len(kernels) + len(linears) != len(weights) or not linears:
        raise ValueError(f"weights of the shapes {[list(shape) for shape in weights.values()]}")
    side, pools = POOLS.get(kind, (0, ()))
    if (kind != "MLP" and kind not in POOLS) or len(pools) != len(kernels):
        raise ValueError(
            f"model::type {kind!r} with {len(kernels)} convolutions is not known; known: MLP, {', '.join(POOLS)}. "
            "Import the folder with the format 'folder' and hints"
        )
    convs = tuple(
        Conv(shape[1], shape[0], shape[2], ACTIVATIONS[activation], pool=2 * pool)
        for shape, pool in zip(kernels, pools, strict=True)
    )
    return Architecture(convs, linears, tuple(weights), ACTIVATIONS[activation], side or 32, flatten=True)
