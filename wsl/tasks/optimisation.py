"""Optimisers and learning-rate schedules as the config names them: options first, parameters later."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Protocol

import torch
from annotated_types import Interval
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from wsl.ranges import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Rate

#: (optimiser, number of steps in the run, metric to watch, its mode) → Lightning's scheduler entry
MakeScheduler = Callable[[Optimizer, int, str, str], dict[str, Any]]


class MakeOptimizer(Protocol):
    """An optimiser of some parameters; fused, it goes once through memory instead of once for each operation."""

    def __call__(self, parameters: Iterable[nn.Parameter], fused: bool = False) -> Optimizer: ...


def adam(
    *,
    lr: PositiveFloat = 1e-3,
    weight_decay: NonNegativeFloat = 0.0,
    betas: tuple[Rate, Rate] = (0.9, 0.999),
    amsgrad: bool = False,
) -> MakeOptimizer:
    """Adam; weight decay, if any, is added to the gradient."""
    return lambda parameters, fused=False: torch.optim.Adam(
        parameters, lr=lr, betas=betas, weight_decay=weight_decay, amsgrad=amsgrad, fused=fused or None
    )


def adamw(
    *,
    lr: PositiveFloat = 1e-3,
    weight_decay: NonNegativeFloat = 5e-4,
    betas: tuple[Rate, Rate] = (0.9, 0.999),
    amsgrad: bool = True,
) -> MakeOptimizer:
    """AdamW with decoupled weight decay; the defaults are those of the Neural Graphs experiments."""
    return lambda parameters, fused=False: torch.optim.AdamW(
        parameters, lr=lr, betas=betas, weight_decay=weight_decay, amsgrad=amsgrad, fused=fused or None
    )


def sgd(
    *, lr: PositiveFloat = 1e-2, momentum: Rate = 0.9, weight_decay: NonNegativeFloat = 0.0, nesterov: bool = False
) -> MakeOptimizer:
    """Stochastic gradient descent with momentum."""
    return lambda parameters, fused=False: torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=fused or None
    )


def warm_up_factor(step: int, warm_up: int) -> float:
    """Linear from 1/(warm_up + 1) at step 0 to 1 at step ``warm_up``, then 1."""
    return min(1.0, (step + 1) / (warm_up + 1))


def cosine_factor(step: int, warm_up: int, total: int, final: float) -> float:
    """Warm-up, then half a cosine from 1 down to ``final`` at step ``total``."""
    if step < warm_up:
        return warm_up_factor(step, warm_up)
    progress = min(1.0, (step - warm_up) / max(1, total - warm_up))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def constant() -> MakeScheduler:
    """The learning rate of the optimiser, throughout."""
    return lambda optimizer, total, metric, mode: _by_step(optimizer, lambda step: 1.0)


def warm_up(*, steps: NonNegativeInt = 1000) -> MakeScheduler:
    """Linear warm-up over ``steps`` optimiser steps, then constant."""
    return lambda optimizer, total, metric, mode: _by_step(optimizer, lambda step: warm_up_factor(step, steps))


def cosine(*, warm_up: NonNegativeInt = 0, final: Fraction = 0.0) -> MakeScheduler:
    """Linear warm-up over ``warm_up`` steps, then half a cosine down to ``final`` × the learning rate."""
    return lambda optimizer, total, metric, mode: _by_step(
        optimizer, lambda step: cosine_factor(step, warm_up, total, final)
    )


def plateau(*, factor: Annotated[float, Interval(gt=0, lt=1)] = 0.5, patience: PositiveInt = 10) -> MakeScheduler:
    """Multiply the rate by ``factor`` after ``patience`` epochs without a better validation metric."""

    def make(optimizer: Optimizer, total: int, metric: str, mode: str) -> dict[str, Any]:
        schedule = ReduceLROnPlateau(optimizer, mode=mode, factor=factor, patience=patience)  # type: ignore[arg-type]
        return {"scheduler": schedule, "interval": "epoch", "monitor": metric}

    return make


def _by_step(optimizer: Optimizer, factor: Callable[[int], float]) -> dict[str, Any]:
    return {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
