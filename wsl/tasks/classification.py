"""Which class does a network belong to? (What does this INR show?)"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from wsl.batch import WeightBatch
from wsl.encoders.base import Encoder
from wsl.ranges import Rate
from wsl.tasks.base import Task
from wsl.tasks.gathered import Rows
from wsl.tasks.optimisation import MakeOptimizer, MakeScheduler


class Classification(Task):
    """Cross-entropy on the encoder's output as logits ``[B, classes]``; metric: accuracy, a fraction in [0, 1].

    Args:
        label_smoothing: share of the target's probability that is spread over all classes, in [0, 1).
    """

    monitor = "val/accuracy"
    mode = "max"
    needs_classes = True

    def __init__(
        self,
        encoder: Encoder,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler,
        seed: int = 0,
        *,
        label_smoothing: Rate = 0.0,
    ) -> None:
        super().__init__(encoder, optimizer, scheduler, seed)
        self.label_smoothing = label_smoothing

    def loss(self, output: Tensor, batch: WeightBatch) -> Tensor:
        assert batch.target is not None, "a zoo's batches carry their targets"
        smoothing = self.label_smoothing if self.training else 0.0
        return F.cross_entropy(output, batch.target, label_smoothing=smoothing)

    def metrics(self, rows: Rows) -> dict[str, float]:
        return {"accuracy": (rows.output.argmax(-1) == rows.target).double().mean().item()}
