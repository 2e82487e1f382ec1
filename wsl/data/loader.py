"""The one place that knows which loader library is used."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from wsl.data.rows import Batch
from wsl.data.sampler import BatchSampler


def loader(
    dataset: Dataset[Any],
    sampler: BatchSampler,
    workers: int = 0,
    pin_memory: bool = False,
    start_method: str | None = None,
) -> Any:
    """A loader of whole batches whose position can be saved and restored.

    The dataset is asked for what the sampler yields, a whole batch at once, so no per-row collation happens.

    Args:
        start_method: of the workers, fork or spawn; None: the system's.
    """
    return StatefulDataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        multiprocessing_context=start_method if workers else None,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
    )


def _as_it_is(batch: Batch) -> Batch:
    return batch
