"""Which rows are for training, validation and test: as the file says, or folds drawn from a seed; nothing leaks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Interval

from wsl.data.counter import keys
from wsl.ranges import NonNegativeInt
from wsl.zoo import Zoo, ZooError
from wsl.zoo.layout import straddling_runs

SPLITS = ("train", "val", "test")


class Splits:
    """How the rows of a zoo are split.

    Args:
        by: "file" takes the splits of the file. Otherwise the training runs, the images that INRs were fitted to, or
            the architectures are dealt to ``folds`` parts in an order that depends on ``seed`` and their numbers alone;
            the rows of part ``fold`` are the test split.
        folds: number of parts, at least 2.
        fold: which part is tested, from 0; the k runs of a cross-validation differ in nothing else.
        val_share: of the remaining runs (by image: images), at random, for validation. Architectures that are held out
            for the test are not seen in validation either, so they do not choose the checkpoint.
        seed: of the folds; the same for all runs that are to be compared.
    """

    def __init__(
        self,
        *,
        by: Literal["file", "run", "image", "architecture"] = "file",
        folds: NonNegativeInt = 5,
        fold: NonNegativeInt = 0,
        val_share: Annotated[float, Interval(gt=0, lt=1)] = 0.1,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.by, self.folds, self.fold, self.val_share, self.seed = by, folds, fold, val_share, seed

    def rows(self, zoo: Zoo) -> dict[str, np.ndarray]:
        """Split → its rows, ascending.

        Raises:
            ZooError: if the file lacks a split, or there are fewer units than folds.
        """
        if self.by == "file":
            for name in SPLITS:
                if name not in zoo.splits or not len(zoo.splits[name]):
                    raise ZooError(
                        f"{zoo.path} has no rows in split {name!r}; it has {sorted(zoo.splits)}. Set data.split.by=run "
                        "to draw splits from a seed"
                    )
            return {name: np.sort(zoo.splits[name]) for name in SPLITS}
        units = units_of(zoo, self.by)
        kinds = np.unique(units)
        if not 2 <= self.folds <= len(kinds) or self.fold >= self.folds:
            raise ZooError(
                f"{zoo.path} has {len(kinds)} of what data.split.by={self.by} names; data.split.folds={self.folds} "
                f"should be 2 to {len(kinds)}, data.split.fold={self.fold} less than that"
            )
        dealt = self._order(kinds) % self.folds == self.fold
        test = dealt[np.searchsorted(kinds, units)]
        inner = units if self.by == "image" else zoo.run_ids
        left = np.unique(inner[~test])
        chosen = left[self._order(left, purpose=1) < math.ceil(self.val_share * len(left))]
        val = ~test & np.isin(inner, chosen)
        found = {"train": ~test & ~val, "val": val, "test": test}
        return {name: np.flatnonzero(mask) for name, mask in found.items()}

    def _order(self, units: np.ndarray, purpose: int = 0) -> np.ndarray:
        """The place of each unit in an order drawn from the seed."""
        drawn = keys(torch.from_numpy(units.astype(np.int64)), self.seed, purpose, *((self.fold,) if purpose else ()))
        return drawn.argsort().argsort().numpy()


def units_of(zoo: Zoo, by: str) -> np.ndarray:
    """``[rows]`` int64: which run, image or architecture each row is of."""
    if by == "run":
        return zoo.run_ids
    if by == "image":
        if "image_index" not in zoo.columns:
            raise ZooError(f"{zoo.path} has no column 'image_index'; set data.split.by to run or architecture")
        return zoo.column("image_index").astype(np.int64)
    names = np.array([int(spec.digest[:15], 16) for spec in zoo.specs])  # the same wherever it stands in the file
    return names[zoo.spec_ids]


def check_no_leak(zoo: Zoo, rows: Mapping[str, np.ndarray]) -> None:
    """Raises :class:`ZooError` if rows of one training run, or of one image, are in two splits."""
    owners = {"run": zoo.run_ids}
    if "image_index" in zoo.columns:
        owners["image"] = zoo.column("image_index")
    for what, owner in owners.items():
        for number, (one, other) in straddling_runs(owner, rows).items():
            raise ZooError(
                f"{zoo.path}: rows {one} and {other} are of {what} {number} but in different splits, so the test would "
                f"reward memory; set data.split.by={what}"
            )


def split_digest(rows: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the row numbers of each split, hexadecimal: equal for runs on one data that can be compared."""
    state = hashlib.sha256()
    for name in sorted(rows):
        state.update(f"{name} {len(rows[name])}\n".encode())
        state.update(np.ascontiguousarray(rows[name], dtype="<i8").tobytes())
    return state.hexdigest()
