"""Outputs of a whole split: gathered over ranks, each row once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Rows(NamedTuple):
    """What an encoder said about each row of a split, ordered by row id."""

    row_ids: Tensor
    output: Tensor
    target: Tensor


class GatheredRows(Metric):
    """Collects (row id, output, target); :meth:`gather` returns them from all ranks, sorted and without repeats.

    Evaluation on several ranks repeats rows to keep ranks in step; a metric on these rows does not depend on the number
    of ranks.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for state in ("row_ids", "output", "target"):
            self.add_state(state, default=[], dist_reduce_fx="cat")
        self._features: tuple[int, ...] = ()

    def update(self, row_ids: Tensor, output: Tensor, target: Tensor) -> None:
        self._features = tuple(output.shape[1:])
        self.row_ids.append(row_ids)  # type: ignore[union-attr,operator]
        self.output.append(output.detach().float())  # type: ignore[union-attr,operator]
        self.target.append(target)  # type: ignore[union-attr,operator]

    def compute(self) -> Rows:
        row_ids, output, target = (dim_zero_cat(s).cpu() for s in (self.row_ids, self.output, self.target))  # type: ignore[arg-type]
        row_ids, order = row_ids.sort(stable=True)
        first = torch.ones_like(row_ids, dtype=torch.bool)
        first[1:] = row_ids[1:] != row_ids[:-1]
        return Rows(row_ids[first], output[order][first], target[order][first])

    def gather(self) -> Rows:
        """All rows, once each; and forget them. (torchmetrics squeezes results of one element: a split of one row.)"""
        rows: Rows = self.compute()
        self.reset()
        n = rows.row_ids.numel()
        return Rows(rows.row_ids.reshape(n), rows.output.reshape(n, *self._features), rows.target.reshape(n))
