"""The folder of one run: made once, owned by one process, and readable years later.

RUN/config.yaml          the resolved config            RUN/result.json     test metrics and how they came about
RUN/provenance.json      versions, git, data digest     RUN/metrics.csv     every logged number
RUN/checkpoints/         best and last                  RUN/figures/        PNG
RUN/model.safetensors    the chosen encoder …           RUN/model.json      … its spec and arguments
RUN/wandb/               the offline W&B run            RUN/compare/NAME/   the same for each compared encoder
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import yaml

from wsl import plain_yaml
from wsl.errors import UserError

#: set by the first process of a run for the ranks that it starts
FOLDER_VARIABLE = "WSL_RUN_FOLDER"
#: its process, likewise
STARTER_VARIABLE = "WSL_FIRST_RANK"


#: a disk is full, or what the user may have of it
FULL = (errno.ENOSPC, errno.EDQUOT)


class RunFolderError(UserError, RuntimeError):
    """A run folder cannot be made, or belongs to something else; the message names it and the fix."""


def create(root: Path, name: str) -> Path:
    """A new folder ``root/TIME_name``; a number is appended where two runs start in the same second."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(1000):
        folder = root / (f"{stamp}_{name}" + (f"_{attempt + 1}" if attempt else ""))
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if root.is_file():
                raise RunFolderError(f"{root} is a file; run_root must name a folder") from None
        except OSError as error:
            raise RunFolderError(
                f"cannot make the run folder {folder}: {error.strerror}; set run_root=… to a writable folder"
            ) from error
    raise RunFolderError(f"no free name left for {root / f'{stamp}_{name}'}")


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: a second process on the same run is refused, a dead owner's lock is free.

    Raises:
        RunFolderError: naming the process that holds the folder.
    """
    if not first_rank():
        yield  # the first rank of the run holds the lock
        return
    path = folder / ".lock"
    try:
        file = open(path, "ab+", buffering=0)  # noqa: SIM115 (closed below, with the lock)
    except OSError as error:
        raise _not_writable(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunFolderError(
                f"{folder} is in use by process {file.read().decode().strip() or 'unknown'}; wait until it ends"
            ) from None
        try:
            _sign(file, folder)
            yield
        except BaseException:
            with contextlib.suppress(OSError):  # the folder may be gone: what went wrong before is what is told
                if sorted(p.name for p in folder.iterdir()) == [path.name]:  # nothing was done yet: leave nothing
                    path.unlink()
                    folder.rmdir()
            raise


def _sign(file: FileIO, folder: Path) -> None:
    """Write the owner into the lock."""
    try:
        file.truncate(0)
        file.write(f"{os.getpid()} on {os.uname().nodename} since {time.strftime('%Y-%m-%d %H:%M:%S')}".encode())
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"cannot write into the run folder {folder}: {error.strerror}; {_way_out(error)}")


def _way_out(error: OSError) -> str:
    return "free space, then start again" if error.errno in FULL else "name a folder that can be written"


def ensure(folder: Path) -> Path:
    """The folder, made if it is absent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"cannot make the folder {folder}: {error.strerror}; {_way_out(error)}") from error
    return folder


def first_rank() -> bool:
    """Whether this process is the one of the run that writes files, as the launcher's variables say."""
    return all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    ensure(folder)
    write_text(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))


#: groups that configs of older runs lack, as those runs had them
ADDED_LATER = {"sparsity": {"name": "none"}}


def read_config(folder: Path) -> dict[str, Any]:
    """The config that a run was started with, as plain values.

    Raises:
        RunFolderError: if there is none, or it is not one that a run has written.
    """
    path = folder / "config.yaml"
    try:
        content = path.read_bytes()
    except OSError:
        raise RunFolderError(f"{folder} is no run folder: it has no config.yaml") from None
    try:
        config = plain_yaml.load(content)
    except yaml.YAMLError as error:
        raise RunFolderError(f"{path} is not readable YAML: {error}") from None
    if not isinstance(config, dict):
        raise RunFolderError(f"{path} does not hold a config")
    for key, value in flat(config).items():
        if "${" in f"{key}{value}":  # OmegaConf would look it up, in the environment for instance
            raise RunFolderError(f"{path}: {key}={value}: a run's config holds values, nothing that is looked up")
    return ADDED_LATER | config


def check_same_config(folder: Path, stored: Mapping[str, Any], config: Mapping[str, Any], free: Sequence[str]) -> None:
    """Refuse to go on with a run under another config.

    Args:
        stored: what the run was started with.
        free: dotted keys that may differ.

    Raises:
        RunFolderError: naming every key that differs, with both values.
    """
    held, wanted = flat(stored), flat(json.loads(json.dumps(config)))
    differing = [k for k in sorted(held.keys() | wanted.keys()) if held.get(k) != wanted.get(k) and k not in free]
    if differing:
        lines = [f"  {key}: the run has {held.get(key)!r}, you gave {wanted.get(key)!r}" for key in differing]
        raise RunFolderError(
            f"{folder} belongs to another config:\n" + "\n".join(lines) + "\nLeave these keys out, or start a new run"
        )


def write_text(path: Path, text: str) -> None:
    """Write beside, sync, rename: the file is complete or as it was."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """:func:`write_text` for bytes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # what cannot be written may not be removed either
            temporary.unlink(missing_ok=True)
        raise RunFolderError(f"cannot write {path}: {error.strerror}; {_way_out(error)}") from error


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """A nested config as dotted keys and their values."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    return {k: v for key, value in values.items() for k, v in flat(value, f"{prefix}.{key}" if prefix else key).items()}
