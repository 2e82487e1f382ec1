"""What a writer admits, brought into the types of the file (:mod:`wsl.zoo.layout`); all else is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsl.zoo.layout import LONGEST_STRING, ZooError

Array = npt.NDArray[Any]


def column(path: Path, name: str, values: Array, rows: int) -> Array:
    """A value per row: int64, uint8 (from booleans), float32, float64 or UTF-8."""
    if values.shape != (rows,):
        raise ZooError(f"{path}: column {name!r} has shape {values.shape}, expected ({rows},)")
    match values.dtype.kind:
        case "b":
            return values.astype("u1")
        case "i" | "u":
            return values.astype("<i8")
        case "f":
            return values.astype("<f8" if values.dtype.itemsize == 8 else "<f4")
        case "U":
            text = np.char.encode(values, "utf-8")
            if text.dtype.itemsize <= LONGEST_STRING:
                return text.astype(f"S{max(1, text.dtype.itemsize)}")
    raise ZooError(
        f"{path}: column {name!r} is {values.dtype}; use integers, floats, booleans or strings of at most "
        f"{LONGEST_STRING} bytes"
    )


def integers(path: Path, what: str, values: Sequence[int] | Array) -> Array:
    """A vector of int64."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ZooError(f"{path}: {what} must be a vector of integers, got {array.dtype} of shape {array.shape}")
    return array.astype("<i8")


def member_name(path: Path, kind: str, name: str) -> str:
    """The name of a column or split."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ZooError(f"{path}: {kind} name {name!r} must be letters, digits, '_', '-' and '.'")
    return name


def json_bytes(path: Path, name: str, value: Any) -> Array:
    """Canonical JSON as uint8."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ZooError(f"{path}: {name} is no plain JSON ({error}); use dicts, lists, strings and numbers") from error
    return np.frombuffer(text.encode(), dtype=np.uint8)
