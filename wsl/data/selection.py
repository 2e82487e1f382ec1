"""Which rows of a zoo a run uses: those that a filter on its columns leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from wsl.zoo import Zoo, ZooError

#: column → the value that its rows must have, or the values that they may have; None: any
Where: TypeAlias = dict[str, str | int | float | list[str | int | float] | None]

SHOWN = 12  # values listed in a refusal


def matching(zoo: Zoo, where: Mapping[str, object]) -> np.ndarray:
    """``[rows]`` bool: the rows whose columns hold what ``where`` asks for, all conditions together.

    Raises:
        ZooError: if a column does not exist, or no row holds a value that is asked for; the message lists those that
            there are.
    """
    mask = np.ones(len(zoo), dtype=bool)
    for name, wanted in where.items():
        if name not in zoo.columns:
            raise ZooError(f"{zoo.path} has no column {name!r} for data.where; it has {', '.join(zoo.columns)}")
        if wanted is not None:
            column = zoo.column(name)
            values = wanted if isinstance(wanted, list) else [wanted]
            mask &= np.logical_or.reduce([_equal(zoo, name, column, value) for value in values])
    return mask


def _equal(zoo: Zoo, name: str, column: np.ndarray, value: object) -> np.ndarray:
    if (column.dtype.kind == "U") != isinstance(value, str):
        same = np.zeros(len(column), dtype=bool)
    elif column.dtype.kind == "f":  # 0.1 is to be found in a column of float32
        same = column == column.dtype.type(value)
    else:
        same = column == value
    if not same.any():
        held = np.unique(column).tolist()
        shown = ", ".join(map(str, held[:SHOWN])) + (f" and {len(held) - SHOWN} more" if len(held) > SHOWN else "")
        raise ZooError(f"{zoo.path}: no row has {name}={value!r}, as data.where asks; {name} is one of {shown}")
    return same
