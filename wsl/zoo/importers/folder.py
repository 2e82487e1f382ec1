"""Any folder of checkpoints, with a table of labels.

    folder/**/*.safetensors, *.pt, *.pth, *.bin, *.ckpt
    labels.csv: a line for each file: file, then one column for each label; optionally run and split

Specs are read off names and shapes (:mod:`wsl.state_dict`); hints say what those do not, above all the activation.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsl.spec import SpecError, WeightSpec
from wsl.state_dict import Hints, from_state_dict
from wsl.state_dict.files import UnsafeFileError, checkpoints_in, read_state_dict
from wsl.zoo.importers import splits
from wsl.zoo.importers.source import Array, FaultyNetworkError, Network, Source, numbered, row_of
from wsl.zoo.layout import ZooError

FILE, RUN, SPLIT = "file", "run", "split"


def folder(
    source: Path,
    labels: Path | None = None,
    hints: Path | Mapping[str, Any] | None = None,
    classes: int | None = None,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
) -> Source:
    """Networks of one architecture or of several.

    Args:
        source: the folder; folders in it are searched too.
        labels: CSV with the column ``file`` (paths below the folder). ``run``: rows of one run stay in one split;
            ``split``: train, val, test or empty; every other column is kept. None: no labels.
        hints: see :mod:`wsl.state_dict.hints`. classes: number of classes, the limit of the column ``label``.
        val, test, seed: of a drawn split by run, where the table has no column ``split``.

    Raises:
        ZooError: if files and table do not agree, or a tensor cannot be explained; SpecError: on faulty hints.
    """
    paths = {path.relative_to(source).as_posix(): path for path in checkpoints_in(source)}
    table = {} if labels is None else _table(labels)
    if table and (without := [name for name in paths if name not in table]):
        raise ZooError(f"{labels}: has no line for {len(without)} files of the folder, the first is {without[0]}")
    order = [name for name in table if name in paths] if table else list(paths)
    columns = {name: _column([table[n][name] for n in order]) for name in _names(table) if order}
    run_ids = numbered([table[n][RUN] for n in order] if RUN in _names(table, kept=True) else order)
    given = SPLIT in _names(table, kept=True)
    read_hints = Hints.read(hints)
    specs: dict[tuple[tuple[str, tuple[int, ...]], ...], WeightSpec] = {}
    told: dict[str, list[str]] = {}
    recipe: dict[str, Any] = {
        "split": "the table's" if given else splits.told(val, test, seed),
        "assumed": told,
    }
    return Source(
        root=source,
        recipe=recipe | ({"classes": classes} if classes else {}),
        names=order,
        read=lambda number: _read(paths[order[number]], read_hints, specs, told),
        run_ids=run_ids,
        splits=_given([table[n][SPLIT] for n in order]) if given else splits.drawn(run_ids, val, test, seed),
        columns=columns,
        missing=[name for name in table if name not in paths],
    )


def _table(path: Path) -> dict[str, dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ZooError(f"{path}: cannot be read as CSV ({error})") from error
    found: dict[str, dict[str, str]] = {}
    for number, line in enumerate(lines, start=2):
        if FILE not in line or None in line or None in line.values():
            raise ZooError(f"{path}: line {number} should have the columns {list(lines[0])}, 'file' among them")
        if line[FILE] in found:
            raise ZooError(f"{path}: line {number} names {line[FILE]} again")
        found[line[FILE]] = line
    if not found:
        raise ZooError(f"{path}: has no lines; expected the columns file, label, …")
    return found


def _names(table: Mapping[str, Mapping[str, str]], kept: bool = False) -> list[str]:
    """Columns of the table; those with a meaning of their own are no labels."""
    first = next(iter(table.values()), {})
    return [name for name in first if kept or name not in (FILE, RUN, SPLIT)]


def _column(texts: list[str]) -> Array:
    """Integers if all are, else numbers (empty: not known) if all are, else text."""
    for kind in (int, float):
        try:
            return np.array([kind(text) if text or kind is int else np.nan for text in texts])
        except ValueError:
            continue
    return np.array(texts)


def _given(names: list[str]) -> dict[str, Array]:
    return {name: np.flatnonzero(np.array(names) == name) for name in dict.fromkeys(names) if name}


def _read(
    path: Path,
    hints: Hints,
    specs: dict[tuple[tuple[str, tuple[int, ...]], ...], WeightSpec],
    told: dict[str, list[str]],
) -> Network:
    try:
        state = read_state_dict(path)
    except UnsafeFileError:
        raise
    except SpecError as error:
        raise FaultyNetworkError(str(error)) from error
    state = {name: t.float() for name, t in state.items() if t.is_floating_point()}
    shapes = tuple(sorted((name, tuple(tensor.shape)) for name, tensor in state.items()))  # files differ in order
    if shapes not in specs:
        try:
            spec, assumptions = from_state_dict({n: t.new_zeros(t.shape) for n, t in state.items()}, hints)
        except SpecError as error:
            raise FaultyNetworkError(f"{path}: {error}") from error
        specs[shapes] = spec
        told[path.name] = list(assumptions.notes)
    return Network(specs[shapes], row_of(specs[shapes], state))
