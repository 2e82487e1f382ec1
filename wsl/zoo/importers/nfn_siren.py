"""The SIREN folders of Zhou et al., "Permutation Equivariant Neural Functionals".

    siren_mnist_wts/randinit_smaller_{digit}s/net{image}.pth             one network for each image, train then test
    siren_mnist_wts/randinit_smaller_aug{copy}_{digit}s/net{image}.pth   more copies of the training images

``randinit_smaller_*`` also matches the folders of the copies, which then silently take the first networks' places; here
the whole name of a folder is matched. The networks read (row, column); the zoo file's INRs read (x, y), so the columns
of the first layer are exchanged, which changes no function. Outputs are pixels in [−1, 1], without an offset.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from wsl.zoo.importers.siren import SirenReader
from wsl.zoo.importers.source import Array, Network, Source, load, relative
from wsl.zoo.layout import ZooError

POINTS = (45_000, 50_000)
SIDES = {1: 28, 3: 32}  # channels → pixels along a side of the published images


def nfn_siren(
    folder: Path,
    prefix: str = "randinit_smaller",
    views: int = 0,
    split_points: tuple[int, int] = POINTS,
    channels: int = 1,
) -> Source:
    """One of the three sets.

    Args:
        folder: the one that holds the folders of the digits.
        prefix: of the folders of the first copies.
        views: copies of each training image to take, the first among them; 0: all.
        split_points: the first image of the validation split, and of the test split.
        channels: 1, or 3 for CIFAR-10.

    Raises:
        ZooError: if no folder matches, an image number is missing or occurs twice, or the points leave a split empty.
    """
    found = _found(folder, prefix)
    copies = sorted({copy for copy, _ in found})
    if not copies or copies[0] != 0:
        others = sorted({p.name.rpartition("_")[0] for p in folder.glob("*_*s") if p.is_dir()})
        raise ZooError(f"{folder}: no folder {prefix}_{{digit}}s; prefixes found: {others or 'none'}; give one of them")
    first = sorted(image for copy, image in found if copy == 0)
    if first != list(range(len(first))):
        gap = next(i for i, image in enumerate(first) if i != image)
        raise ZooError(f"{folder}: image {gap} has no network net{gap}.pth, others follow; download the folder again")
    a, b = split_points
    if not 0 < a < b < len(first):
        raise ZooError(f"{folder}: split points {a} and {b} do not divide {len(first)} images in three")
    taken = copies[: views or len(copies)]
    if views > len(copies):
        raise ZooError(f"{folder}: holds {len(copies)} copies of each image; views={views} is too many")
    keys = sorted((image, view) for view, copy in enumerate(taken) for c, image in found if c == copy)
    image, view = (np.array([key[axis] for key in keys], dtype=np.int64) for axis in (0, 1))
    paths = [found[taken[v], i][0] for i, v in keys]
    digits = [found[taken[v], i][1] for i, v in keys]
    reader = SirenReader(paths, omega=30.0, output_offset=0.0, swap_inputs=True)

    def read(number: int) -> Network:
        return reader.network(paths[number], load(paths[number]))

    return Source(
        root=folder,
        recipe={
            "reference": "Zhou et al. 2023, Permutation Equivariant Neural Functionals",
            "classes": 10,
            "render": {"height": SIDES[channels], "width": SIDES[channels], "channels": channels},
            "pixel_range": [-1, 1],
            "split": {"by": "image", "points": [a, b]},
            "views": len(taken),
            "convention": "h = sin(30 (W x + b)), output W x + b in [-1, 1]; published networks read (row, column), "
            "the two input columns of the first layer were exchanged for (x, y)",
        },
        names=relative(folder, paths),
        read=read,
        run_ids=image,
        splits=_splits(image, view, a, b),
        columns={"label": np.array(digits, dtype=np.int64), "image_index": image, "view": view},
    )


def _found(folder: Path, prefix: str) -> dict[tuple[int, int], tuple[Path, int]]:
    """(copy, image) → file and digit; copy 0 is the first, 1 + i that of ``aug{i}``."""
    pattern = re.compile(re.escape(prefix) + r"(?:_aug(\d+))?_(\d)s")
    found: dict[tuple[int, int], tuple[Path, int]] = {}
    for part in sorted(p for p in folder.iterdir() if p.is_dir()):
        if (named := pattern.fullmatch(part.name)) is None:
            continue
        copy = 0 if named[1] is None else 1 + int(named[1])
        for path in sorted(part.glob("*.pth")):
            if (number := re.search(r"net(\d+)\.pth$", path.name)) is None:
                raise ZooError(f"{path}: the file should be net{{image}}.pth")
            key = (copy, int(number[1]))
            if key in found:
                raise ZooError(f"{path}: image {key[1]} has another network, {found[key][0]}; one of them is misplaced")
            found[key] = (path, int(named[2]))
    return found


def _splits(image: Array, view: Array, a: int, b: int) -> dict[str, Array]:
    """By image; validation and test take the first copy alone, as published."""
    return {
        "train": np.flatnonzero(image < a),
        "val": np.flatnonzero((image >= a) & (image < b) & (view == 0)),
        "test": np.flatnonzero((image >= b) & (view == 0)),
    }
