"""Stop before a non-finite loss or gradient can reach the weights, or pass over such steps where that is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from torch import Tensor
from torch.optim import Optimizer

from wsl.errors import UserError


class NonFiniteError(UserError, FloatingPointError):
    """Loss or gradients are NaN or infinite; the message names the step, the ranks and the rows."""


@dataclass(frozen=True)
class Seen:
    """What one rank has seen of a step.

    Attributes:
        losses: of its batches; more than one where gradients accumulate.
        rows: of each batch.
        parameters: whose gradients are not finite.
    """

    losses: tuple[float, ...]
    rows: tuple[tuple[int, ...], ...]
    parameters: tuple[str, ...]


class StopOnNonFinite(pl.Callback):
    """Raise :class:`NonFiniteError` when a training loss or the gradient's norm is not finite.

    The check comes before the optimiser step, so the weights are those of the step before. The ranks take the verdict
    together: where one of them has such a loss, all raise the same error, which names that rank and its rows. With
    16-bit mixed precision infinite gradients are the gradient scaler's business and only the loss is checked.

    A step that is passed over changes neither weights nor the optimiser's state, on any rank; it counts as a step of
    the schedule. It is printed and logged as ``train/passed_over``, the number of such steps so far.

    Args:
        allowed: steps of a run that may be passed over; the next one raises.
    """

    def __init__(self, allowed: int = 0) -> None:
        self._allowed, self._passed = allowed, 0
        self._losses: list[Tensor] = []
        self._rows: list[Tensor | None] = []
        self._batch_rows: Tensor | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch_rows = getattr(batch, "row_ids", None)

    def on_before_backward(self, trainer: pl.Trainer, task: pl.LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())
        self._rows.append(self._batch_rows)

    def on_before_optimizer_step(self, trainer: pl.Trainer, task: pl.LightningModule, optimizer: Optimizer) -> None:
        losses, self._losses = self._losses, []
        rows, self._rows = self._rows, []
        scaled = trainer.precision == "16-mixed"
        gradients = {} if scaled else {n: p.grad for n, p in task.named_parameters() if p.grad is not None}
        total = torch.stack(losses).sum()
        if gradients:
            total = total + torch.stack(list(torch._foreach_norm(list(gradients.values())))).sum().to(total)
        finite = torch.isfinite(total).int()
        if trainer.world_size > 1:  # Lightning's own reduction would wait for all ranks once more
            torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
        if finite:
            return
        mine = Seen(
            tuple(loss.item() for loss in losses),
            tuple(() if ids is None else tuple(ids.tolist()) for ids in rows),
            tuple(name for name, gradient in gradients.items() if not gradient.isfinite().all()),
        )
        message = self._message(trainer, _of_all_ranks(mine, trainer.world_size))
        if self._passed >= self._allowed:
            raise NonFiniteError(message + self._advice())
        for parameter in task.parameters():
            parameter.grad = None  # an optimiser passes over what has no gradient: no decay, no momentum
        self._passed += 1
        if trainer.is_global_zero:
            note = f"{message}; the step is passed over ({self._passed} of callbacks.skip_non_finite={self._allowed})"
            Console(stderr=True).print(note, soft_wrap=True, markup=False)
            for logger in trainer.loggers:
                logger.log_metrics({"train/passed_over": float(self._passed)}, step=trainer.global_step)

    def _message(self, trainer: pl.Trainer, ranks: list[Seen]) -> str:
        """Which loss of which rank it was, or else whose gradients; and the rows that went in."""
        parts = []
        for rank, seen in enumerate(ranks):
            where = f"on rank {rank} " if len(ranks) > 1 else ""
            for loss, rows in zip(seen.losses, seen.rows, strict=True):
                if not math.isfinite(loss):
                    parts.append(f"{where}the loss is {loss}, of the rows {_listed(rows)}")
        if not parts:  # gradients are summed over ranks: any of their rows may be why
            every = [row for seen in ranks for batch in seen.rows for row in batch]
            names = sorted({name for seen in ranks for name in seen.parameters})
            what = f"the gradients of {', '.join(names)} are not finite"
            if not names:  # the square of a finite number may overflow
                what = "every gradient is finite, but too large for their norm to be"
            parts = [f"{what}, of the rows {_listed(every)}"]
        return f"step {trainer.global_step} (epoch {trainer.current_epoch}): {'; '.join(parts)}"

    def _advice(self) -> str:
        passed = f" after {self._passed} steps that were passed over" if self._passed else ""
        return (
            f". The run ends{passed}; the weights are still those of the step before. Look at these rows "
            "(scripts/verify_zoo.py), lower optimizer.lr, set trainer.gradient_clip_val, or let some steps be passed "
            "over (callbacks.skip_non_finite)"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"passed": self._passed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._passed = state["passed"]


def _of_all_ranks(mine: Seen, world: int) -> list[Seen]:
    if world == 1:
        return [mine]
    seen: list[Any] = [None] * world
    torch.distributed.all_gather_object(seen, mine)
    return seen


def _listed(rows: Any) -> str:
    return ", ".join(map(str, rows)) or "unknown"
