"""When to prune, and how much: warm-up, constant thresholds or a cubic ramp, then frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wsl.sparsity import SparsityError

Phase = Literal["dense", "regrow", "monotone", "frozen"]


@dataclass(frozen=True)
class Schedule:
    """What holds in each epoch of a run.

        dense      nothing is pruned (the first ``warm_up`` epochs)
        regrow     masks are made from the dense weights in every step: what was pruned may come back
        monotone   a mask is made on top of the one before: what is pruned stays pruned
        frozen     masks and kept edges do not change any more

    Args:
        epochs: of the run. warm_up: dense epochs. monotone: first epoch of that phase (official: half of the epochs).
        freeze: first epoch of that phase; None: never.
        ramp: epochs after the warm-up in which a target sparsity is reached: 1 − (1 − t)³ of it at the share t.
    """

    epochs: int
    warm_up: int
    monotone: int
    freeze: int | None
    ramp: int

    def __post_init__(self) -> None:
        if self.warm_up >= self.epochs:
            raise SparsityError(
                f"sparsity.warm_up={self.warm_up} is not below trainer.max_epochs={self.epochs}, so nothing would "
                "be pruned"
            )
        if self.freeze is not None and self.freeze <= self.warm_up:
            raise SparsityError(
                f"sparsity.freeze={self.freeze} must come after sparsity.warm_up={self.warm_up}: "
                "a mask is made before it is frozen"
            )

    def phase(self, epoch: int) -> Phase:
        if epoch < self.warm_up:
            return "dense"
        if self.freeze is not None and epoch >= self.freeze:
            return "frozen"
        return "regrow" if epoch < self.monotone else "monotone"

    def share(self, epoch: int) -> float:
        """Of the target sparsity, in [0, 1]."""
        if epoch < self.warm_up:
            return 0.0
        if self.ramp == 0:
            return 1.0
        passed = min(1.0, (epoch - self.warm_up + 1) / self.ramp)
        return 1.0 - (1.0 - passed) ** 3
