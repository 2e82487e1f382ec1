"""Train and test one encoder in a process of its own, and measure what that took."""

from __future__ import annotations

import csv
import math
import multiprocessing
import os
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from hydra import compose, initialize_config_dir

from comparing import rows
from comparing.outcome import KILLED, NOT_RUN, Order, Outcome, outcome_if_known

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from benchmarks.measure import one_unit, peak_rss  # noqa: E402

from train import run  # noqa: E402
from wsl import build, trainer  # noqa: E402
from wsl.build import RunConfig  # noqa: E402
from wsl.callbacks.finite import NonFiniteError  # noqa: E402
from wsl.checkpoint import previous_generation  # noqa: E402
from wsl.encoders.base import Encoder  # noqa: E402
from wsl.errors import UserError  # noqa: E402
from wsl.heap import keep_freed_memory  # noqa: E402
from wsl.out_of_memory import OutOfMemory  # noqa: E402
from wsl.results import Result  # noqa: E402
from wsl.run_config import TASKS, started_with  # noqa: E402
from wsl.run_folder import ensure, owned  # noqa: E402

T = TypeVar("T")
#: training steps that are timed before a run, after as many that warm up
TIMED_STEPS = 7


def end_with_parent() -> None:
    """Let this process end when its comparison does, even if that is killed: nothing is left that holds a folder."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=wait, daemon=True).start()


def outcome_of(order: Order) -> Outcome:
    """Carry out an order, or read what an earlier process found; who refused is asked again.

    Raises:
        UserError: if the zoo cannot be read, or the folder belongs to another run or process.
    """
    known = outcome_if_known(order)
    if known.result is not None or known.stopped not in ("", NOT_RUN):
        return known
    torch.set_num_threads(order.threads)
    keep_freed_memory()  # as train.py does
    trainer.quieten()
    ensure(order.folder)
    config = configured(order)
    data = build.data(config)  # a zoo that cannot be read is no refusal
    with owned(order.folder):
        try:
            encoder = build.encoder(config, data)
        except UserError as error:
            found = Outcome(refused=str(error).splitlines()[0])
        else:
            found = measured(order, config, data, encoder)
        found.write(order.folder / "outcome.json")
    return found


def check_data(order: Order) -> str:
    """Open the data that all runs share, building it where that is asked for; its digest.

    Raises:
        UserError: if it cannot be read, or is nothing for the task.
    """
    config = configured(order)
    data = build.data(config)
    build.check_task(config, data)
    return data.digest


def measured(order: Order, config: RunConfig, data: build.Data, encoder: Encoder) -> Outcome:
    """What training the encoder and testing it once finds, and what it takes."""
    step, units = step_seconds(config, data, encoder)
    limits = within_budget(order, step, len(data.train_dataloader()))
    config = resumable(with_limits(config, limits), order.folder)
    symmetries, mode = tuple(sorted(encoder.symmetries)), TASKS[config.task.name].mode
    del data, encoder  # the run makes its own
    try:
        result = run(config, order.folder)
    except (NonFiniteError, OutOfMemory) as error:
        return Outcome(stopped=str(error).splitlines()[0])
    curves, batches = Curves.read(order.folder), config.trainer.limit_train_batches
    return Outcome(
        result=result,
        step_units=units if config.sparsity.name == "none" else math.nan,
        peak_mib=peak_rss() / 2**20,
        symmetries=symmetries,
        to_95=curves.seconds_to_95(result, mode),
        losses=(curves.last("train/loss_epoch"), curves.last("val/loss")),
        batches=batches if isinstance(batches, int) else None,
        mode=mode,
    )


def within_budget(order: Order, step: float, batches: int) -> dict[str, int]:
    """Options of the trainer: as many epochs as are wanted and the budget allows; if it does not allow one, a part.

    Args:
        step: seconds of a training step. batches: of a whole epoch.
    """
    if order.batches is not None:
        return {"max_epochs": order.epochs, "limit_train_batches": order.batches}
    affordable = order.minutes * 60 / step
    epochs = max(1, int(min(order.epochs, affordable / batches)))
    share = {"limit_train_batches": max(1, int(affordable))} if affordable < batches else {}
    return {"max_epochs": epochs, **share}


def with_limits(config: RunConfig, limits: Mapping[str, float]) -> RunConfig:
    """The config with other options of the trainer."""
    return config.model_copy(update={"trainer": config.trainer.model_copy(update=dict(limits))})


def configured(order: Order) -> RunConfig:
    """The config of a run: that of ``train.py`` with these overrides."""
    encoder, *own = order.encoder.split()
    chosen = (f"encoder={encoder}", f"seed={order.seed}", f"optimizer.lr={order.rate}", "compare=[]", *own)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [*order.overrides, *chosen, f"trainer.max_epochs={order.epochs}"])
        return build.config(cfg).model_copy(update={"label": rows.folder(order.encoder)})


def resumable(config: RunConfig, folder: Path) -> RunConfig:
    """The config to go on with an interrupted run in its folder, or to begin again where it left no checkpoint.

    A run goes on for as long as it was begun for, whatever the machine does now.

    Raises:
        RunFolderError: if the run there has another config.
    """
    last = folder / "checkpoints" / "last.ckpt"
    if last.exists() or previous_generation(last).exists():
        begun = started_with(folder).trainer
        limits = {"max_epochs": begun.max_epochs, "limit_train_batches": begun.limit_train_batches}
        return build.continued(with_limits(config, limits), folder)
    for left in folder.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        elif left.name not in (".lock", KILLED):
            left.unlink()
    return config


def step_seconds(config: RunConfig, data: build.Data, encoder: Encoder) -> tuple[float, float]:
    """Median time of forward, backward and update on a training batch, in seconds and in matmul units.

    The unit is timed after every step, for other processes slow both down. In float32, uncompiled, on the device of the
    trainer. The encoder is left as it was.
    """
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    on_gpu = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    task = build.task(config, encoder).to(device)
    optimizer = task.optimizer(fused=True)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    unit, times = one_unit(device), []
    encoder.train()
    for batch in islice(repeated(data.train_dataloader()), 2 * TIMED_STEPS):
        batch = batch.to(device)
        wait()
        start = time.perf_counter()
        optimizer.zero_grad()
        task.loss(task.output(batch), batch).backward()
        optimizer.step()
        wait()
        middle = time.perf_counter()
        unit()
        wait()
        times.append((middle - start, (middle - start) / (time.perf_counter() - middle)))
    encoder.load_state_dict(before)
    seconds, units = zip(*times[TIMED_STEPS:], strict=True)
    return statistics.median(seconds), statistics.median(units)


def repeated(batches: Iterable[T]) -> Iterator[T]:
    """The batches of one epoch after another."""
    while True:
        yield from batches


class Curves:
    """metrics.csv of a run.

    Args:
        rows: one for each logged step; what was not logged then is empty.
    """

    def __init__(self, rows: Sequence[Mapping[str, str]]) -> None:
        self._rows = rows

    @classmethod
    def read(cls, folder: Path) -> Curves:
        with open(folder / "metrics.csv", newline="") as file:
            return cls(list(csv.DictReader(file)))

    def values(self, key: str) -> list[float]:
        return [float(row[key]) for row in self._rows if row.get(key)]

    def last(self, key: str) -> float:
        """The last value, nan if there is none."""
        return next(reversed(self.values(key)), math.nan)

    def seconds_to_95(self, result: Result, mode: str = "max") -> float:
        """Training time until the validation metric first was within 5 % of its best."""
        values, best = self.values(f"val/{result.metric}"), result.val[result.metric]
        near = (lambda value: value >= 0.95 * best) if mode == "max" else (lambda value: value <= 1.05 * best)
        reached = next((n for n, value in enumerate(values) if near(value)), None)
        return math.nan if reached is None else (reached + 1) * result.seconds / len(values)
