"""State dicts from files that may come from anywhere: no code in them is ever run."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from wsl.spec import SpecError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


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
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SpecError(
            f"{path} holds more than tensors, and loading it could run foreign code; save the state dict alone "
            f"(torch.save(module.state_dict(), …)) or as .safetensors. {str(error).splitlines()[0]}"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise SpecError(f"{path} cannot be read: {error}") from error
    return _tensors(path, found)


def _tensors(path: Path, found: Any) -> dict[str, Tensor]:
    if isinstance(found, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(found.get(wrapper), Mapping):
                return _tensors(path, found[wrapper])
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
