"""Train and test one encoder in a process of its own, and measure what that took."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import multiprocessing
import os
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from hydra import compose, initialize_config_dir

from comparing import rows

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from benchmarks.measure import one_unit, peak_rss  # noqa: E402

from train import run  # noqa: E402
from wsl import build, trainer  # noqa: E402
from wsl.build import RunConfig  # noqa: E402
from wsl.callbacks.finite import NonFiniteError  # noqa: E402
from wsl.errors import UserError  # noqa: E402
from wsl.heap import keep_freed_memory  # noqa: E402
from wsl.results import Result  # noqa: E402
from wsl.run_config import TrainerConfig  # noqa: E402
from wsl.run_folder import owned, write_text  # noqa: E402

T = TypeVar("T")
#: training steps that are timed before a run, after as many that warm up
TIMED_STEPS = 7


@dataclass(frozen=True)
class Order:
    """One run that is wanted.

    Attributes:
        folder: of the run; a finished one is read, not repeated, one that was interrupted goes on.
        overrides: of ``train.py``, without encoder, rate and seed.
        encoder: option of the encoder group, and overrides of its own behind it, separated by spaces.
        rate: learning rate. seed: of the run.
        epochs: at most; fewer where they would take longer than ``minutes``.
    """

    folder: Path
    overrides: tuple[str, ...]
    encoder: str
    rate: float
    seed: int
    epochs: int
    minutes: float
    threads: int


@dataclass(frozen=True)
class Outcome:
    """What a run found.

    Attributes:
        refused: the encoder's sentence where it cannot read the zoo; all else is absent then.
        stopped: the error that ended training, likewise.
        step_units: median training step in matmul units. peak_mib: largest resident size of the process.
        symmetries: that the encoder claims. to_95: seconds until validation reached 95 % of its best, nan if unknown.
        losses: of the last epoch, in training and validation.
    """

    refused: str = ""
    stopped: str = ""
    result: Result | None = None
    step_units: float = math.nan
    peak_mib: float = math.nan
    symmetries: tuple[str, ...] = ()
    to_95: float = math.nan
    losses: tuple[float, float] = (math.nan, math.nan)

    @property
    def why_not(self) -> str:
        """Why there is no result, or nothing."""
        return self.refused or self.stopped

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Outcome:
        values = json.loads(path.read_text())
        found = values.pop("result")
        result = None if found is None else Result(**{**found, "compared": ()})
        lists = {name: tuple(values.pop(name)) for name in ("symmetries", "losses")}
        return cls(**values, **lists, result=result)


def end_with_parent() -> None:
    """Let this process end when its comparison does, even if that is killed: nothing is left that holds a folder."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=wait, daemon=True).start()


def outcome_if_known(order: Order) -> Outcome:
    """What an earlier process found."""
    path = order.folder / "outcome.json"
    return Outcome.read(path) if path.exists() else Outcome(stopped="not run")


def outcome_of(order: Order) -> Outcome:
    """Carry out an order, or read what an earlier process found."""
    path = order.folder / "outcome.json"
    if path.exists():
        return Outcome.read(path)
    torch.set_num_threads(order.threads)
    keep_freed_memory()  # as train.py does
    trainer.quieten()
    order.folder.mkdir(parents=True, exist_ok=True)
    config = configured(order)
    try:
        data = build.data(config)
        encoder = build.encoder(config, data)
    except UserError as error:
        found = Outcome(refused=str(error).splitlines()[0])
    else:
        step, units = step_seconds(config, data, encoder)
        shorter = within_budget(config.trainer, order, step, len(data.train_dataloader()))
        config = _resumable(config.model_copy(update={"trainer": shorter}), order.folder)
        symmetries = tuple(sorted(encoder.symmetries))
        del data, encoder  # the run makes its own
        try:
            with owned(order.folder):
                result = run(config, order.folder)
        except NonFiniteError as error:
            found = Outcome(stopped=str(error).splitlines()[0])
        else:
            curves = Curves.read(order.folder)
            found = Outcome(
                result=result,
                step_units=units,
                peak_mib=peak_rss() / 2**20,
                symmetries=symmetries,
                to_95=curves.seconds_to_95(result),
                losses=(curves.last("train/loss_epoch"), curves.last("val/loss")),
            )
    found.write(path)
    return found


def within_budget(config: TrainerConfig, order: Order, step: float, batches: int) -> TrainerConfig:
    """As many epochs as are wanted and the budget allows; if it does not allow one, a part of one.

    Args:
        step: seconds of a training step. batches: of an epoch.
    """
    affordable = order.minutes * 60 / step
    epochs = max(1, int(min(order.epochs, affordable / batches)))
    share = {"limit_train_batches": max(1, int(affordable))} if affordable < batches else {}
    return config.model_copy(update={"max_epochs": epochs, **share})


def configured(order: Order) -> RunConfig:
    """The config of a run: that of ``train.py`` with these overrides."""
    encoder, *own = order.encoder.split()
    chosen = (f"encoder={encoder}", f"seed={order.seed}", f"optimizer.lr={order.rate}", "compare=[]", *own)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [*order.overrides, *chosen, f"trainer.max_epochs={order.epochs}"])
        return build.config(cfg).model_copy(update={"label": rows.folder(order.encoder)})


def _resumable(config: RunConfig, folder: Path) -> RunConfig:
    """The config to go on with an interrupted run in its folder, or to begin again where it left no checkpoint."""
    if (folder / "checkpoints" / "last.ckpt").exists():
        return config.model_copy(update={"resume": str(folder)})
    for left in folder.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        elif left.name != ".lock":
            left.unlink()
    return config


def step_seconds(config: RunConfig, data: build.Data, encoder: torch.nn.Module) -> tuple[float, float]:
    """Median time of forward, backward and update on a training batch, in seconds and in matmul units.

    The unit is timed after every step, for other processes slow both down. The encoder is left as it was.
    """
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    task = build.task(config, encoder)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.0, weight_decay=0.0)
    unit, times = one_unit(), []
    encoder.train()
    for batch in islice(repeated(data.train_dataloader()), 2 * TIMED_STEPS):
        start = time.perf_counter()
        optimizer.zero_grad()
        task.loss(task.output(batch), batch).backward()
        optimizer.step()
        middle = time.perf_counter()
        unit()
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

    def seconds_to_95(self, result: Result) -> float:
        """Training time until the validation metric first reached 95 % of its best."""
        values, goal = self.values(f"val/{result.metric}"), 0.95 * result.val[result.metric]
        reached = next((n for n, value in enumerate(values) if value >= goal), None)
        return math.nan if reached is None else (reached + 1) * result.seconds / len(values)
