"""The contract of every data module: what the rest of a run asks of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl

from wsl.data.splits import split_digest


class Data(pl.LightningDataModule):
    """Inputs with targets in the splits train, val and test.

    The constructor's signature, ``seed`` apart, is the schema of the module's config group.

    Attributes:
        path: where it comes from.
        spec: what all inputs share; the encoder is built for it.
        classes: number of classes, 0 where the target is no class.
        target_range: the least and the greatest target, or None where targets are classes by nature, or images.
        image_targets: whether targets are images ``[B, height, width, channels]``.
        rows: the rows of each split.
        inputs: what a row is, in words, for the log.
        digest: of the content. recipe: how it was made, plain values.
    """

    path: Path
    spec: Any
    classes: int
    target_range: tuple[float, float] | None = None
    image_targets: bool = False
    rows: Mapping[str, Any]
    inputs: str
    digest: str
    recipe: dict[str, Any]

    @property
    def split_digest(self) -> str:
        """SHA-256 of which rows are in which split: with equal data, results with equal ones can be compared."""
        return split_digest({name: np.asarray(rows) for name, rows in self.rows.items()})

    def example(self) -> Any:
        """A large batch of training inputs, for statistics."""
        raise NotImplementedError
