"""The INRs of MNIST and Fashion-MNIST by Navon et al., "Equivariant Architectures for Learning in Deep Weight Spaces".

    mnist-inrs/mnist_png_{training,testing}_{label}_{image}/checkpoints/model_final.pth
    fmnist_inrs/{train,test}/model_{image}.pth              with the entry "label"; splits.json beside the folders

Each file is a state dict seq.0.weight … of a SIREN h = sin(30 (W x + b)), y = W h + b + 0.5, with x along the columns.
The split of MNIST was drawn without a seed, so only its own file brings it back.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from wsl.zoo.importers import splits
from wsl.zoo.importers.siren import SirenReader
from wsl.zoo.importers.source import Array, FaultyNetworkError, Network, Source, load, numbered
from wsl.zoo.layout import ZooError

MNIST = re.compile(r"mnist_png_(training|testing)_(\d+)_(\d+)")
FASHION = re.compile(r"model_(\d+)\.pth")
TRAIN, TEST = 0, 1
VAL_IMAGES = 5000


def dwsnets(folder: Path, split_file: Path | None = None, val: float = VAL_IMAGES, seed: int = 0) -> Source:
    """Either of the two sets; which one is seen from the folder.

    Args:
        folder: that of the archive, or one above.
        split_file: ``mnist_splits.json`` or ``splits.json``; None: ``splits.json`` in the folder if it is there.
        val: validation networks to draw (a number, or a share below 1) where there is no split file. ``seed``: of that.

    Raises:
        ZooError: if the folder holds neither set, or a network without a name of the layout.
    """
    mnist = {splits.tail(p, 3): p for p in sorted(folder.glob("**/mnist_png_*/checkpoints/model_final.pth"))}
    fashion = {
        splits.tail(p, 2): p for p in sorted(folder.glob("**/model_*.pth")) if p.parent.name in ("train", "test")
    }
    if bool(mnist) == bool(fashion):
        raise ZooError(
            f"{folder}: holds {'both' if mnist else 'neither'} mnist_png_*/checkpoints/model_final.pth "
            f"{'and' if mnist else 'nor'} {{train,test}}/model_*.pth; give the folder of one set"
        )
    held, parts = (mnist, 3) if mnist else (fashion, 2)
    if split_file is None:
        split_file = next(iter(sorted(folder.glob("**/splits.json"))), None)
    split = {} if split_file is None else splits.published(split_file, parts)
    order, positions, missing = splits.arrange(split, held)
    described = [(_mnist if mnist else _fashion)(tail) for tail in order]
    source, image = (np.array([d[key] for d in described], dtype=np.int64) for key in ("source", "image"))
    if split_file is None:
        positions = _drawn(source, val, seed)
    columns = {"source": source, "source_index": image}
    if mnist:
        columns["label"] = np.array([d["label"] for d in described], dtype=np.int64)
    reader = SirenReader([held[tail] for tail in order], omega=30.0, output_offset=0.5)
    return Source(
        root=folder,
        recipe={
            "reference": "Navon et al. 2023, Equivariant Architectures for Learning in Deep Weight Spaces",
            "dataset": "MNIST" if mnist else "Fashion-MNIST",
            "classes": 10,
            "render": {"height": 28, "width": 28, "channels": 1},
            "split": split_file.name if split_file else splits.told(val, 0, seed) | {"test": "the test images"},
            "convention": "h = sin(30 (W x + b)), output W x + b + 0.5; (x, y) in [-1, 1]^2, x along columns; biases "
            "start at 0; pixels in [0, 1]",
        },
        names=order,
        read=lambda number: _read(held[order[number]], reader, with_label=not mnist),
        run_ids=numbered(list(zip(source.tolist(), image.tolist(), strict=True))),
        splits=positions,
        columns=columns,
        missing=missing,
    )


def _mnist(tail: str) -> dict[str, int]:
    found = MNIST.fullmatch(Path(tail).parts[0])
    if found is None:
        raise ZooError(f"{tail}: the folder should be mnist_png_{{training,testing}}_{{label}}_{{image}}")
    return {"source": TRAIN if found[1] == "training" else TEST, "label": int(found[2]), "image": int(found[3])}


def _fashion(tail: str) -> dict[str, int]:
    part, name = Path(tail).parts
    found = FASHION.fullmatch(name)
    if found is None:
        raise ZooError(f"{tail}: the file should be model_{{image}}.pth")
    return {"source": TRAIN if part == "train" else TEST, "image": int(found[1])}


def _drawn(source: Array, val: float, seed: int) -> dict[str, Array]:
    """The test images' networks, and validation networks drawn from the others."""
    train, test = np.flatnonzero(source == TRAIN), np.flatnonzero(source == TEST)
    found = splits.drawn(train, val, 0, seed)
    return {name: train[index] for name, index in found.items()} | ({"test": test} if len(test) else {})


def _read(path: Path, reader: SirenReader, with_label: bool) -> Network:
    found: Any = load(path)
    if not with_label:
        return reader.network(path, found)
    if not isinstance(found, dict) or "label" not in found:
        raise FaultyNetworkError(f"{path}: has no entry 'label'")
    label = _label(path, found["label"])
    return reader.network(path, {name: value for name, value in found.items() if name != "label"}, {"label": label})


def _label(path: Path, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FaultyNetworkError(f"{path}: label {value!r} is no number") from error
