"""Worker processes: deaf to what a scheduler asks, waited for no longer than allowed, gone with their loader."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time

import pytest
import torch
from torch.utils.data import Dataset

from wsl.data import loader as loaders
from wsl.data.sampler import BatchSampler

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 on torch 2.13


class Slow(Dataset[torch.Tensor]):
    """Batches of row numbers; one of them takes its time."""

    def __init__(self, row: int = -1, seconds: float = 0.0) -> None:
        self.row, self.seconds = row, seconds

    def __getitem__(self, rows: list[int]) -> torch.Tensor:  # type: ignore[override]
        if self.row in rows:
            time.sleep(self.seconds)
        return torch.tensor(rows)


def none_left(seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while multiprocessing.active_children() and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.05)
    return not multiprocessing.active_children()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_workers_serve_on_when_a_job_is_asked_to_leave(number: signal.Signals) -> None:
    loader = loaders.loader(Slow(), BatchSampler(range(64), 4), workers=2)
    batches = iter(loader)
    seen = [next(batches)]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid or 0, number)
    seen += list(batches)
    assert torch.cat(seen).tolist() == list(range(64))
    del loader, batches, workers
    assert none_left()


def test_a_worker_that_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "PATIENCE", 1.0)
    loader = loaders.loader(Slow(row=9, seconds=20), BatchSampler(range(16), 4), workers=1)
    with pytest.raises(RuntimeError, match="timed out after 1"):
        list(loader)
    del loader
    assert none_left()
