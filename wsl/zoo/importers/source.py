"""What an importer knows of a source before any weights are read, and how it reads a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsl import plain_json
from wsl.spec import SpecError, WeightSpec
from wsl.state_dict.files import UnsafeFileError, load_plain, tensors_in
from wsl.zoo.layout import ZooError

Array = npt.NDArray[Any]
LARGEST_JSON = 2**28  # bytes of a split or result file


class FaultyNetworkError(ZooError):
    """One network of a source cannot be used: damaged, of a wrong shape, not finite."""


@dataclass(frozen=True)
class Network:
    """A network as it was read: its spec, its row ``[P]``, and the columns that only its file tells."""

    spec: WeightSpec
    values: Array
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Networks in the order in which they will be rows, numbered from 0.

    Attributes:
        recipe: plain JSON values for the file: reference, licence, convention, ``classes``, ``render``, ….
        names: what each network is called in messages: a file below the source, or a row of one.
        read: number → network; raises :class:`FaultyNetworkError` if this one alone is at fault.
        run_ids: int64 ``[n]``. splits: name → numbers. columns: name → ``[n]``, where no file need be read for it.
        missing: names of networks that the source lists but does not hold.
        unfit: names of further networks, which the source holds but has no usable label for → why.
        root: the source's folder, which messages that are kept in the file leave out.
    """

    root: Path
    recipe: Mapping[str, Any]
    names: Sequence[str]
    read: Callable[[int], Network]
    run_ids: Array
    splits: Mapping[str, Array]
    columns: Mapping[str, Array] = field(default_factory=dict)
    missing: Sequence[str] = ()
    unfit: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)


def read_json(path: Path) -> Any:
    """A JSON file of a source.

    Raises:
        ZooError: if it is missing, absurdly large or no JSON.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ZooError(f"{path}: {path.stat().st_size} bytes are no split file")
        return plain_json.load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ZooError):
            raise
        raise ZooError(f"{path}: cannot be read as JSON ({error}); download it again") from error


def load(path: Path, inert: Callable[[str], bool] = lambda name: False) -> Any:
    """As :func:`wsl.state_dict.files.load_plain`; a damaged file is one faulty network, an unsafe one is refused."""
    try:
        return load_plain(path, inert)
    except UnsafeFileError:
        raise
    except SpecError as error:
        raise FaultyNetworkError(str(error)) from error


def state_of(path: Path, found: Any) -> dict[str, Tensor]:
    """The floating point tensors of a loaded checkpoint, by name."""
    try:
        state = tensors_in(path, found)
    except SpecError as error:
        raise FaultyNetworkError(str(error)) from error
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


def row_of(spec: WeightSpec, state: Mapping[str, Tensor]) -> Array:
    """A state dict as a row, float32 ``[P]``.

    Raises:
        FaultyNetworkError: if a tensor of the spec is missing or of another shape, or one is left over.
    """
    for stored in spec.stored:
        found = tuple(state[stored.name].shape) if stored.name in state else "missing"
        if found != stored.shape:
            raise FaultyNetworkError(f"{stored.name!r} should be {stored.shape}, is {found}")
    if left := sorted(set(state) - {stored.name for stored in spec.stored}):
        raise FaultyNetworkError(f"holds {left[:3]}, which the others do not")
    return torch.cat([state[stored.name].detach().reshape(-1).float() for stored in spec.stored]).numpy()


def relative(folder: Path, paths: Sequence[Path]) -> list[str]:
    """Names of files below the source."""
    return [path.relative_to(folder).as_posix() for path in paths]


def numbered(keys: Sequence[Any]) -> Array:
    """Equal keys → equal numbers, int64, in the order of first occurrence."""
    found: dict[Any, int] = {}
    return np.array([found.setdefault(key, len(found)) for key in keys], dtype=np.int64)
