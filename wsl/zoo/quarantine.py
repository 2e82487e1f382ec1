"""A copy of a zoo without the rows that cannot be used: made once, so that every run and every rank sees the same."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from wsl.zoo.layout import ZooError, blocks_of
from wsl.zoo.reader import Zoo
from wsl.zoo.verify import rows_of, walk_rows
from wsl.zoo.writer import ZooWriter


def write_without_faulty(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    most: int,
    progress: Callable[[float], None] = lambda fraction: None,
) -> int:
    """Copy the rows whose checksums hold and whose weights are finite; everything else stays as it is.

    The recipe of the copy lists, under ``left_out``, each row that is missing by its old number, and why.

    Args:
        most: rows that may be left out.
        progress: called with the share of the rows that has been read, from 0 to 1.

    Returns:
        how many rows were left out.

    Raises:
        ZooError: if there is no faulty row, more than ``most`` are, none is left of a split, a part other than the
            weights is damaged, or ``out`` exists.
    """
    with Zoo(path) as zoo:
        found = walk_rows(zoo, lambda n: progress(n / (4 * int(zoo.row_ptr[-1])) / 2))
        good = found.readable & found.finite
        faulty = np.flatnonzero(~good)
        if not len(faulty):
            raise ZooError(f"{zoo.path}: every row can be used; there is nothing to leave out")
        if len(faulty) > most:
            (named,) = rows_of("damaged or not finite:", faulty)
            raise ZooError(f"{zoo.path}: {named}; these are {len(faulty)}, more than the {most} that may be left out")
        _copy(zoo, out, good, ["damaged" if not found.readable[row] else "not finite" for row in faulty], progress)
    return len(faulty)


def _copy(
    zoo: Zoo, out: str | os.PathLike[str], good: np.ndarray, why: list[str], progress: Callable[[float], None]
) -> None:
    kept, faulty = np.flatnonzero(good), np.flatnonzero(~good)
    number = good.cumsum() - 1  # of a row in the copy
    splits = {name: number[rows[good[rows]]] for name, rows in zoo.splits.items()}
    if empty := [name for name, rows in splits.items() if not len(rows)]:
        raise ZooError(f"{zoo.path}: no row of split {empty[0]!r} can be used; build the file again")
    used, spec_ids = np.unique(zoo.spec_ids[kept], return_inverse=True)
    left_out = [{"row": int(row), "reason": reason} for row, reason in zip(faulty, why, strict=True)]
    recipe = zoo.recipe | {"left_out": [*zoo.recipe.get("left_out", []), *left_out], "copied_from": zoo.digest}
    columns = {name: zoo.column(name)[kept] for name in zoo.columns}
    specs = [zoo.specs[spec] for spec in used]
    with ZooWriter(out, specs, len(kept), recipe, spec_ids=spec_ids) as writer:
        longest = int(np.diff(zoo.row_ptr).max())
        for start, stop in blocks_of(len(kept), 4 * longest):
            values, row_ptr, _ = zoo.read_mixed_rows(kept[start:stop])
            shape = (stop - start, -1) if len(specs) == 1 else (-1,)
            writer.write(start, values.reshape(shape), None if len(specs) == 1 else np.diff(row_ptr))
            progress(0.5 + stop / len(kept) / 2)
        writer.set_columns(columns)
        writer.set_run_ids(zoo.run_ids[kept])
        writer.set_splits(splits)
        if (images := zoo.images) is not None:
            writer.set_images(images)
