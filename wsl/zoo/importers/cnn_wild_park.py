"""The CNN Wild Park of Kofinas et al., "Graph Neural Networks for Learning Equivariant Representations of …".

    cifar10_zooV2/{run}/checkpoint_{number}/checkpoint.pt     {model, optimizer, config, iteration, last_result}
    cnn_park_splits.json                                      {train, val, test}, each {path, score, step}; by run

``config`` is an object of a class of its own, or of OmegaConf. It is read as an inert record of its fields: neither
class is imported and nothing in the file is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsl.state_dict.files import Inert
from wsl.trace import TraceError
from wsl.zoo.importers import splits
from wsl.zoo.importers.networks import ACTIVATIONS, Architecture, Conv, common_names, spec_of
from wsl.zoo.importers.source import FaultyNetworkError, Network, Source, load, numbered, row_of, state_of
from wsl.zoo.layout import ZooError

PARTS = 3  # of a path that name a checkpoint: run, checkpoint, file
RECORDS = ("omegaconf.", "typing.", "collections.defaultdict")
PLAIN_TYPES = ("builtins.dict", "builtins.list", "builtins.tuple", "builtins.int", "builtins.float", "builtins.str")
FIELDS = ("channels", "kernel_size", "stride", "padding", "residual", "activation", "n_classes")


def cnn_wild_park(
    folder: Path, split_file: Path | None = None, val: float = 25, test: float = 50, seed: int = 42
) -> Source:
    """The park, every checkpoint of every run.

    Args:
        folder: holds the folders of the runs, at any depth.
        split_file: ``cnn_park_splits.json``; None: the one in the folder, else a split by run is drawn.
        val, test: how many runs to draw (a share, or a number). ``seed``: of that.
    """
    held = {splits.tail(path, PARTS): path for path in sorted(folder.glob("**/checkpoint_*/checkpoint.pt"))}
    if not held:
        raise ZooError(f"{folder}: holds no {{run}}/checkpoint_*/checkpoint.pt; give the folder of the runs")
    if split_file is None:
        split_file = next(iter(sorted(folder.glob("**/cnn_park_splits.json"))), None)
    split = {} if split_file is None else splits.published(split_file, PARTS)
    order, positions, missing = splits.arrange(split, held)
    runs = [Path(tail).parts[0] for tail in order]
    run_ids = numbered(runs)
    return Source(
        root=folder,
        recipe={
            "reference": "Kofinas et al. 2024, CNN Wild Park, doi:10.5281/zenodo.12797219",
            "dataset": "CIFAR-10",
            "input_shape": [3, 32, 32],
            "split": split_file.name if split_file else splits.told(val, test, seed),
        },
        names=order,
        read=lambda number: _read(held[order[number]]),
        run_ids=run_ids,
        splits=positions if split_file else splits.drawn(run_ids, val, test, seed),
        columns={"run": np.array(runs)},
        missing=missing,
    )


def _is_record(name: str) -> bool:
    """Classes whose objects a config is made of."""
    return name.endswith(".CNNConfig") or name in PLAIN_TYPES or name.startswith(RECORDS)


def _read(path: Path) -> Network:
    found = load(path, _is_record)
    try:
        config, result = plain(found["config"]), found["last_result"]
        config = config if "channels" in config else plain(config["model"])
        columns = {"test_accuracy": float(result["test/acc"]), "step": int(found["iteration"])}
        architecture = _architecture({name: config[name] for name in FIELDS})
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FaultyNetworkError(f"{path}: lacks or garbles {error}") from error
    columns |= {"depth": len(architecture.convs)}
    try:
        spec = spec_of(architecture)
        return Network(spec, row_of(spec, state_of(path, found["model"])), columns)
    except (FaultyNetworkError, TraceError, RuntimeError, KeyError) as error:
        raise FaultyNetworkError(f"{path}: the weights do not fit the config ({error})") from error


def _architecture(config: Mapping[str, Any]) -> Architecture:
    channels, depth = [int(n) for n in config["channels"]], len(config["channels"]) - 1
    per_layer = ("kernel_size", "stride", "padding", "residual", "activation")
    if any(len(config[name]) != depth for name in per_layer):
        raise ValueError(f"the config, whose {per_layer} should have {depth} entries each")
    convs = []
    for layer in range(depth):
        activation = str(config["activation"][layer]).lower()
        skip = int(config["residual"][layer])
        if activation not in ACTIVATIONS or 0 <= skip >= layer - 1:
            raise ValueError(f"layer {layer} with activation {activation!r} and residual {skip}")
        stride, padding, kernel = (int(config[name][layer]) for name in ("stride", "padding", "kernel_size"))
        sizes = (channels[layer], channels[layer + 1], kernel)
        convs.append(Conv(*sizes, ACTIVATIONS[activation], stride, padding, skip=max(skip, -1)))
    last = ((channels[-1], int(config["n_classes"])),)
    return Architecture(tuple(convs), last, common_names(depth, "layers.{}", ("fc",)))


def plain(value: Any) -> Any:
    """An inert record as the mapping, list or value that it stands for."""
    if isinstance(value, Inert):
        state = value.state
        if not isinstance(state, Mapping):
            raise ValueError(f"a record without fields ({state!r})")
        if "_content" in state:  # OmegaConf's containers and their leaves
            return plain(state["_content"])
        return plain(state["_val"]) if "_val" in state else {name: plain(part) for name, part in state.items()}
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value
