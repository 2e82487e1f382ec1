"""Encoders around another encoder: config gives them the inner one as a group of its own, code as a function."""

from __future__ import annotations

from collections.abc import Callable

from wsl.batch import WeightBatch
from wsl.encoders.base import Encoder
from wsl.spec import WeightSpec

#: builds the inner encoder: (spec, out_features) → encoder
MakeEncoder = Callable[[WeightSpec, int], Encoder]


class Wrapper(Encoder):
    """Changes what the inner encoder reads, and undoes it in what it returns.

    Args:
        spec, out_features: also those of the inner encoder.
        encoder: builds the inner encoder.
    """

    def __init__(self, spec: WeightSpec, out_features: int, encoder: MakeEncoder) -> None:
        super().__init__(spec, out_features)
        self.encoder = encoder(spec, out_features)
        self.equivariant = self.encoder.equivariant

    def prepared(self, batch: WeightBatch) -> WeightBatch:
        """What the inner encoder reads."""
        raise NotImplementedError

    def fit_statistics(self, batch: WeightBatch) -> None:
        """Statistics of what the inner encoder will read."""
        self.encoder.fit_statistics(self.prepared(batch))
