"""Reading single networks out of batches, shared by tests."""

from __future__ import annotations

from torch import Tensor

from wsl.batch import MixedWeightBatch, WeightBatch


def network(batch: WeightBatch | MixedWeightBatch, place: int) -> Tensor:
    """The parameters ``[P]`` of one network of a batch."""
    if isinstance(batch, WeightBatch):
        return batch.values[place, :, 0]
    return batch.values[batch.offsets[place] : batch.offsets[place + 1], 0]
