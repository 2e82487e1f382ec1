"""Say during training where gradients die, explode or go to waste, by layer and parameter, and what to try."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer

from wsl import plots
from wsl.gradient_flow import steps
from wsl.gradient_flow.reader import FlowReader, Readings
from wsl.gradient_flow.verdicts import History, Verdict
from wsl.ranges import NonNegativeInt, PositiveInt

#: what the figure shows, and under which title
PANELS = {
    "gradient_rms": "gradient, root mean square",
    "relative_update": "update, relative",
    "entropy": "attention entropy",
}


class GradientFlow(pl.Callback):
    """Takes the readings of :mod:`wsl.gradient_flow` at every ``every``-th step, logs them and judges them.

    Any encoder has D1 to D4, D13 and D14; GATv2 layers have the others. Training is not changed in any bit: what a
    reading draws comes from a generator of its own. Between readings there is no cost but a copy of the gradients one
    step before each; ``scripts/benchmark.py gradient_flow`` measures what a reading costs. The run folder gets

        gradient_flow.csv             every reading: step, quantity, place (a layer or a parameter), value
        gradient_flow_verdicts.csv    every verdict: first and last step at which it held, in words, with what to try
        figures/gradient_flow.png     gradient, update and, with attention, entropy: layers × steps

    Args:
        folder: the run folder (given by the program).
        every: optimiser steps between readings.
        jacobian_samples: random directions for the gain of each layer (D13); 0: none.
    """

    def __init__(self, folder: Path, *, every: PositiveInt = 50, jacobian_samples: NonNegativeInt = 4) -> None:
        self.folder, self.every, self.jacobian_samples = folder, every, jacobian_samples
        self.table = folder / "gradient_flow.csv"
        self.history = History()
        self.spells: dict[tuple[str, str, str], tuple[int, int, Verdict]] = {}
        self._console = Console(highlight=False, soft_wrap=True)
        self._reader = FlowReader(nn.Identity())
        self._readings: Readings = {}
        self._previous: list[Tensor] | None = None
        self._step: int | None = None

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        encoder = getattr(task, "encoder", task)
        assert isinstance(encoder, nn.Module)
        self._reader = FlowReader(encoder)
        if self.table.exists():  # a resumed run: later readings will be taken again
            self._read_table(trainer.global_step)

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.every == 0:
            self._step = trainer.global_step
            self._reader.attach()

    def on_before_backward(self, trainer: pl.Trainer, task: pl.LightningModule, loss: Tensor) -> None:
        if self._step is not None:
            generator = torch.Generator().manual_seed(self._step)
            self._readings = self._reader.before_backward(generator, self.jacobian_samples)

    def on_before_optimizer_step(self, trainer: pl.Trainer, task: pl.LightningModule, optimizer: Optimizer) -> None:
        gradients = list(self._reader.gradients().values())
        if self._step is not None:
            self._readings |= self._reader.after_backward()
            if self._previous is not None and len(self._previous) == len(gradients):
                self._readings["direction"] = {"all parameters": steps.direction(gradients, self._previous)}
        comes_next = (trainer.global_step + 1) % self.every == 0
        self._previous = [gradient.clone() for gradient in gradients] if comes_next else None

    def on_train_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._step is None:
            return
        if self._reader.stepping:  # with accumulated gradients, not every batch ends in a step
            self._readings |= self._reader.after_step()
            self._judge(trainer, self._step)
        self._reader.detach()
        self._step = None

    def on_train_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._write(trainer)

    def on_exception(self, trainer: pl.Trainer, task: pl.LightningModule, exception: BaseException) -> None:
        """What was read before a run broke down says most about why."""
        if self._step is not None and self._reader.stepping:
            self._judge(trainer, self._step)
        self._reader.detach()
        self._step = None
        self._write(trainer)

    def _judge(self, trainer: pl.Trainer, step: int) -> None:
        """Keep, log and judge; a verdict is printed when it first holds."""
        self.history.add(step, self._readings)
        layers_only = {
            f"gradient_flow/{quantity}/{place}": value
            for quantity, places in self._readings.items()
            for place, value in places.items()
            if not self._reader.is_parameter(place) and math.isfinite(value)
        }
        for logger in trainer.loggers:
            logger.log_metrics(layers_only, step=step)
        for verdict in self.history.verdicts():
            key = (verdict.symptom, verdict.place, verdict.quantity)
            if key not in self.spells and trainer.is_global_zero:
                self._console.print(f"step {step}: {verdict}", markup=False)
            first = self.spells[key][0] if key in self.spells else step
            self.spells[key] = first, step, verdict

    def _read_table(self, before: int) -> None:
        with open(self.table, newline="") as file:
            for row in csv.DictReader(file):
                if int(row["step"]) < before:
                    self.history.add(int(row["step"]), {row["quantity"]: {row["place"]: float(row["value"])}})

    def _write(self, trainer: pl.Trainer) -> None:
        readings = self.history.readings
        if not trainer.is_global_zero or not readings:
            return
        rows = [
            (step, quantity, place, value)
            for quantity, places in readings.items()
            for place, series in places.items()
            for step, value in series
        ]
        _write_csv(self.table, ("step", "quantity", "place", "value"), sorted(rows, key=lambda row: row[0]))
        _write_csv(
            self.folder / "gradient_flow_verdicts.csv",
            ("symptom", "place", "first_step", "last_step", "quantity", "value", "words", "try"),
            [
                (v.symptom, v.place, first, last, v.quantity, v.value, v.words, v.advice)
                for first, last, v in self.spells.values()
            ],
        )
        panels = {
            title: {place: readings[quantity][place] for place in self._reader.places if place in readings[quantity]}
            for quantity, title in PANELS.items()
            if quantity in readings
        }
        plots.layers_by_steps(panels, self.folder / "figures" / "gradient_flow.png")


def _write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
