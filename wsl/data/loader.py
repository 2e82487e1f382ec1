"""The one place that knows which loader library is used."""

from __future__ import annotations

import signal
from typing import Any

from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from wsl.data.rows import Batch
from wsl.data.sampler import BatchSampler

#: seconds that a batch of a worker is waited for
PATIENCE = 600.0


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
        worker_init_fn=_deaf,
        timeout=PATIENCE if workers else 0,
    )


def _deaf(worker: int) -> None:
    """A scheduler asks all processes of a job to leave; workers serve the main one until that has left."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _late)


def _late(number: int, frame: Any) -> None:
    """In a while, as the main process may want batches to the end of its step; at once when asked again."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(10)


def _as_it_is(batch: Batch) -> Batch:
    return batch
