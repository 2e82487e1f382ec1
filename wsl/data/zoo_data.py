"""The LightningDataModule of a zoo: opens the file, knows its spec and splits, serves batches of weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch

from wsl.config import arguments, schema_of
from wsl.data.augment import Augment
from wsl.data.base import Data
from wsl.data.copies import check_no_copies
from wsl.data.image_target import IMAGE_TARGETS, ImageTarget
from wsl.data.loader import loader
from wsl.data.memory import free_memory
from wsl.data.mixup import Mixup
from wsl.data.rows import Batch, RowDataset, as_target, read_batch
from wsl.data.sampler import BatchSampler
from wsl.data.selection import Where, matching
from wsl.data.splits import Splits, check_no_leak
from wsl.data.streaming import StreamedRows
from wsl.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt
from wsl.spec import WeightSpec
from wsl.spec.family import SpecFamily
from wsl.zoo import Zoo, ZooError

if TYPE_CHECKING:  # the schemas are made at run time, so a type checker cannot know their fields
    SplitConfig: TypeAlias = Any
    AugmentConfig: TypeAlias = Any
else:
    SplitConfig = schema_of("", Splits)
    AugmentConfig = schema_of("", Augment)


class ZooData(Data):
    """Networks of a zoo file, split into train, val and test, and augmented in whole batches.

    Where the chosen rows are of one architecture, ``spec`` is a :class:`~wsl.spec.WeightSpec` and batches are
    :class:`~wsl.batch.WeightBatch`; where they are of several, a :class:`~wsl.spec.family.SpecFamily` and
    :class:`~wsl.batch.MixedWeightBatch`.

    Args:
        path: the zoo file (HDF5).
        build: name of the recipe in ``conf/zoo`` that makes the file when it is absent; empty: never build.
        target: the column to predict: classes if it holds whole numbers, else a number. ``image`` is the image that a
            network was fitted to, ``dilated_image`` the same dilated (:class:`~wsl.data.image_target.ImageTarget`).
        where: which rows to use: column → its value, or a list of values; null: any. Rows are split first.
        split: how rows are split, see :class:`~wsl.data.splits.Splits`; default: as the file says.
        augment: what is done to batches, see :class:`~wsl.data.augment.Augment`; default: nothing.
        copies: "refuse" a zoo that has identical networks in two splits, or "allow" them.
        batch_size: networks per step on each process.
        eval_batch_size: networks per step in validation and test.
        views: how many views (independent fits) of each training image to use; 0 uses all.
        workers: loader processes. Rows in memory are cut by one indexing operation and files are read by a thread, so 0
            is the fastest.
        memory_limit: GiB that the rows may take in each process; a zoo with more is read from the file batch by batch,
            in an order that reads whole chunks (docs/streaming.md). null: half of the memory that is free; 0: always
            read from the file.
        buffer: MiB that reading from the file may hold per split; the larger, the better the rows are mixed.
        seed: of the order of batches and of augmentation (given by the program: the run's seed).

    Raises:
        ZooError: if the file is absent or damaged, lacks the column or a split, ``where`` asks for what it does not
            hold, a run, an image or a network is in two splits, or images are asked of a zoo that cannot give them.
        NoCoordinatesError: if images are to be moved, and the networks are no INRs of images.
    """

    def __init__(
        self,
        *,
        path: str,
        build: str = "",
        target: str = "label",
        where: Where | None = None,
        split: SplitConfig | None = None,
        augment: AugmentConfig | None = None,
        copies: Literal["refuse", "allow"] = "refuse",
        batch_size: PositiveInt = 64,
        eval_batch_size: PositiveInt = 256,
        views: NonNegativeInt = 0,
        workers: NonNegativeInt = 0,
        memory_limit: NonNegativeFloat | None = None,
        buffer: PositiveInt = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.path, self.build, self.target, self.where = Path(path), build, target, dict(where or {})
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.views, self.workers, self.seed = views, workers, seed
        self.memory_limit, self.buffer = memory_limit, buffer
        self.split = Splits(**arguments(split)) if split is not None else Splits()
        self.augment = Augment(**arguments(augment)) if augment is not None else Augment()
        self._datasets: dict[str, RowDataset] = {}
        self._mixup: Mixup | None = None
        self._streamed: bool | None = None
        self._train_loader: Any = None
        self._place: dict[str, Any] | None = None
        self._open(check_copies=copies == "refuse")

    def _open(self, check_copies: bool) -> None:
        if not self.path.exists():
            raise ZooError(f"{self.path} does not exist; build it with: python scripts/build_zoo.py zoo=NAME")
        with Zoo(self.path) as zoo:
            if self.target not in (*zoo.columns, *IMAGE_TARGETS):
                raise ZooError(
                    f"{self.path} has no column {self.target!r}; data.target is one of "
                    f"{', '.join([*zoo.columns, *IMAGE_TARGETS])}"
                )
            self.digest: str = zoo.digest
            self.recipe: dict[str, Any] = zoo.recipe
            self.zoo_rows = len(zoo)
            keep = matching(zoo, self.where)
            self.rows = {name: self._chosen(zoo, name, rows, keep) for name, rows in self.split.rows(zoo).items()}
            check_no_leak(zoo, self.rows)
            if check_copies:
                check_no_copies(zoo, self.rows)
            used = np.unique(zoo.spec_ids[np.concatenate(list(self.rows.values()))])
            specs = tuple(zoo.specs[number] for number in used)
            self.spec: WeightSpec | SpecFamily = specs[0] if len(specs) == 1 else SpecFamily(specs)
            self.images = ImageTarget(zoo, self.target, specs) if self.target in IMAGE_TARGETS else None
            column = zoo.column(self.target) if self.images is None else self.images.of_rows
            self.bytes = 4 * sum(int(np.diff(zoo.row_ptr)[rows].sum()) for rows in self.rows.values())
        self.augment.check(specs)
        self.inputs = _described(specs)
        self._targets = column
        if self.images is None:
            self._describe_targets(column)
        else:
            self.images.check(self.augment)
            self.classes, self.target_range, self.image_targets = 0, None, True

    def _describe_targets(self, column: np.ndarray) -> None:
        """Classes and range of a column, which must be one of numbers."""
        if column.dtype.kind == "U":
            raise ZooError(f"{self.path}: column {self.target!r} is text; data.target must be a column of numbers")
        for split, rows in self.rows.items():
            self._check_target(split, column[rows])
        used_targets = np.concatenate([column[rows] for rows in self.rows.values()])
        self.target_range = float(used_targets.min()), float(used_targets.max())
        self.classes = int(column.max()) + 1 if np.issubdtype(column.dtype, np.integer) else 0

    def _chosen(self, zoo: Zoo, split: str, rows: np.ndarray, keep: np.ndarray) -> np.ndarray:
        rows = rows[keep[rows]]
        if not len(rows):
            raise ZooError(f"{self.path}: no row of split {split!r} is left by data.where={self.where}; ask for less")
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
        """All rows of a split, in memory (read on first use); position p is row ``rows[split][p]`` of the zoo."""
        if split not in self._datasets:
            rows = self.rows[split]
            with Zoo(self.path) as zoo:
                self._datasets[split] = RowDataset(read_batch(zoo, self.spec, rows, self._targets[rows]))
        return self._datasets[split]

    def example(self, size: int = 2048) -> Batch:
        """At most ``size`` training rows, evenly spaced over the split, for statistics of the data."""
        rows = self.rows["train"]
        chosen = np.arange(0, len(rows), max(1, len(rows) // size))[:size]
        if "train" in self._datasets:
            return self._datasets["train"][chosen.tolist()]
        with Zoo(self.path) as zoo:
            return read_batch(zoo, self.spec, rows[chosen], self._targets[rows[chosen]])

    def streamed(self) -> bool:
        """Whether rows are read from the file batch by batch, because they do not fit into memory or are not to.

        Decided once, for all ranks; a resumed run keeps to it, whatever memory is free now, as the order depends on it.
        """
        if self._streamed is None:
            limit = None if self.memory_limit is None else self.memory_limit * 2**30
            if limit is None:
                limit = free_memory() / 2 / (self.trainer.num_devices if self.trainer else 1)
            chosen = self.bytes > limit
            self._streamed = bool(self.trainer.strategy.broadcast(chosen)) if self.trainer else chosen
        return self._streamed

    def state_dict(self) -> dict[str, Any]:
        """Within an epoch, where in the training rows it is.

        Lightning keeps a loader's state too, but asks for the loaders (the schedule needs their length) before it has
        read that; and it does not tell the sampler of the epoch in time.
        """
        place = None
        if self._train_loader is not None and self.trainer is not None and not self.trainer.is_last_batch:
            place = {"epoch": self.trainer.current_epoch, "loader": self._train_loader.state_dict()}
        return {"streamed": self._streamed, "place": place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._streamed, self._place = state["streamed"], state["place"]

    def augmented(self, batch: Batch, split: str, epoch: int) -> Batch:
        """What the encoder is given of a loaded batch: a function of its rows, the seed and the epoch alone."""
        if split == "train" and self.augment.trains:
            if self.augment.mixup and self._mixup is None:
                self._mixup = Mixup(self.dataset("train"), self.classes, self.augment.mixup, self.seed)
            batch = self.augment.train(batch, self.seed, epoch, self._mixup)
        if self.images is not None:
            batch = self.images.scaled(batch)
        return self.augment.twinned(batch, self.seed, self.zoo_rows) if split in self.augment.twins else batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment on the device, in the process that trains: it knows the epoch, which workers read ahead of."""
        trainer = self.trainer
        assert trainer is not None, "Lightning calls this with a trainer"
        split = "train" if trainer.training else "test" if trainer.testing else "val"
        return self.augmented(batch, split, trainer.current_epoch)

    def _loader(self, split: str, batch_size: int, seed: int | None) -> Any:
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        dataset: StreamedRows | RowDataset
        if self.streamed():
            if self.augment.mixup:
                raise ZooError(
                    f"{self.path} is read from the file, and mixup draws partners from rows in memory; raise "
                    "data.memory_limit or set data.augment.mixup=0"
                )
            sampling = (batch_size, seed, self.buffer * 2**20, rank, ranks)
            dataset = StreamedRows(Zoo(self.path), self.spec, self.rows[split], as_target(self._targets), *sampling)
            sampler: BatchSampler = dataset.sampler
        else:
            dataset = self.dataset(split)
            sampler = BatchSampler(range(len(dataset)), batch_size, seed, rank, ranks)
        return loader(dataset, sampler, self.workers, pin_memory=torch.cuda.is_available())

    def train_dataloader(self) -> Any:
        self._train_loader = made = self._loader("train", self.batch_size, self.seed)
        if self._place is not None:
            made.sampler.set_epoch(self._place["epoch"])
            made.load_state_dict(self._place["loader"])
            self._place = None
        return made

    def val_dataloader(self) -> Any:
        return self._loader("val", self.eval_batch_size, None)

    def test_dataloader(self) -> Any:
        return self._loader("test", self.eval_batch_size, None)


def _described(specs: tuple[WeightSpec, ...]) -> str:
    """What a row is, in words."""
    sizes = [spec.numel for spec in specs]
    if len(specs) == 1:
        return f"networks of {sizes[0]:,} parameters"
    span = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
    return f"networks of {len(specs):,} architectures, {span} parameters"
