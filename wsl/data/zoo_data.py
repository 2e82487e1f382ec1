"""The LightningDataModule of a zoo: opens the file, knows its spec and splits, serves batches of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from wsl.batch import WeightBatch
from wsl.data.base import Data
from wsl.data.loader import loader
from wsl.data.sampler import BatchSampler
from wsl.ranges import NonNegativeInt, PositiveInt
from wsl.spec import WeightSpec
from wsl.zoo import Zoo, ZooError


class RowDataset(Dataset[WeightBatch]):
    """Rows of a zoo held in memory; indexed by a list of row numbers."""

    def __init__(self, spec: WeightSpec, values: torch.Tensor, target: torch.Tensor, row_ids: torch.Tensor) -> None:
        self.spec, self.values, self.target, self.row_ids = spec, values, target, row_ids

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, positions: list[int]) -> WeightBatch:
        return WeightBatch(
            self.spec, self.values[positions].unsqueeze(-1), self.target[positions], self.row_ids[positions]
        )


class ZooData(Data):
    """Networks of a zoo file, split into train, val and test as the file says.

    Args:
        path: the zoo file (HDF5).
        build: name of the recipe in ``conf/zoo`` that makes the file when it is absent; empty: never build.
        target: the column to predict.
        batch_size: networks per step on each process.
        eval_batch_size: networks per step in validation and test.
        views: how many views (independent fits) of each training image to use; 0 uses all.
        workers: loader processes. The rows are held in memory and cut by one indexing operation, so 0 is the fastest.
        seed: of the order of batches (given by the program: the run's seed).

    Raises:
        ZooError: if the file is absent or damaged, lacks the column or a split, or holds several architectures.
    """

    def __init__(
        self,
        *,
        path: str,
        build: str = "",
        target: str = "label",
        batch_size: PositiveInt = 64,
        eval_batch_size: PositiveInt = 256,
        views: NonNegativeInt = 0,
        workers: NonNegativeInt = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.path, self.build, self.target = Path(path), build, target
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.views, self.workers, self.seed = views, workers, seed
        self._datasets: dict[str, RowDataset] = {}
        self._open()

    def _open(self) -> None:
        if not self.path.exists():
            raise ZooError(f"{self.path} does not exist; build it with: python scripts/build_zoo.py zoo=NAME")
        with Zoo(self.path) as zoo:
            if len(zoo.specs) != 1:
                raise ZooError(f"{self.path} holds {len(zoo.specs)} architectures; this data module reads one")
            if self.target not in zoo.columns:
                raise ZooError(
                    f"{self.path} has no column {self.target!r}; data.target is one of {', '.join(zoo.columns)}"
                )
            for split in ("train", "val", "test"):
                if split not in zoo.splits or not len(zoo.splits[split]):
                    raise ZooError(f"{self.path} has no rows in split {split!r}; it has {sorted(zoo.splits)}")
            self.spec: WeightSpec = zoo.specs[0]
            self.inputs = f"networks of {self.spec.numel:,} parameters"
            self.digest: str = zoo.digest
            self.recipe: dict[str, Any] = zoo.recipe
            self.rows = {name: self._chosen(zoo, name) for name in ("train", "val", "test")}
            column = zoo.column(self.target)
            for split, rows in self.rows.items():
                self._check_target(split, column[rows])
            self.classes = int(column.max()) + 1 if np.issubdtype(column.dtype, np.integer) else 0

    def _chosen(self, zoo: Zoo, split: str) -> np.ndarray:
        rows = np.sort(zoo.splits[split])
        if split != "train" or not self.views:
            return rows
        if "view" not in zoo.columns:
            raise ZooError(f"{self.path} has no column 'view'; set data.views=0 to use every row")
        views = zoo.column("view")[rows]
        if views.max() + 1 < self.views:
            held = views.max() + 1
            raise ZooError(f"{self.path} holds {held} views of each image; data.views={self.views} is too many")
        return rows[views < self.views]

    def _check_target(self, split: str, values: np.ndarray) -> None:
        bad = ~np.isfinite(values) if np.issubdtype(values.dtype, np.floating) else values < 0
        if bad.any():
            row = int(self.rows[split][np.argmax(bad)])
            raise ZooError(
                f"{self.path}, row {row}: {self.target} is {values[np.argmax(bad)]}; repair or leave out the row"
            )

    def dataset(self, split: str) -> RowDataset:
        """All rows of a split, in memory (read on first use)."""
        if split not in self._datasets:
            rows = self.rows[split]
            with Zoo(self.path) as zoo:
                values = torch.from_numpy(zoo.read_rows(rows, finite=True))
                target = torch.from_numpy(zoo.column(self.target)[rows])
            self._datasets[split] = RowDataset(self.spec, values, target, torch.from_numpy(rows.astype(np.int64)))
        return self._datasets[split]

    def example(self, size: int = 2048) -> WeightBatch:
        """At most ``size`` training rows, evenly spaced over the split, for statistics of the data."""
        dataset = self.dataset("train")
        step = max(1, len(dataset) // size)
        return dataset[list(range(0, len(dataset), step))[:size]]

    def _loader(self, split: str, batch_size: int, seed: int | None) -> Any:
        dataset = self.dataset(split)
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = BatchSampler(range(len(dataset)), batch_size, seed, rank, ranks)
        return loader(dataset, sampler, self.workers, pin_memory=torch.cuda.is_available())

    def train_dataloader(self) -> Any:
        return self._loader("train", self.batch_size, self.seed)

    def val_dataloader(self) -> Any:
        return self._loader("val", self.eval_batch_size, None)

    def test_dataloader(self) -> Any:
        return self._loader("test", self.eval_batch_size, None)
