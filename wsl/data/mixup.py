"""Mixup: a network and its target, each moved towards those of another network of its architecture."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import betaincinv
from torch import Tensor

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.data.counter import RowRandom
from wsl.data.rows import RowDataset


class Mixup:
    """w' = λ w + (1 − λ) w₂ and the same of the targets, λ from Beta(α, α) (Zhang et al., "mixup", 2018).

    The partner is another training row, drawn anew for each epoch and view: all rows of an architecture form a random
    ring, and each is mixed with the next. So λ and partner are functions of (seed, epoch, row id, view) like everything
    else, and a batch need not hold the partners of its rows. A row whose architecture no other row has stays as it is.
    Weights are mixed as they lie; nothing aligns the neurons of the two.

    Args:
        dataset: the training rows, in memory.
        classes: number of classes, which become shares ``[B, classes]``; 0: targets are numbers.
        alpha: α > 0; small values mix little.
        seed: of the run.
    """

    def __init__(self, dataset: RowDataset, classes: int, alpha: float, seed: int) -> None:
        rows = dataset.rows
        assert rows.row_ids is not None, "a zoo's rows carry their ids"
        self.dataset, self.classes, self.alpha, self.seed = dataset, classes, alpha, seed
        self.row_ids = rows.row_ids
        self.by_id = self.row_ids.argsort()
        spec_ids = torch.zeros(len(rows), dtype=torch.int64) if isinstance(rows, WeightBatch) else rows.spec_ids
        self.spec_ids = spec_ids.numpy()
        self._ring: tuple[tuple[int, int], Tensor] | None = None

    def __call__(self, batch: MixedWeightBatch, random: RowRandom, epoch: int, view: int) -> MixedWeightBatch:
        assert batch.row_ids is not None and batch.target is not None, "a zoo's batches carry ids and targets"
        here = self.by_id[torch.searchsorted(self.row_ids[self.by_id], batch.row_ids.cpu())]
        partners = self.dataset[self.partner_of(epoch, view)[here].tolist()]
        partners = (partners.flat() if isinstance(partners, WeightBatch) else partners).to(batch.values.device)
        assert partners.target is not None
        drawn = random.uniform("mixup").cpu().numpy()
        share = torch.from_numpy(betaincinv(self.alpha, self.alpha, drawn)).to(batch.values)
        of_value = share.repeat_interleave(batch.offsets.diff()).unsqueeze(1)
        values = of_value * batch.values + (1 - of_value) * partners.values
        ours, theirs = self._shares(batch.target), self._shares(partners.target)
        share = share.reshape(-1, *(1,) * (ours.dim() - 1))
        return MixedWeightBatch(
            batch.specs, batch.spec_ids, values, batch.offsets, share * ours + (1 - share) * theirs, batch.row_ids
        )

    def partner_of(self, epoch: int, view: int) -> Tensor:
        """``[n]`` int64: the position of the row that each training row is mixed with."""
        if self._ring is None or self._ring[0] != (epoch, view):
            drawn = RowRandom.of(self.row_ids, self.seed, epoch, view).uniform("mixup partner").numpy()
            ring = np.lexsort((drawn, self.spec_ids))
            first = np.flatnonzero(np.diff(self.spec_ids[ring], prepend=-1))
            following = np.roll(ring, -1)
            following[np.append(first[1:], len(ring)) - 1] = ring[first]  # the last of an architecture: its first
            partner = np.empty_like(ring)
            partner[ring] = following
            self._ring = (epoch, view), torch.from_numpy(partner)
        return self._ring[1]

    def _shares(self, target: Tensor) -> Tensor:
        return F.one_hot(target, self.classes).float() if self.classes else target
