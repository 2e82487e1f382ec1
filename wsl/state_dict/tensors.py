"""All tensors of a checkpoint of any make, under the names of a state dict; no code in it is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from wsl.spec import SpecError
from wsl.state_dict.files import ALONE, Inert, UnsafeFileError, load_plain

MODULE = ("_parameters", "_buffers", "_modules")  # attributes of a module whose names state dicts leave out
DEEPEST = 64


def collected(path: Path, under: str = "") -> dict[str, Tensor]:
    """Tensors by dotted name, contiguous and apart from each other.

    Args:
        path: what ``torch.save`` wrote. Classes that it names are not imported, their objects are read as records.
        under: take only those whose names begin with this key, which is cut off.

    Raises:
        SpecError: if the file cannot be read even so, holds no such tensors, or two under one name.
    """
    try:
        content = load_plain(path, lambda _: True)
    except UnsafeFileError as error:
        raise UnsafeFileError(
            f"{path} cannot be converted: even its tensors cannot be read without running code in it; {ALONE} where it "
            "was made",
            error.reason,
        ) from error
    prefix = f"{under}." if under else ""
    found: dict[str, Tensor] = {}
    for name, tensor in _walk(content, "", frozenset()):
        if not name.startswith(prefix):
            continue
        name = name.removeprefix(prefix)
        if name in found:
            raise SpecError(f"{path}: two tensors would be called {name!r}; take one part of it with --under")
        found[name] = tensor.detach().clone().contiguous()
    if not found:
        raise SpecError(f"{path}: holds no tensors" + (f" below {under!r}" if under else ""))
    return found


def _walk(value: Any, name: str, above: frozenset[int]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
        return
    if isinstance(value, Inert):
        value = value.state
    if isinstance(value, tuple | list):
        value = {str(number): part for number, part in enumerate(value)}
    if not isinstance(value, Mapping) or id(value) in above or len(above) > DEEPEST:
        return
    for key, part in value.items():
        below = name if key in MODULE and _is_module(value) else f"{name}.{key}" if name else str(key)
        yield from _walk(part, below, above | {id(value)})


def _is_module(attributes: Mapping[Any, Any]) -> bool:
    """Whether these are the attributes of a module."""
    return all(name in attributes for name in MODULE)
