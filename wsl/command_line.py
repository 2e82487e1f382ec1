"""What every script does with its command line: misspelt keys are answered with what is allowed, errors are plain."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch.distributed
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from wsl.config import ConfigError, unknown_key
from wsl.errors import UserError
from wsl.run_folder import FOLDER_VARIABLE, STARTER_VARIABLE

#: what Lightning and this program leave in the environment for the ranks that Lightning starts
RANK_VARIABLES = (
    FOLDER_VARIABLE, STARTER_VARIABLE, "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip

#: KEY=VALUE, +KEY=VALUE, ++KEY=VALUE or ~KEY=VALUE
OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@]*=")


def with_overrides(parser: argparse.ArgumentParser, given: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a script, and in ``overrides`` those of form ``KEY=VALUE``, wherever they stand.

    argparse alone would count an override behind an option of several values among these values.
    """
    arguments = sys.argv[1:] if given is None else given
    overrides = [argument for argument in arguments if OVERRIDE.match(argument)]
    parser.epilog = "KEY=VALUE: overrides of train.py, anywhere among the arguments"
    parsed = parser.parse_args([argument for argument in arguments if argument not in overrides])
    parsed.overrides = overrides
    return parsed


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the program with the message alone when the user can mend the cause; other errors keep their traceback."""
    try:
        yield
    except UserError as error:
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
            raise  # one job of a sweep: the others go on
        sys.exit(f"error: {error}")


@contextmanager
def one_job() -> Iterator[None]:
    """A job, possibly one of a sweep in this process, with ranks of its own.

    Lightning starts the other ranks by the command line of this program, which must then say this job and not the
    sweep; and it takes what it leaves in the environment for ranks that are there already.
    """
    environment, command = dict(os.environ), sys.argv
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        sys.argv = [command[0], *HydraConfig.get().overrides.task]
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        sys.argv = command
        for name in RANK_VARIABLES:
            os.environ.pop(name, None)
            if name in environment:
                os.environ[name] = environment[name]


def refuse_unknown_keys(folder: str, name: str, arguments: list[str] | None = None) -> None:
    """Raise ConfigError if an argument ``KEY=VALUE`` names a key that the composed config does not have.

    Everything else about the arguments is Hydra's to judge.

    Args:
        folder: the config folder, relative to the main script.
        name: the primary config.
        arguments: default: those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if any(a.startswith(("--config", "-cd", "-cn", "-cp")) for a in arguments):
        return  # another config than the one that is known here
    given = [a for a in arguments if "=" in a and not a.startswith("-")]
    where = Path(sys.argv[0]).resolve().parent / folder if not Path(folder).is_absolute() else Path(folder)
    try:
        parsed = [(text, OverridesParser.create().parse_override(text)) for text in given]
    except HydraException:
        return  # not an override at all: Hydra explains its own syntax
    groups = {path.relative_to(where).as_posix() for path in where.rglob("*") if path.is_dir()}
    chosen = [text for text, item in parsed if item.get_key_element().lstrip("+~").split("@")[0] in groups]
    values = [item for text, item in parsed if text not in chosen and not item.is_add() and not item.is_delete()]
    chosen = [_first(text) for text in chosen]
    try:
        with initialize_config_dir(str(where), version_base="1.3"):
            config = compose(name, chosen)
    except HydraException as error:
        raise ConfigError(str(error).partition("Config search path")[0].strip()) from None
    finally:
        GlobalHydra.instance().clear()
    for item in values:
        _check_key(config, item.key_or_group, item.get_value_string())


def _first(text: str) -> str:
    """An override that sweeps over options of a group, with the first of them alone."""
    item = OverridesParser.create().parse_override(text)
    return f"{item.get_key_element()}={next(iter(item.sweep_string_iterator()))}" if item.is_sweep_override() else text


def _check_key(config: DictConfig, key: str, value: str) -> None:
    if key.startswith(("hydra.", "hydra/")):
        return
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    allowed = [str(k) for k in node] if isinstance(node, DictConfig) else []
    if leaf not in allowed:
        raise ConfigError(unknown_key(key, value, allowed or [str(k) for k in config]))
