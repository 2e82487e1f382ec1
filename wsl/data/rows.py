"""Rows of a zoo as batches: what a data module serves, read from the file and held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch.utils.data import Dataset

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.spec import WeightSpec
from wsl.spec.family import SpecFamily
from wsl.zoo import Zoo

#: networks of one architecture, or of many
Batch: TypeAlias = WeightBatch | MixedWeightBatch


class RowDataset(Dataset[Batch]):
    """Rows held in memory; indexed by a list of positions, which are cut by one indexing operation."""

    def __init__(self, rows: Batch) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: list[int]) -> Batch:
        return self.rows.select(torch.as_tensor(positions, dtype=torch.int64))


def read_batch(zoo: Zoo, spec: WeightSpec | SpecFamily, rows: Sequence[int] | np.ndarray, target: np.ndarray) -> Batch:
    """The rows of these numbers as one batch: of the family's layout if ``spec`` is a family, else of the one spec.

    Args:
        target: ``[n, …]``, the targets of these rows.

    Raises:
        ZooError: if a row holds NaN or infinity, or a chunk is damaged.
    """
    row_ids = torch.from_numpy(np.asarray(rows, dtype=np.int64))
    labels = torch.from_numpy(as_target(target))
    if len(zoo.specs) == 1:
        return WeightBatch(zoo.specs[0], torch.from_numpy(zoo.read_rows(rows, finite=True))[..., None], labels, row_ids)
    values, row_ptr, spec_ids = zoo.read_mixed_rows(rows, finite=True)
    flat = torch.from_numpy(values).unsqueeze(-1)
    if isinstance(spec, WeightSpec):
        return WeightBatch(spec, flat.reshape(len(rows), spec.numel, 1), labels, row_ids)
    number = {member: position for position, member in enumerate(spec)}
    in_family = np.array([number.get(member, -1) for member in zoo.specs], dtype=np.int64)
    ids = torch.from_numpy(in_family[spec_ids])
    return MixedWeightBatch(spec.specs, ids, flat, torch.from_numpy(row_ptr), labels, row_ids)


def as_target(column: np.ndarray) -> np.ndarray:
    """Classes as int64, numbers as float32, pixels as they are."""
    if column.ndim > 1:
        return column
    return column.astype(np.int64 if np.issubdtype(column.dtype, np.integer) else np.float32)
