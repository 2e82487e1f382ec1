"""The LightningModule around an encoder: one shared step, metrics on gathered rows, the optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics.utilities.distributed import gather_all_tensors

from wsl.batch import WeightBatch
from wsl.data.sampler import mixed_seed
from wsl.encoders.base import Encoder
from wsl.other_model import OtherModelError, check_types, differences
from wsl.spec import WeightSpec
from wsl.spec.family import SpecFamily
from wsl.tasks.gathered import GatheredRows, Rows
from wsl.tasks.optimisation import MakeOptimizer, MakeScheduler


class Task(pl.LightningModule):
    """What the encoder's output is for. Subclasses give the loss and the metrics.

    Attributes:
        monitor: the validation metric that chooses the checkpoint; ``mode``: "max" or "min".
        reads: the types of description that the encoder's inputs may have.
        needs_classes: whether the target must be a class; ``needs_images``: whether it must be an image.
        needs_field: whether the encoder must be equivariant; the other tasks need an invariant one.
        target_range: the least and the greatest target that the task can take, or None.
        tested: after testing, what :meth:`recorded` said of every test row.
    """

    monitor: ClassVar[str]
    mode: ClassVar[str]
    reads: ClassVar[tuple[type, ...]] = (WeightSpec, SpecFamily)
    needs_classes: ClassVar[bool] = False
    needs_images: ClassVar[bool] = False
    needs_field: ClassVar[bool] = False
    target_range: ClassVar[tuple[float, float] | None] = None

    def __init__(self, encoder: Encoder, optimizer: MakeOptimizer, scheduler: MakeScheduler, seed: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        self._make_optimizer, self._make_scheduler, self._seed = optimizer, scheduler, seed
        self._val_rows, self._test_rows = GatheredRows(), GatheredRows()
        self._epoch_loss, self._epoch_rows = torch.zeros(()), 0  # of this epoch's batches so far
        self.tested: Rows | None = None

    @classmethod
    def out_features(cls, classes: int, options: Mapping[str, Any]) -> int:
        """How many features the encoder is to return, for targets of so many classes (0: no classes).

        Args:
            options: of the task's config group.
        """
        return classes

    def output(self, batch: WeightBatch) -> Tensor:
        """What the encoder says about the rows of the batch."""
        return self.encoder(batch)

    def loss(self, output: Tensor, batch: WeightBatch) -> Tensor:
        raise NotImplementedError

    def recorded(self, output: Tensor, batch: WeightBatch) -> tuple[Tensor, Tensor]:
        """What the metrics need of each row: ``[B, …]`` of the output, and ``[B, …]`` to compare it with."""
        assert batch.target is not None, "a zoo's batches carry their targets"
        return output, batch.target

    def metrics(self, rows: Rows) -> dict[str, float]:
        raise NotImplementedError

    def training_step(self, batch: WeightBatch, batch_index: int) -> Tensor:
        # Dropout and the like depend on (seed, epoch, batch, rank) alone, so a resumed run repeats exactly.
        torch.manual_seed(mixed_seed(self._seed, self.current_epoch, batch_index, self.global_rank))
        loss = self.loss(self.output(batch), batch)
        self.log("train/loss_step", loss, prog_bar=True, batch_size=len(batch), sync_dist=True)
        self._epoch_loss, self._epoch_rows = (
            self._epoch_loss + len(batch) * loss.detach(),
            self._epoch_rows + len(batch),
        )
        if self.trainer.is_last_batch:
            mean = self._epoch_loss / self._epoch_rows
            self.log("train/loss_epoch", mean, on_step=False, on_epoch=True, batch_size=len(batch), sync_dist=True)
            self._epoch_loss, self._epoch_rows = torch.zeros(()), 0
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Lightning forgets an epoch's mean so far; every rank has one of its own
        total = torch.as_tensor(self._epoch_loss, device=self.device)
        totals = gather_all_tensors(total) if self.trainer.world_size > 1 else [total]
        checkpoint["epoch_loss"] = [float(t) for t in totals], self._epoch_rows

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        totals, self._epoch_rows = checkpoint.get("epoch_loss", ([0.0], 0))
        self._epoch_loss = torch.tensor(totals[self.global_rank] if self._epoch_rows else 0.0)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of every module, but the tensors of another model are refused with their names, shapes and types."""
        where = str(self._trainer.ckpt_path) if self._trainer is not None else "the state"
        expected = self.state_dict()
        check_types(state_dict, expected, where)
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            raise OtherModelError(
                f"{where} holds another model than this run's:\n{differences(state_dict, expected) or error}\n"
                "A run goes on from checkpoints of its own: put back the one of this run, or remove this one to go on "
                "from the generation before it; to train another model, start a new run"
            ) from None

    def validation_step(self, batch: WeightBatch, batch_index: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: WeightBatch, batch_index: int) -> None:
        self._evaluate("test", batch)

    def on_validation_epoch_end(self) -> None:
        rows = self._conclude("val")
        schedule = self.lr_schedulers()
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.step(self.metrics(rows)[self.monitor.removeprefix("val/")])

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        # Lightning would step a plateau after the epoch's checkpoint is written, and a resumed run would miss a step.
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()

    def on_test_epoch_end(self) -> None:
        self.tested = self._conclude("test")

    def _evaluate(self, split: str, batch: WeightBatch) -> None:
        output = self.output(batch)
        self.log(f"{split}/loss", self.loss(output, batch), batch_size=len(batch), sync_dist=True)
        assert batch.row_ids is not None, "a zoo's batches carry ids"
        self._gathered(split).update(batch.row_ids, *self.recorded(output, batch))

    def _gathered(self, split: str) -> GatheredRows:
        return self._val_rows if split == "val" else self._test_rows

    def _conclude(self, split: str) -> Rows:
        rows = self._gathered(split).gather()
        metrics = {f"{split}/{name}": value for name, value in self.metrics(rows).items()}
        self.log_dict(metrics, prog_bar=split == "val")
        return rows

    def optimizer(self, *, fused: bool) -> Optimizer:
        """A new optimiser of the encoder, in one kernel for all parameters if ``fused``."""
        return self._make_optimizer(self.encoder.parameters(), fused)

    def configure_optimizers(self) -> Any:
        # a fused one unscales gradients itself: none can be clipped then
        optimizer = self.optimizer(fused="mixed" not in self.trainer.precision)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = self._make_scheduler(optimizer, steps, self.monitor, self.mode)
        if "monitor" in schedule:  # stepped by epochs that have a validation
            schedule["frequency"] = self.trainer.check_val_every_n_epoch
        return {"optimizer": optimizer, "lr_scheduler": schedule}
