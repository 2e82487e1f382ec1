"""Config becomes objects: data → encoder → task → trainer."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import safetensors.torch
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from pytorch_lightning.callbacks import ModelCheckpoint

from wsl import ranks, run_folder
from wsl import trainer as trainers
from wsl.checkpoint import CheckpointError, previous_generation, resumable
from wsl.config import ConfigError, arguments, validated
from wsl.data.base import Data
from wsl.encoders.base import Encoder
from wsl.encoders.wrapper import Wrapper
from wsl.export import read_encoder_card
from wsl.graphs import node_graph
from wsl.graphs.node_graph import NodeGraphSpec
from wsl.metrics_file import MetricsFile
from wsl.other_model import OtherModelError, check_types, differences
from wsl.results import console
from wsl.run_config import (
    DATA,
    ENCODERS,
    OPTIMIZERS,
    SCHEDULERS,
    SPARSITY,
    TASKS,
    RunConfig,
    config,
    encoder_schema,
    free_on_resume,
    started_with,
)
from wsl.spec import WeightSpec, family
from wsl.spec.family import SpecFamily
from wsl.tasks.base import Task
from wsl.zoo import ZooError
from wsl.zoo.build.kinds import build_zoo

__all__ = [
    "RunConfig", "checkpoint", "config", "continued", "data", "encoder", "exported_encoder", "folder", "task",
    "trainer",
]  # fmt: skip


def data(config: RunConfig) -> Data:
    """The data module; its zoo is built first if the file is absent and the config says how.

    Raises:
        ZooError: if the file was made by another recipe than the one that ``data.build`` names.
    """
    if config.data.name == "zoo" and Path(config.data.path).is_dir():
        raise ConfigError(f"data.path={config.data.path} is a folder; name the zoo file: data.path=FILE.h5")
    if config.zoo is not None:
        if not Path(config.data.path).exists() and run_folder.first_rank():  # it may be misspelt
            text = f"{config.data.path} does not exist: zoo={config.data.build} is built there (data.build)"
            console().print(text, markup=False, soft_wrap=True)
        try:
            build_zoo(config.zoo, Path(config.data.path))
        except ZooError as error:
            raise ZooError(f"{error} (to use {config.data.path} as it is: data.build='')") from None
    return DATA[config.data.name](**arguments(config.data), seed=config.seed)


def encoder(config: RunConfig, data: Data) -> Encoder:
    """The encoder for the data's spec, its statistics fitted to the training rows.

    Raises:
        ConfigError: if encoder or task is made for another kind of data, or gradients of a compiled encoder are to be
            watched.
    """
    if config.compile and config.callbacks.gradient_flow is not None:
        raise ConfigError("compile=true hides the layers that callbacks=gradient_flow watches; choose one of the two")
    if config.compile and config.sparsity.name != "none":
        raise ConfigError("compile=true fixes what sparsity changes in every epoch; set compile=false or sparsity=none")
    _check_reads(config, data, "encoder", ENCODERS[config.encoder.name].reads)
    check_task(config, data)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    out_features = TASKS[config.task.name].out_features(data.classes, arguments(config.task))
    built = _made(config.encoder, data.spec, out_features)
    if built.equivariant != TASKS[config.task.name].needs_field:
        needed, wanted = ("a field over the parameters", "true") if not built.equivariant else ("features", "false")
        raise ConfigError(
            f"task.name={config.task.name} needs {needed} of the encoder: set encoder.equivariant={wanted} (of an "
            f"encoder around another: encoder.encoder.equivariant={wanted}), or choose an encoder that returns {needed}"
        )
    example = data.example()
    built.fit_statistics(example)
    if isinstance(data.spec, WeightSpec):  # of a mixed zoo, some batches lack an architecture anyway
        built.unread_parameters = built.unread(example.select(torch.zeros(1, dtype=torch.int64)))
    if config.compile:
        built.compile()
    return built


def _made(config: Any, spec: Any, out_features: int) -> Encoder:
    """The encoder of a config group; a wrapper is given a function that makes its inner encoder."""
    options = arguments(config)
    if issubclass(ENCODERS[config.name], Wrapper):
        options["encoder"] = partial(_made, config.encoder)
    return ENCODERS[config.name](spec, out_features, **options)


def task(config: RunConfig, encoder: Encoder) -> Task:
    """The LightningModule around the encoder."""
    optimizer = OPTIMIZERS[config.optimizer.name](**arguments(config.optimizer))
    scheduler = SCHEDULERS[config.scheduler.name](**arguments(config.scheduler))
    return TASKS[config.task.name](encoder, optimizer, scheduler, config.seed, **arguments(config.task))


def trainer(config: RunConfig, task: Task, data: Data, folder: Path) -> pl.Trainer:
    """The trainer with its callbacks and loggers; writes the resolved config into the run folder."""
    loggers = trainers.loggers(folder=folder, name=config.run_name, **arguments(config.logger))
    source = {"path": str(data.path), "digest": data.digest, "split": data.split_digest, "recipe": data.recipe}
    resumed = checkpoint(config, folder)
    same_data(folder, data)
    MetricsFile(folder).forget_after(0 if resumed is None else resumable(resumed))
    callbacks = trainers.callbacks(
        folder=folder,
        monitor=task.monitor,
        mode=task.mode,
        source=source,
        seed=config.seed,
        sparsify=SPARSITY[config.sparsity.name](folder, **arguments(config.sparsity)),
        **arguments(config.callbacks),
    )
    if run_folder.first_rank():
        run_folder.write_config(folder, config.plain() | {"resume": None, "folder": None})
        run_folder.ensure(folder / "checkpoints")
        for logger in loggers:
            logger.log_hyperparams(config.plain())
    mixed = isinstance(data.spec, SpecFamily) or bool(task.encoder.unread_parameters)
    return trainers.lightning_trainer(
        folder=folder, callbacks=callbacks, loggers=loggers, mixed=mixed, **arguments(config.trainer)
    )


def folder(config: RunConfig) -> Path:
    """The run's folder: the one that has a name already, or a new one; told to the ranks that Lightning will start."""
    found = _named(config) or run_folder.create(Path(config.run_root), config.run_name)
    if config.trainer.devices > 1:
        os.environ.setdefault(run_folder.FOLDER_VARIABLE, str(found))
        os.environ.setdefault(run_folder.STARTER_VARIABLE, str(os.getpid()))
    return found


def _named(config: RunConfig) -> Path | None:
    """The folder to resume, the one that the first rank chose, the config's, the sweep's, or the scheduler's."""
    if config.resume is not None:
        return Path(config.resume)
    if known := os.environ.get(run_folder.FOLDER_VARIABLE):
        return Path(known)
    if config.folder is not None:
        return run_folder.ensure(Path(config.folder))
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_folder.ensure(Path(HydraConfig.get().runtime.output_dir))
    if name := ranks.launched_name():
        return run_folder.ensure(Path(config.run_root) / f"{name}_{config.run_name}")
    return None


def continued(config: RunConfig, folder: Path) -> RunConfig:
    """What is to be done in a folder that has a name: a run that was begun there is gone on with.

    So a job that a scheduler starts again and a sweep that is given again do what is left to do, by the same command.

    Raises:
        RunFolderError: if the folder belongs to a run of another config.
    """
    if config.resume is not None or not (folder / "config.yaml").exists():
        return config
    stored, wanted = started_with(folder).plain(), config.plain() | {"folder": None}
    run_folder.check_same_config(folder, stored, wanted, free_on_resume(config.scheduler.name))
    resumed = config.model_copy(update={"resume": str(folder)})
    last = folder / "checkpoints" / "last.ckpt"
    return resumed if last.exists() or previous_generation(last).exists() else config


def exported_encoder(folder: Path) -> Encoder:
    """Rebuild the encoder of a run folder from ``model.json`` and ``model.safetensors`` alone, in eval mode.

    Raises:
        ConfigError: if a file is absent or damaged, or names an encoder that is not in the table.
    """
    spec, out_features, values = read_encoder_card(folder)
    name = values.get("name")
    if name not in ENCODERS:
        raise ConfigError(f"{folder / 'model.json'}: encoder.name={name}: allowed is one of {', '.join(ENCODERS)}")
    built = _made(validated(encoder_schema(name), values), _description(spec), out_features)
    path = folder / "model.safetensors"
    try:
        state = safetensors.torch.load_file(path)
        check_types(state, built.state_dict(), "it")
        built.load_state_dict(state)
    except OtherModelError as error:
        raise ConfigError(f"{path} cannot be loaded: {error}") from None
    except RuntimeError as error:
        words = differences(state, built.state_dict()) or error
        raise ConfigError(
            f"{path} cannot be loaded: it is not what {folder / 'model.json'} describes:\n{words}"
        ) from None
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{path} cannot be loaded: {error}") from None
    return built.eval()


def _check_reads(config: RunConfig, data: Data, group: str, reads: tuple[type, ...]) -> None:
    if not isinstance(data.spec, reads):
        raise ConfigError(
            f"{group}.name={getattr(config, group).name} reads a {_names(reads)}, "
            f"data.name={config.data.name} has a {type(data.spec).__name__}; choose another {group}"
        )


def check_task(config: RunConfig, data: Data) -> None:
    """Refuse a task that is made for another kind of data, or cannot predict its targets.

    Raises:
        ConfigError: naming both.
    """
    task = TASKS[config.task.name]
    _check_reads(config, data, "task", task.reads)
    if task.needs_classes and not data.classes:
        raise ConfigError(f"task.name={config.task.name} needs classes, but data.target is no whole number")
    if task.needs_images != data.image_targets:
        wanted = "image or dilated_image" if task.needs_images else "a column of the zoo"
        raise ConfigError(f"task.name={config.task.name} needs data.target to be {wanted}, not {config.data.target!r}")
    if task.target_range is None or data.target_range is None:
        return
    (low, high), (least, greatest) = task.target_range, data.target_range
    if least < low or greatest > high:
        raise ConfigError(
            f"task.name={config.task.name} predicts targets from {low:g} to {high:g}, but data.target="
            f"{config.data.target} ranges from {least:g} to {greatest:g}; choose another data.target or task"
        )


def _names(types: tuple[type, ...]) -> str:
    return " or a ".join(kind.__name__ for kind in types)


def _description(values: dict[str, Any]) -> Any:
    """What an exported encoder was built for, of the type that its format names."""
    formats: dict[str, Any] = {node_graph.FORMAT: NodeGraphSpec, family.FORMAT: SpecFamily}
    return formats.get(values.get("format", ""), WeightSpec).from_dict(values)


def checkpoint(config: RunConfig, folder: Path) -> Path | None:
    """Where training goes on from: the last checkpoint of a resumed run, or None for a fresh start.

    Raises:
        CheckpointError: if a run to resume has no checkpoint.
    """
    last = folder / "checkpoints" / "last.ckpt"
    if config.resume is None:
        return None
    if last.exists() or previous_generation(last).exists():
        return last
    if folder == Path(config.resume):
        raise CheckpointError(f"{folder} has no checkpoint to go on from ({last}); start it again without resume")
    return None  # an encoder to compare with, whose turn had not come


def chosen(trainer: pl.Trainer) -> str:
    """The checkpoint that validation chose.

    Raises:
        ConfigError: if no validation took place.
    """
    checkpoints = trainer.checkpoint_callback
    assert isinstance(checkpoints, ModelCheckpoint)
    if not checkpoints.best_model_path:
        raise ConfigError(
            f"training ended after {trainer.global_step} steps without a validation, so no checkpoint was chosen; "
            "raise trainer.max_steps or trainer.max_epochs, or lower trainer.check_val_every_n_epoch"
        )
    return checkpoints.best_model_path


def same_data(folder: Path, data: Data) -> None:
    """Refuse to go on with a run on data that has changed."""
    record = folder / "provenance.json"
    if not record.exists():
        return
    try:
        before = str(json.loads(record.read_bytes())[0]["data"]["digest"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise run_folder.RunFolderError(
            f"{record} cannot be read ({error!r}); put back the one of this run, or remove it: the run then goes on "
            "unchecked, whether its data have changed or not"
        ) from None
    if before != data.digest:
        raise run_folder.RunFolderError(
            f"{data.path} has changed since {folder} was started (digest {data.digest[:12]}…, was {before[:12]}…); "
            "restore the file, or start a new run"
        )
