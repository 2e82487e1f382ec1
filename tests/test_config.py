"""Configs are checked before any work: each refusal names the key, the value and what is allowed."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from wsl import build, run_config
from wsl import trainer as trainers
from wsl.command_line import refuse_unknown_keys
from wsl.config import ConfigError, schema_of, validated
from wsl.data.augment import Augment

CONF = Path(__file__).parents[1] / "conf"


def config(*overrides: str) -> build.RunConfig:
    """Composed and checked; nothing to compare with unless asked for, which saves time."""
    overrides = overrides if not overrides or "compare=" in " ".join(overrides) else ("compare=[]", *overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build.config(compose("train", list(overrides)))


def test_the_default_config_is_whole() -> None:
    run = config()
    assert run.data.path == "data/digits_inr.h5"
    assert run.encoder.name == "ng_gnn"
    assert run.zoo is not None and run.zoo.views >= 3
    assert set(run.compared()) == {"ng_gnn_small_plain", "probe_mlp", "statnn", "mlp"}
    assert build.RunConfig.model_validate_json(run.model_dump_json(), strict=True) == run


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.max_epochs=abc", ["trainer.max_epochs", "abc", "integer"]),
        ("trainer.max_epochs=0", ["trainer.max_epochs", "0", "greater than 0"]),
        ("trainer.max_epochs=2.5", ["trainer.max_epochs", "2.5", "integer"]),
        ("trainer.precision=fp8", ["trainer.precision", "fp8", "bf16-mixed"]),
        ("optimizer.lr=-1.0", ["optimizer.lr", "-1.0", "greater than 0"]),
        ("optimizer.betas=[0.9,1.0]", ["optimizer.betas", "1.0", "less than 1"]),
        ("encoder.dropout=1.0", ["encoder.dropout", "1.0", "less than 1"]),
        ("encoder.name=evil", ["encoder.name", "evil", "ng_gnn"]),
        ("encoder=canonical encoder.encoder.width=0", ["encoder.encoder.width", "0", "greater than 0"]),
        ("encoder=canonical encoder.encoder.name=gcn", ["encoder.encoder.name", "gcn", "ng_gnn"]),
        ("encoder=canonical +encoder.encoder.widht=3", ["encoder.encoder.widht", "width"]),
        ("encoder=canonical encoder@encoder.encoder=canonical", ["encoder.encoder.name", "canonical", "ng_gnn"]),
        ("+encoder.widht=3", ["encoder.widht", "width"]),
        ("+sead=3", ["sead", "seed"]),
        ("seed=5000000000", ["seed", "5000000000", "4294967296"]),
        ("scheduler=plateau scheduler.factor=1.0", ["scheduler.factor", "1.0"]),
        ("optimizer=sgd optimizer.nesterov=true optimizer.momentum=0.0", ["optimizer", "sgd", "momentum"]),
        ("compare=[mpl]", ["compare", "mpl", "statnn"]),
        ("data.build=typo", ["data.build", "typo", "digits_inr"]),
        ("trainer.limit_val_batches=0.0", ["trainer.limit_val_batches", "0.0"]),
        ("trainer.limit_val_batches=abc", ["trainer.limit_val_batches='abc': should be a valid integer"]),
        ("trainer.max_steps=-7", ["trainer.max_steps=-7", "greater than or equal to -1"]),
        ("compare=statnn", ["compare", "statnn", "list"]),
        ("seed='1'", ["seed", "1", "integer"]),
        ("task.label_smoothing=2", ["task.label_smoothing", "2"]),
    ],
)  # fmt: skip
def test_refusals(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        config(*override.split())
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("key", ["_target_", "_partial_", "_args_", "_convert_"])
@pytest.mark.parametrize("group", ["encoder", "data", "task", "optimizer", "scheduler", "trainer", "logger"])
def test_nothing_is_instantiated_by_import_path(group: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{group}.{key}"):
        config(f"+{group}.{key}=os.system")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("encoder.widht=3", ["encoder.widht=3", "did you mean 'width'", "layers"]),
        ("encodr=mlp", ["encodr=mlp", "did you mean 'encoder'"]),
        ("encoder=mpl", ["mpl", "ng_gnn", "statnn"]),
        ("trainer.epochs=3", ["trainer.epochs=3", "max_epochs"]),
        ("encoder.foo=1", ["encoder.foo=1. Allowed here: "]),
        ("data.where.label=[0,1]", ["+data.where.label=[0,1]", "put a plus in front"]),
    ],
)
def test_misspelt_arguments_are_answered(argument: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        refuse_unknown_keys(str(CONF), "train", [argument])
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["encoder=mlp", "encoder.hidden=[3]"],
        ["encoder=canonical", "encoder@encoder.encoder=unf", "encoder.encoder.channels=3"],
        ["encoder=mlp,statnn", "encoder.hidden=[3]"],
        ["seed=0,1,2", "encoder=mlp,statnn", "--multirun"],
        ["~experiment"],
        ["hydra.sweep.dir=x"],
        ["hydra/launcher=submitit_local"],
        ["experiment=digits_inr", "seed=3"],
        ["resume=runs/some", "encoder.paths=8"],
        ["data=cnn_digits", "data.where.activation=relu", "+data.where.label=[0,1]"],
    ],
)
def test_right_arguments_pass(arguments: list[str]) -> None:
    refuse_unknown_keys(str(CONF), "train", arguments)


TABLES = {
    "encoder": (build.ENCODERS, ("spec", "out_features")),
    "data": (build.DATA, ("seed",)),
    "data/augment": ({"": Augment}, ()),
    "task": (build.TASKS, ("encoder", "optimizer", "scheduler", "seed")),
    "optimizer": (build.OPTIMIZERS, ()),
    "scheduler": (build.SCHEDULERS, ()),
    "trainer": ({"": trainers.lightning_trainer}, ("folder", "callbacks", "loggers", "mixed")),
    "logger": ({"": trainers.loggers}, ("folder", "name")),
    "callbacks": ({"": trainers.callbacks}, ("folder", "monitor", "mode", "source", "seed", "sparsify")),
    "sparsity": (run_config.SPARSITY, ("folder",)),
}


def options() -> list[Any]:
    return [pytest.param(g, f, id=f"{g}/{f.stem}") for g in TABLES for f in sorted((CONF / g).glob("*.yaml"))]


@pytest.mark.parametrize(("group", "file"), options())
def test_every_option_file_names_every_argument(group: str, file: Path) -> None:
    """So the YAML files are the reference of what can be set, and overrides need no plus sign."""
    table, given = TABLES[group]
    values = yaml.safe_load(file.read_text())
    name = values.get("name", "")
    declared = set(inspect.signature(table[name]).parameters) - {"self", *given}
    nested = {key.rpartition("@")[2] for entry in values.pop("defaults", []) if entry != "_self_" for key in entry}
    assert set(values) - {"name"} | nested == declared


def test_tables_and_option_files_agree() -> None:
    for group, (table, _) in TABLES.items():
        found = {yaml.safe_load(f.read_text()).get("name", "") for f in (CONF / group).glob("*.yaml")}
        assert found == set(table), f"{group}: files for {found}, table has {set(table)}"


def test_numbers_keep_their_type() -> None:
    def build_it(*, rate: float = 0.5, count: int = 1) -> None: ...

    schema = schema_of("x", build_it)
    assert validated(schema, {"name": "x", "rate": 1}).rate == 1.0
    for wrong in ({"rate": "0.5"}, {"count": 1.0}, {"count": True}, {"rate": float("nan")}, {"rate": float("inf")}):
        with pytest.raises(ConfigError):
            validated(schema, {"name": "x", **wrong})


def test_a_config_holds_plain_values_only() -> None:
    with pytest.raises(ConfigError, match="plain values"):
        validated(schema_of("x", lambda: None), {"name": object()})


def test_missing_and_interpolated_values() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [])
        OmegaConf.set_struct(cfg, False)
        cfg.seed = "${oc.env:WSL_SURELY_ABSENT}"
        with pytest.raises(ConfigError, match="WSL_SURELY_ABSENT"):
            build.config(cfg)


def test_a_folder_is_no_zoo(tmp_path: Path) -> None:
    for build_it in ("''", "digits_inr"):
        with pytest.raises(ConfigError, match="is a folder; name the zoo file"):
            build.data(config(f"data.path={tmp_path}", f"data.build={build_it}"))
