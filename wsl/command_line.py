"""What every script does with its command line: misspelt keys are answered with what is allowed, errors are plain."""

from __future__ import annotations

import argparse
import itertools
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
from omegaconf import OmegaConf

from wsl.checkpoint import previous_generation
from wsl.config import ConfigError, check_key
from wsl.errors import UserError
from wsl.run_folder import FOLDER_VARIABLE, FULL, STARTER_VARIABLE, first_rank

#: what Lightning and this program leave in the environment for the ranks that Lightning starts
RANK_VARIABLES = (
    FOLDER_VARIABLE, STARTER_VARIABLE, "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip

#: KEY=VALUE, +KEY=VALUE, ++KEY=VALUE or ~KEY=VALUE
OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@]*=")

#: exit code after Ctrl-C: 128 and the number of SIGINT, as shells count
INTERRUPTED = 130


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the message says how to go on."""


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
    """End the program with the message alone when the user can mend the cause; other errors keep their traceback.

    Ctrl-C ends it, and the sweep that it is a job of, with one line and :data:`INTERRUPTED`.
    """
    try:
        yield
    except UserError as error:
        if _in_sweep():
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
            raise  # one job of a sweep: the others go on
        sys.exit(f"error: {error}")
    except OSError as error:  # a full disk may be met by any library that writes
        if error.errno not in FULL or _in_sweep():
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror}; free space and give the same command again")
    except (KeyboardInterrupt, SystemExit) as error:
        if not _by_ctrl_c(error):
            raise
        if first_rank():
            said = str(error) if isinstance(error, Interrupted) else "give the same command again to go on"
            print(f"interrupted; {said}", file=sys.stderr, flush=True)  # noqa: T201
        sys.exit(INTERRUPTED)


@contextmanager
def interruption_told(folder: Path) -> Iterator[None]:
    """Let Ctrl-C say how the run in this folder is gone on with.

    Raises:
        Interrupted: in place of what Ctrl-C raises.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        if not _by_ctrl_c(error):
            raise
        raise Interrupted(_way_on(folder)) from None


def _by_ctrl_c(error: BaseException) -> bool:
    """Whether it is Ctrl-C, or what Lightning makes of it while it trains or tests: an exit with code 1."""
    lightnings = isinstance(error, SystemExit) and error.code == 1 and isinstance(error.__context__, KeyboardInterrupt)
    return lightnings or isinstance(error, KeyboardInterrupt)


def _way_on(folder: Path) -> str:
    if _in_sweep():
        return f"give the sweep again with hydra.sweep.dir={HydraConfig.get().sweep.dir} to go on"
    last = folder / "checkpoints" / "last.ckpt"
    if last.exists() or previous_generation(last).exists():
        return f"go on with resume={folder}"
    return "there is no checkpoint yet: give the same command again"


def _in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


@contextmanager
def one_job() -> Iterator[None]:
    """A job, possibly one of a sweep in this process, with ranks of its own.

    Lightning starts the other ranks by the command line of this program, which must then say this job and not the
    sweep; and it takes what it leaves in the environment for ranks that are there already.
    """
    environment, command = dict(os.environ), sys.argv
    if _in_sweep():
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

    Everything else about the arguments is Hydra's to judge. What is given beside ``resume`` is compared with the config
    of that run instead (``wsl.run_config``).

    Args:
        folder: the config folder, relative to the main script.
        name: the primary config.
        arguments: default: those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if any(a.startswith(("--config", "-cd", "-cn", "-cp")) for a in arguments):
        return  # another config than the one that is known here
    if _resumed(arguments):
        return
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
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    for item in values:
        if not item.key_or_group.startswith(("hydra.", "hydra/")):
            check_key({str(key): value for key, value in plain.items()}, item.key_or_group, item.get_value_string())


def with_keys_of_run(arguments: Sequence[str]) -> list[str]:
    """The arguments of train.py; where they resume a run, values also of keys that the default config lacks.

    Hydra composes that config before the run's own is read, and would refuse an option of another encoder. With two
    plus signs it does not, and the run's config judges (``wsl.run_config``).
    """
    if not _resumed(arguments):
        return list(arguments)
    return [f"++{text}" if re.match(r"(?!hydra\.)[A-Za-z_]\w*\.[\w.]+=", text) else text for text in arguments]


def jobs_of(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """What the jobs of a sweep differ in, in the order of their numbers; empty if it cannot be told.

    Args:
        overrides: as they were given, like ``seed=0,1``.
    """
    parser = OverridesParser.create()
    try:
        items = [item for item in map(parser.parse_override, overrides) if item.is_sweep_override()]
        choices = [[f"{item.get_key_element()}={value}" for value in item.sweep_string_iterator()] for item in items]
    except HydraException:  # a pattern, which the folders of options decide on
        return []
    return list(itertools.product(*choices))


def _resumed(arguments: Sequence[str]) -> bool:
    return any(re.match(r"\+{0,2}resume=(?!null$)", text) for text in arguments)


def _first(text: str) -> str:
    """An override that sweeps over options of a group, with the first of them alone."""
    item = OverridesParser.create().parse_override(text)
    return f"{item.get_key_element()}={next(iter(item.sweep_string_iterator()))}" if item.is_sweep_override() else text
