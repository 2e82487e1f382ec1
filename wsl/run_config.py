"""What a run is made of: the tables of what can be built, and the config of a whole run, composed and checked.

A config chooses an entry of a table by its ``name`` and gives the arguments that the entry's signature declares. There
is no import path in any config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import torch
from annotated_types import Interval
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import StringConstraints

from wsl import run_folder
from wsl import trainer as trainers
from wsl.callbacks.sparsify import UnifewsSparsification, no_sparsification
from wsl.config import OPEN, ConfigError, Strict, arguments, check_key, one_of, schema_of, validated
from wsl.data.base import Data
from wsl.data.graph_data import GraphData
from wsl.data.zoo_data import ZooData
from wsl.encoders.base import Encoder
from wsl.encoders.canonical import Canonical
from wsl.encoders.deep_set import DeepSet
from wsl.encoders.gatv2 import GATv2Encoder
from wsl.encoders.mlp import FlatMLP
from wsl.encoders.monomial import Monomial
from wsl.encoders.monomial_front import MonomialFront
from wsl.encoders.nfn import NFNHNP, NFNNP
from wsl.encoders.nft import NFT
from wsl.encoders.ng_gnn import NGGNN
from wsl.encoders.ng_transformer import NGTransformer
from wsl.encoders.node.attention import GAT, GATv2Node
from wsl.encoders.node.convolutions import GCN, GCNII, GIN, SAGE
from wsl.encoders.node.decoupled import APPNP, SGC, Heat
from wsl.encoders.probe import ProbeMLP
from wsl.encoders.scale_gmn import ScaleGMN
from wsl.encoders.statnn import StatNN
from wsl.encoders.unf import UNF
from wsl.encoders.wrapper import Wrapper
from wsl.spec import WeightSpec
from wsl.tasks.base import Task
from wsl.tasks.classification import Classification
from wsl.tasks.editing import Editing
from wsl.tasks.generalization import Generalization
from wsl.tasks.node_classification import NodeClassification
from wsl.tasks.optimisation import adam, adamw, constant, cosine, plateau, sgd, warm_up
from wsl.zoo.build.kinds import AnyRecipe

ENCODERS: dict[str, type[Encoder]] = {
    "ng_gnn": NGGNN,
    "ng_t": NGTransformer,
    "gatv2": GATv2Encoder,
    "unf": UNF,
    "nfn_np": NFNNP,
    "nfn_hnp": NFNHNP,
    "nft": NFT,
    "scale_gmn": ScaleGMN,
    "monomial": Monomial,
    "monomial_front": MonomialFront,
    "canonical": Canonical,
    "deep_set": DeepSet,
    "mlp": FlatMLP,
    "statnn": StatNN,
    "probe_mlp": ProbeMLP,
    "gcn": GCN,
    "gat": GAT,
    "gatv2_node": GATv2Node,
    "sage": SAGE,
    "gin": GIN,
    "gcnii": GCNII,
    "sgc": SGC,
    "appnp": APPNP,
    "heat": Heat,
}
DATA: dict[str, type[Data]] = {"zoo": ZooData, "graph": GraphData}
TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "node_classification": NodeClassification,
    "generalization": Generalization,
    "editing": Editing,
}
OPTIMIZERS: dict[str, Callable[..., Any]] = {"adam": adam, "adamw": adamw, "sgd": sgd}
SCHEDULERS: dict[str, Callable[..., Any]] = {
    "constant": constant,
    "warm_up": warm_up,
    "cosine": cosine,
    "plateau": plateau,
}
SPARSITY: dict[str, Callable[..., Any]] = {"none": no_sparsification, "unifews": UnifewsSparsification}

#: keys in which a resumed run may differ from what it was started with
FREE_ON_RESUME = (
    "resume", "folder", "run_root", "trainer.max_epochs", "trainer.max_steps", "trainer.progress",
    "trainer.collective_timeout",
)  # fmt: skip
#: … and those of them that a schedule is planned over
LENGTH = ("trainer.max_epochs", "trainer.max_steps")


def encoder_schema(name: str) -> type[Strict]:
    """The schema of one encoder; the inner encoder of a wrapper is any that reads a spec and is no wrapper itself."""
    constructor, types = ENCODERS[name], {}
    if issubclass(constructor, Wrapper):
        inner = [n for n, e in ENCODERS.items() if WeightSpec in e.reads and not issubclass(e, Wrapper)]
        types = {"encoder": one_of([encoder_schema(n) for n in inner])}
    return schema_of(name, constructor, ("spec", "out_features"), types)


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
    SparsityConfig: TypeAlias = Any
else:
    DataConfig = _group(DATA, "seed")
    EncoderConfig = one_of([encoder_schema(name) for name in ENCODERS])
    TaskConfig = _group(TASKS, "encoder", "optimizer", "scheduler", "seed")
    OptimizerConfig = _group(OPTIMIZERS)
    SchedulerConfig = _group(SCHEDULERS)
    TrainerConfig = schema_of("", trainers.lightning_trainer, ("folder", "callbacks", "loggers", "mixed"))
    LoggerConfig = schema_of("", trainers.loggers, ("folder", "name"))
    CallbacksConfig = schema_of("", trainers.callbacks, ("folder", "monitor", "mode", "source", "seed", "sparsify"))
    SparsityConfig = _group(SPARSITY, "folder")


#: of a folder in the run folder: leads nowhere else, whatever a config says that somebody else has written
PlainName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}$")]


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
    sparsity: SparsityConfig
    seed: Annotated[int, Interval(ge=0, lt=2**32)]
    compile: bool
    run_root: str
    resume: str | None
    folder: str | None
    label: PlainName
    zoo: AnyRecipe | None
    compare: dict[PlainName, EncoderConfig]

    @property
    def run_name(self) -> str:
        return f"{Path(self.data.path).stem}_{self.label}_seed{self.seed}"

    @property
    def ranks(self) -> int:
        """How many processes train together."""
        return self.trainer.devices * self.trainer.num_nodes

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
        return _resumed(Path(cfg.resume), _overrides())
    values = _plain(cfg)
    names = values["compare"]
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ConfigError(f"compare={names!r}: should be a list of options of the encoder group")
    values["compare"] = {name: _option("train", "encoder", name, key="compare") for name in names}
    values["label"] = _choices().get("encoder", values["encoder"].get("name", "encoder"))
    recipe = values["data"].get("build")
    values["zoo"] = _option("build_zoo", "zoo", recipe, key="data.build") if recipe else None
    return _checked(values)


def _checked(values: Mapping[str, Any]) -> RunConfig:
    """Schemas first, then what no single value can say."""
    run = validated(RunConfig, values)
    if run.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=gpu: no GPU is visible to torch; use trainer=cpu")
    if run.trainer.check_val_every_n_epoch > run.trainer.max_epochs:
        raise ConfigError(
            f"trainer.check_val_every_n_epoch={run.trainer.check_val_every_n_epoch} is more than "
            f"trainer.max_epochs={run.trainer.max_epochs}: no checkpoint could be chosen"
        )
    try:
        OPTIMIZERS[run.optimizer.name](**arguments(run.optimizer))([torch.nn.Parameter(torch.zeros(1))])
    except ValueError as error:
        raise ConfigError(f"optimizer.name={run.optimizer.name}: {error}") from None
    return run


def _option(primary: str, group: str, name: str, key: str) -> dict[str, Any]:
    """The values of one option of a config group."""
    try:
        return _plain(compose(primary, [f"{group}={name}"])[group])
    except HydraException as error:
        what = str(error).partition("Config search path")[0].strip()
        raise ConfigError(f"{key}={name}: {what}") from None


def _resumed(source: Path, given: Sequence[str]) -> RunConfig:
    """The config that the run was started with. What is given beside ``resume`` must agree with it, but for a few keys.

    Only the keys that are given count; the defaults of the others do not.
    """
    stored = started_with(source).plain()
    wanted = OmegaConf.create({k: v for k, v in stored.items() if k != "compare"})
    for text in given:
        item = OverridesParser.create().parse_override(text)
        key, value = item.key_or_group, item.value()
        if key == "resume":
            continue
        if key == "compare":
            if value != list(stored["compare"]):
                raise run_folder.RunFolderError(
                    f"{source} compares with {list(stored['compare'])}, you gave {value}; leave compare out"
                )
        elif key == "experiment":
            raise ConfigError("experiment cannot be given with resume: the run has its config; leave it out")
        elif isinstance(stored.get(key), dict):
            OmegaConf.update(wanted, item.package or key, _option("train", key, str(value), key=key), merge=False)
        else:
            if key.rpartition(".")[0] not in OPEN:  # the keys of these may be any; they are compared below
                check_key(stored, key, value)
            OmegaConf.update(wanted, key, value, force_add=True)
    values = _plain(wanted) | {"compare": stored["compare"]}
    run_folder.check_same_config(source, stored, values, free_on_resume(stored["scheduler"]["name"]))
    return _checked(values | {"resume": str(source)})


def started_with(folder: Path) -> RunConfig:
    """The config of a run folder. An option that is younger than the run has its default, which is what there was then.

    Raises:
        RunFolderError: if there is none.
        ConfigError: if it names what this release does not have.
    """
    try:
        return _checked(run_folder.read_config(folder))
    except ConfigError as error:
        raise ConfigError(f"{folder / 'config.yaml'}: {error}") from None


def free_on_resume(scheduler: str) -> list[str]:
    """Keys in which a run may differ from what it was started with; its length only where no schedule needs it."""
    return [key for key in FREE_ON_RESUME if not (scheduler == "cosine" and key in LENGTH)]


def _plain(cfg: DictConfig) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    if not isinstance(values, dict):
        raise ConfigError(f"a config group should hold keys and values, got {values!r}")
    values.pop("hydra", None)
    return {str(k): v for k, v in values.items() if k not in ("experiment", "launcher")}


def _choices() -> Mapping[str, Any]:
    return HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}


def _overrides() -> list[str]:
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
