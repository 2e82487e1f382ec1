"""The one place where config becomes objects.

Nothing is built but what the tables below name: a config chooses an entry by its ``name`` and gives the arguments that
the entry's signature declares. There is no import path in any config.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytorch_lightning as pl
import safetensors.torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wsl import run_folder
from wsl import trainer as trainers
from wsl.checkpoint import AtomicCheckpointIO, CheckpointError, previous_generation
from wsl.config import ConfigError, Strict, arguments, one_of, schema_of, validated
from wsl.data.base import Data
from wsl.data.graph_data import GraphData
from wsl.data.zoo_data import ZooData
from wsl.encoders.base import Encoder
from wsl.encoders.deep_set import DeepSet
from wsl.encoders.gatv2 import GATv2Encoder
from wsl.encoders.mlp import FlatMLP
from wsl.encoders.nfn import NFNHNP, NFNNP
from wsl.encoders.nft import NFT
from wsl.encoders.ng_gnn import NGGNN
from wsl.encoders.node.attention import GAT, GATv2Node
from wsl.encoders.node.convolutions import GCN, SAGE
from wsl.encoders.probe import ProbeMLP
from wsl.encoders.statnn import StatNN
from wsl.encoders.unf import UNF
from wsl.export import read_encoder_card
from wsl.metrics_file import MetricsFile
from wsl.ranges import NonNegativeInt
from wsl.tasks.base import Task
from wsl.tasks.classification import Classification
from wsl.tasks.node_classification import NodeClassification
from wsl.tasks.optimisation import adam, adamw, constant, cosine, plateau, sgd, warm_up
from wsl.zoo.build.inr import INRRecipe, build_inr_zoo

ENCODERS: dict[str, type[Encoder]] = {
    "ng_gnn": NGGNN,
    "gatv2": GATv2Encoder,
    "unf": UNF,
    "nfn_np": NFNNP,
    "nfn_hnp": NFNHNP,
    "nft": NFT,
    "deep_set": DeepSet,
    "mlp": FlatMLP,
    "statnn": StatNN,
    "probe_mlp": ProbeMLP,
    "gcn": GCN,
    "gat": GAT,
    "gatv2_node": GATv2Node,
    "sage": SAGE,
}
DATA: dict[str, type[Data]] = {"zoo": ZooData, "graph": GraphData}
TASKS: dict[str, type[Task]] = {"classification": Classification, "node_classification": NodeClassification}
OPTIMIZERS: dict[str, Callable[..., Any]] = {"adam": adam, "adamw": adamw, "sgd": sgd}
SCHEDULERS: dict[str, Callable[..., Any]] = {
    "constant": constant,
    "warm_up": warm_up,
    "cosine": cosine,
    "plateau": plateau,
}

#: keys in which a resumed run may differ from what it was started with
FREE_ON_RESUME = ("resume", "run_root", "trainer.max_epochs", "trainer.max_steps", "trainer.progress")


def _group(table: Mapping[str, Any], *given: str) -> Any:
    return one_of([schema_of(name, constructor, given) for name, constructor in table.items()])


if TYPE_CHECKING:  # the schemas are made at run time, so a type checker cannot know their fields
    DataConfig: TypeAlias = Any
    EncoderConfig: TypeAlias = Any
    TaskConfig: TypeAlias = Any
    OptimizerConfig: TypeAlias = Any
    SchedulerConfig: TypeAlias = Any
    TrainerConfig: TypeAlias = Any
    LoggerConfig: TypeAlias = Any
    CallbacksConfig: TypeAlias = Any
else:
    DataConfig = _group(DATA, "seed")
    EncoderConfig = _group(ENCODERS, "spec", "out_features")
    TaskConfig = _group(TASKS, "encoder", "optimizer", "scheduler", "seed")
    OptimizerConfig = _group(OPTIMIZERS)
    SchedulerConfig = _group(SCHEDULERS)
    TrainerConfig = schema_of("", trainers.lightning_trainer, ("folder", "callbacks", "loggers"))
    LoggerConfig = schema_of("", trainers.loggers, ("folder", "name"))
    CallbacksConfig = schema_of("", trainers.callbacks, ("folder", "monitor", "mode", "source", "seed"))


class RunConfig(Strict):
    """A whole run, resolved and checked: what ``config.yaml`` of a run folder holds."""

    data: DataConfig
    encoder: EncoderConfig
    task: TaskConfig
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    callbacks: CallbacksConfig
    seed: NonNegativeInt
    compile: bool
    run_root: str
    resume: str | None
    label: str
    zoo: INRRecipe | None
    compare: dict[str, EncoderConfig]

    @property
    def run_name(self) -> str:
        return f"{Path(self.data.path).stem}_{self.label}_seed{self.seed}"

    def plain(self) -> dict[str, Any]:
        """Lists, dicts, strings and numbers: what goes to config.yaml and to W&B."""
        return self.model_dump(mode="json")

    def compared(self) -> dict[str, RunConfig]:
        """The same run for each encoder of ``compare``, by the name of its config option."""
        changes: dict[str, Any] = {"compare": {}, "logger": self.logger.model_copy(update={"wandb": False})}
        return {
            name: self.model_copy(update={"encoder": encoder, "label": name, **changes})
            for name, encoder in self.compare.items()
        }


def config(cfg: DictConfig) -> RunConfig:
    """Resolve and check everything that a run will need, before any work.

    Raises:
        ConfigError: naming key, value and what is allowed.
        RunFolderError: if ``resume`` names no run folder, or one of another config.
    """
    if cfg.resume is not None:
        return _resumed(cfg)
    values = _plain(cfg)
    names = values["compare"]
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ConfigError(f"compare={names!r}: should be a list of options of the encoder group")
    values["compare"] = {name: _plain(compose("train", [f"encoder={name}"]).encoder) for name in names}
    values["label"] = _choices(cfg).get("encoder", values["encoder"].get("name", "encoder"))
    recipe = values["data"].get("build")
    values["zoo"] = _plain(compose("build_zoo", [f"zoo={recipe}"]).zoo) if recipe else None
    return validated(RunConfig, values)


def data(config: RunConfig) -> Data:
    """The data module; its zoo is built first if the file is absent and the config says how."""
    path = Path(config.data.path)
    if not path.exists() and config.zoo is not None:
        build_inr_zoo(config.zoo, path)
    return DATA[config.data.name](**arguments(config.data), seed=config.seed)


def encoder(config: RunConfig, data: Data) -> Encoder:
    """The encoder for the data's spec, its statistics fitted to the training rows.

    Raises:
        ConfigError: if encoder or task is made for another kind of data, or gradients of a compiled encoder are to be
            watched.
    """
    if config.compile and config.callbacks.gradient_flow is not None:
        raise ConfigError("compile=true hides the layers that callbacks=gradient_flow watches; choose one of the two")
    for group, chosen in (("encoder", ENCODERS[config.encoder.name]), ("task", TASKS[config.task.name])):
        if not isinstance(data.spec, chosen.reads):
            raise ConfigError(
                f"{group}.name={getattr(config, group).name} reads a {chosen.reads.__name__}, "
                f"data.name={config.data.name} has a {type(data.spec).__name__}; choose another {group}"
            )
    pl.seed_everything(config.seed, workers=True, verbose=False)
    built = ENCODERS[config.encoder.name](data.spec, data.classes, **arguments(config.encoder))
    built.fit_statistics(data.example())
    if config.compile:
        built.compile()
    return built


def task(config: RunConfig, encoder: Encoder) -> Task:
    """The LightningModule around the encoder."""
    optimizer = OPTIMIZERS[config.optimizer.name](**arguments(config.optimizer))
    scheduler = SCHEDULERS[config.scheduler.name](**arguments(config.scheduler))
    return TASKS[config.task.name](encoder, optimizer, scheduler, config.seed, **arguments(config.task))


def trainer(config: RunConfig, task: Task, data: Data, folder: Path) -> pl.Trainer:
    """The trainer with its callbacks and loggers; writes the resolved config into the run folder."""
    loggers = trainers.loggers(folder=folder, name=config.run_name, **arguments(config.logger))
    source = {"path": str(data.path), "digest": data.digest, "recipe": data.recipe}
    if (resumed := checkpoint(config, folder)) is not None:
        MetricsFile(folder).forget_after(AtomicCheckpointIO().load_checkpoint(resumed)["global_step"])
    callbacks = trainers.callbacks(
        folder=folder,
        monitor=task.monitor,
        mode=task.mode,
        source=source,
        seed=config.seed,
        **arguments(config.callbacks),
    )
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        run_folder.write_config(folder, config.plain())
        for logger in loggers:
            logger.log_hyperparams(config.plain())
    return trainers.lightning_trainer(folder=folder, callbacks=callbacks, loggers=loggers, **arguments(config.trainer))


def folder(config: RunConfig) -> Path:
    """The run's folder: the one to resume, the sweep's, the one that the first rank made, or a new one."""
    if config.resume is not None:
        return Path(config.resume)
    if known := os.environ.get(run_folder.FOLDER_VARIABLE):
        return Path(known)
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        made = Path(HydraConfig.get().runtime.output_dir)
        made.mkdir(parents=True, exist_ok=True)
        return made
    return run_folder.create(Path(config.run_root), config.run_name)


def exported_encoder(folder: Path) -> Encoder:
    """Rebuild the encoder of a run folder from ``model.json`` and ``model.safetensors`` alone, in eval mode.

    Raises:
        ConfigError: if a file is absent or damaged, or names an encoder that is not in the table.
    """
    spec, out_features, values = read_encoder_card(folder)
    name = values.get("name")
    if name not in ENCODERS:
        raise ConfigError(f"{folder / 'model.json'}: encoder.name={name}: allowed is one of {', '.join(ENCODERS)}")
    checked = validated(schema_of(name, ENCODERS[name], ("spec", "out_features")), values)
    built = ENCODERS[name](ENCODERS[name].reads.from_dict(spec), out_features, **arguments(checked))
    try:
        built.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        raise ConfigError(f"{folder / 'model.safetensors'} cannot be loaded: {error}") from None
    return built.eval()


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
    if config.compare:
        raise CheckpointError(f"{folder} has no checkpoint to go on from ({last}); start it again without resume")
    return None


def _resumed(cfg: DictConfig) -> RunConfig:
    """The config that the run was started with; keys given beside ``resume`` must agree with it, but for a few."""
    source = Path(cfg.resume)
    stored = run_folder.read_config(source)
    given = [item for item in _overrides() if not item.lstrip("+").startswith("resume=")]
    if given:
        fresh_cfg = cfg.copy()
        fresh_cfg.resume = None
        fresh = config(fresh_cfg).plain()
        run_folder.check_same_config(source, fresh, FREE_ON_RESUME)
        trainer = stored["trainer"] | {k: fresh["trainer"][k] for k in ("max_epochs", "max_steps", "progress")}
        stored = stored | {"trainer": trainer}
    return validated(RunConfig, stored | {"resume": str(source)})


def _plain(cfg: DictConfig) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    if not isinstance(values, dict):
        raise ConfigError(f"a config group should hold keys and values, got {values!r}")
    values.pop("hydra", None)
    return {str(k): v for k, v in values.items() if k != "experiment"}


def _choices(cfg: DictConfig) -> Mapping[str, Any]:
    return HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}


def _overrides() -> list[str]:
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
