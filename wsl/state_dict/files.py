"""State dicts from files that may come from anywhere: no code in them is ever run."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from wsl.spec import SpecError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
CONVERTER = "scripts/convert_checkpoint.py"
ALONE = "save the state dict alone (torch.save(module.state_dict(), …))"
#: what torch's loader says of a file that wants more than tensors and plain containers; all else is damage
FOREIGN = re.compile(r"[Uu]nsupported (global|GLOBAL)|Trying to call|Can only (create|build)|persistent")
#: what torch's loader raises at damaged files
DAMAGE = (
    RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, struct.error,
)  # fmt: skip


class UnsafeFileError(SpecError):
    """A file that wants to run code when it is loaded.

    Attributes:
        reason: what torch's loader says of it.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(f"{message}. {reason}" if reason else message)
        self.reason = reason


class Inert:
    """Stands for an object of a class that is not loaded: it keeps what the file says of it and does nothing.

    Attributes:
        arguments: of the constructor. state: what the object held, usually its attributes by name.
    """

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __new__(cls, *arguments: Any) -> Inert:
        """Arguments of any number, also where the constructor is not called."""
        inert = super().__new__(cls)
        inert.arguments, inert.state = arguments, None
        return inert

    def __setstate__(self, state: Any) -> None:
        self.state = state


def load_plain(path: Path, inert: Callable[[str], bool] = lambda name: False) -> Any:
    """What ``torch.save`` wrote, on the CPU, by torch's own loader with ``weights_only=True``; no code is run.

    Args:
        inert: of which classes and functions (``module.name``) the file may hold objects, as :class:`Inert`.

    Raises:
        UnsafeFileError: if the file refers to anything else. SpecError: if it cannot be read.
    """
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            names = get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
            if not names or not all(inert(name) for name in names):
                raise
            with safe_globals([(Inert, name) for name in names]):
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not FOREIGN.search(str(error)):
            raise _damaged(path, error) from error
        raise UnsafeFileError(
            f"{path} holds more than tensors, and loading it could run foreign code; {ALONE}, or convert it offline "
            f"with {CONVERTER}",
            _reason(error),
        ) from error
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror or _first_line(error)}") from error
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> SpecError:
    """Without torch's advice to load the file in a way that runs what is in it."""
    reason = _first_line(error)
    if "TorchScript" in reason:
        return SpecError(f"{path} cannot be read: it is a TorchScript archive, which holds code; {ALONE}")
    words = isinstance(error, RuntimeError | EOFError | pickle.UnpicklingError) and "weights_only" not in reason
    told = f"{reason.partition('. This is an internal')[0]}; " if words else ""
    return SpecError(f"{path} cannot be read: {told}it is damaged or no torch file; save or download it again")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if FOREIGN.search(line)]
    return lines[0].partition("Please use")[0].strip() if lines else ""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU.

    ``.safetensors``, or what ``torch.save`` wrote if ``torch.load(weights_only=True)`` accepts it; a state dict inside
    a checkpoint (``state_dict``, ``model``, …) is found.

    Raises:
        SpecError: if the file cannot be read, wants to run code, or holds no tensors; the message names it.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise SpecError(f"{path}: not a checkpoint; known suffixes: {', '.join(SUFFIXES)}")
    if path.suffix != ".safetensors":
        return tensors_in(path, load_plain(path))
    try:
        found = safetensors.torch.load_file(path)
        return {name: found[name] for name in sorted(found, key=natural)}  # the file has them by type and name
    except (OSError, RuntimeError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise SpecError(f"{path} cannot be read: {_first_line(error)}") from error


def natural(name: str) -> list[str | int]:
    """Sorts ``layer2`` before ``layer10``."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def tensors_in(path: Path, found: Any) -> dict[str, Tensor]:
    """The state dict that a loaded file is, or holds under one of the usual names.

    Raises:
        SpecError: if it holds none; the message names the file.
    """
    if isinstance(found, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(found.get(wrapper), Mapping):
                return tensors_in(path, found[wrapper])
        state = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
        if state and len(state) == len(found):
            return state
        others = sorted(str(name) for name in found if str(name) not in state)[:5]
        raise SpecError(f"{path} is no state dict: {others} are not tensors")
    raise SpecError(f"{path} is no state dict but a {type(found).__name__}")


def checkpoints_in(folder: str | Path) -> list[Path]:
    """The checkpoints of a folder and its folders, sorted by path.

    Raises:
        SpecError: if there are none.
    """
    folder = Path(folder)
    found = sorted(p for p in folder.rglob("*") if p.suffix in SUFFIXES and p.is_file())
    if not found:
        raise SpecError(f"{folder} holds no checkpoint ({', '.join(SUFFIXES)})")
    return found
