"""The Lightning trainer with what every run has: callbacks, loggers, checkpoints that survive a crash."""

from __future__ import annotations

import logging
import os
import sys
import uuid
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import pytorch_lightning as pl
from annotated_types import Ge
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy, Strategy
from rich.console import Console

from wsl import ranks
from wsl.callbacks.finite import StopOnNonFinite
from wsl.callbacks.gradient_flow import GradientFlow
from wsl.callbacks.moved import MovedFolder
from wsl.callbacks.preempt import Preempt
from wsl.callbacks.progress import PlainProgress
from wsl.callbacks.provenance import Provenance
from wsl.callbacks.stopwatch import Stopwatch
from wsl.checkpoint import AtomicCheckpointIO
from wsl.config import arguments, schema_of
from wsl.metrics_file import MetricsFile
from wsl.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveFraction, PositiveInt
from wsl.run_folder import first_rank, write_text

#: what libraries warn of that no user of ours can act on
FOREIGN_WARNINGS = (
    "'set_vital' is deprecated",  # torchdata 0.11 on torch 2.13
    ".*isinstance.treespec, LeafSpec.. is deprecated",  # Lightning 2.6 on torch 2.13
    ".*does not have many workers",  # rows are cut from memory by one indexing operation
    ".*smaller than the logging interval",
    "`ModelCheckpoint.monitor=.* could not find the monitored key",  # wsl.build.chosen says what to do
    "Checkpoint directory .* exists and is not empty",  # the run that is resumed
    "The `srun` command is available",  # wsl.ranks says what is wrong, where anything is
    "It is recommended to use .self.log.*sync_dist",  # metrics of gathered rows are the same on all ranks
)

#: says which rank of this machine was killed, and ends the others
LAUNCHER = "lightning_fabric.strategies.launchers.subprocess_script"


if TYPE_CHECKING:
    GradientFlowConfig: TypeAlias = Any
else:
    GradientFlowConfig = schema_of("", GradientFlow, ("folder",))


def lightning_trainer(
    *,
    folder: Path,
    callbacks: Sequence[pl.Callback],
    loggers: Sequence[Logger],
    mixed: bool = False,
    accelerator: Literal["cpu", "gpu", "auto"] = "cpu",
    devices: PositiveInt = 1,
    num_nodes: PositiveInt = 1,
    strategy: Literal["auto", "ddp"] = "auto",
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true",
    max_epochs: PositiveInt = 20,
    max_steps: Annotated[int, Ge(-1)] = -1,
    gradient_clip_val: NonNegativeFloat = 10.0,
    accumulate_grad_batches: PositiveInt = 1,
    check_val_every_n_epoch: PositiveInt = 1,
    log_every_n_steps: PositiveInt = 10,
    checkpoint_every_n_steps: NonNegativeInt = 0,
    collective_timeout: PositiveFloat = 600.0,
    limit_train_batches: PositiveInt | PositiveFraction = 1.0,
    limit_val_batches: PositiveInt | PositiveFraction = 1.0,
    limit_test_batches: PositiveInt | PositiveFraction = 1.0,
    deterministic: bool = True,
    progress: Literal["auto", "bar", "lines", "none"] = "auto",
) -> pl.Trainer:
    """A trainer from the config group ``trainer`` (whose schema is this signature).

    Args:
        mixed: whether a batch may lack some of the data's architectures, or parameters may get no gradient for another
            reason (given by the program).
        max_steps: optimiser steps after which training ends, if max_epochs have not ended it; -1: any number.
        devices: processes on each node, one for each GPU. num_nodes: machines.
        checkpoint_every_n_steps: optimiser steps between checkpoints within an epoch, beside the one at its end; 0: no.
        collective_timeout: seconds that a rank waits for the others before the run ends with an error.

    Raises:
        RanksError: if the processes that were started are not those that devices and num_nodes ask for.
    """
    quieten()
    shown = ("bar" if sys.stdout.isatty() else "lines") if progress == "auto" else progress
    bars: dict[str, list[pl.Callback]] = {"bar": [RichProgressBar()], "lines": [PlainProgress()], "none": []}
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=_strategy(strategy, devices * num_nodes, mixed, collective_timeout),
        precision=precision,
        max_epochs=max_epochs,
        max_steps=max_steps,
        gradient_clip_val=gradient_clip_val or None,
        accumulate_grad_batches=accumulate_grad_batches,
        check_val_every_n_epoch=check_val_every_n_epoch,
        log_every_n_steps=log_every_n_steps,
        limit_train_batches=limit_train_batches,
        limit_val_batches=limit_val_batches,
        limit_test_batches=limit_test_batches,
        num_sanity_val_steps=0,
        deterministic=deterministic,
        use_distributed_sampler=False,  # wsl.data.sampler shards by global row, so that resuming is exact
        callbacks=[
            *callbacks,
            *_within_epochs(folder, checkpoint_every_n_steps),
            Preempt(folder, collective_timeout),
            *bars[shown],
        ],
        logger=list(loggers),
        plugins=[AtomicCheckpointIO(), ranks.environment(devices, num_nodes)],
        enable_progress_bar=shown == "bar",
        enable_model_summary=False,
    )
    # Signals are wsl.preemption's. Lightning's own handler would talk to the other ranks, which may not listen.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _strategy(name: str, world: int, mixed: bool, timeout: float) -> Strategy | str:
    """DDP where there are several ranks.

    A rank's batch of a mixed zoo may lack an architecture that has parameters of its own. DDP then has to look, after
    each forward pass, which parameters got no gradient here: it waits for none of them, and one that no rank has used
    keeps no gradient at all, so that the optimiser passes over it as it does with a single rank. (To add zero times
    each parameter to the loss would not wait either, but weight decay and momentum would move what nothing used.)
    """
    if name == "auto" and world == 1:
        return "auto"
    return DDPStrategy(find_unused_parameters=mixed, timeout=timedelta(seconds=timeout))


class CheckpointWithinEpochs(ModelCheckpoint):
    """Writes ``last.ckpt`` every so many steps, but not after an epoch's last one, whose end comes at once."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *args, **kwargs)


def _within_epochs(folder: Path, steps: int) -> list[pl.Callback]:
    if not steps:
        return []
    return [
        CheckpointWithinEpochs(
            dirpath=folder / "checkpoints",
            filename="last",
            every_n_train_steps=steps,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
    ]


def quieten() -> None:
    """Silence Lightning's advice and the warnings of libraries about each other; a run's own words remain."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger(LAUNCHER).setLevel(logging.INFO)
    for message in FOREIGN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def callbacks(
    *,
    folder: Path,
    monitor: str,
    mode: str,
    source: dict[str, Any],
    seed: int,
    sparsify: pl.Callback | None = None,
    gradient_flow: GradientFlowConfig | None = None,
    skip_non_finite: NonNegativeInt = 0,
) -> list[pl.Callback]:
    """Checkpoints (the best by validation, the last), non-finite guard, provenance, and what the config asks for.

    Args:
        skip_non_finite: steps with a non-finite loss or gradient that are passed over before one ends the run; 0: none.
    """
    best = ModelCheckpoint(
        dirpath=folder / "checkpoints",
        filename=f"best-{{epoch}}-{{{monitor}:.4f}}",
        auto_insert_metric_name=False,
        monitor=monitor,
        mode=mode,
        save_top_k=1,
        enable_version_counter=False,
    )
    last = ModelCheckpoint(  # every epoch; with ``save_last`` the best one would be the last one too
        dirpath=folder / "checkpoints", filename="last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    always = [
        MovedFolder(folder / "checkpoints"),
        best,
        last,
        Stopwatch(),
        StopOnNonFinite(skip_non_finite),
        Provenance(folder, source, seed),
    ]
    always = always if sparsify is None else [sparsify, *always]
    if gradient_flow is None:
        return always
    return [GradientFlow(folder, **arguments(gradient_flow)), *always]  # first: it is to see what stops a run


def loggers(
    *,
    folder: Path,
    name: str,
    wandb: bool = True,
    project: str = "wsl",
    group: str | None = None,
    tags: tuple[str, ...] = (),
) -> list[Logger]:
    """metrics.csv, and a W&B run: online with an API key, else offline, left out where wandb is missing.

    The W&B run id is drawn before the first step and kept in ``wandb_id.txt``, so a resumed run continues its run.
    """
    out: list[Logger] = [MetricsFile(folder)]
    if not wandb:
        return out
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb as installed
        from pytorch_lightning.loggers import WandbLogger
    except ImportError:
        Console(stderr=True).print("wandb is not installed: metrics go to metrics.csv only")
        return out
    if not os.environ.get("WANDB_API_KEY") and not os.environ.get("WANDB_MODE"):
        os.environ["WANDB_MODE"] = "offline"
    identity = folder / "wandb_id.txt"
    if not first_rank():
        return out  # one W&B run for all ranks
    if not identity.exists():
        write_text(identity, uuid.uuid4().hex[:8] + "\n")
    offline = os.environ.get("WANDB_MODE") == "offline"
    if not offline and not _reachable(installed):
        Console(stderr=True).print("W&B cannot be reached: this run is logged offline; `wandb sync` it later")
        os.environ["WANDB_MODE"], offline = "offline", True
    logger = WandbLogger(
        name=name,
        project=project,
        group=group,
        tags=list(tags),
        id=identity.read_text().strip(),
        save_dir=folder,
        offline=offline,
        resume=None if offline else "allow",
        log_model=False,
        settings=installed.Settings(console="off"),
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning passes an option that wandb warns of as removed
    return [*out, logger]


def _reachable(wandb: Any) -> bool:
    """Whether the server answers to the key: an unreachable one must not end a run."""
    try:
        return bool(wandb.login(timeout=15, verify=True))
    except (wandb.Error, OSError, ValueError):
        return False
