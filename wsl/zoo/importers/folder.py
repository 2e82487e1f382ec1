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

from wsl.spec import SpecError
from wsl.state_dict import Architectures
from wsl.state_dict.files import UnsafeFileError, checkpoints_in, read_state_dict
from wsl.zoo.importers import splits
from wsl.zoo.importers.source import Array, FaultyNetworkError, Network, Source, numbered, row_of
from wsl.zoo.layout import ZooError
from wsl.zoo.verify import WHOLE, allowed_range

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
            ``split``: train, val, test or empty; every other column is kept. None: no labels. Files without a line, or
            with a label that is no number where one is needed, are faulty networks.
        hints: see :mod:`wsl.state_dict.hints`. classes: number of classes, the limit of the column ``label``.
        val, test, seed: of a drawn split by run, where the table has no column ``split``.

    Raises:
        ZooError: if the table cannot be read, or a tensor cannot be explained; SpecError: on faulty hints.
    """
    paths = {path.relative_to(source).as_posix(): path for path in checkpoints_in(source)}
    table, unfit = ({}, {}) if labels is None else _table(labels)
    if labels is not None:
        unfit = {name: reason for name, reason in unfit.items() if name in paths}
        unfit |= {name: f"{labels.name} has no line for it" for name in paths if name not in table}
    order = [name for name in table or paths if name in paths and name not in unfit]
    if not order:
        first = next(iter(unfit))
        raise ZooError(
            f"{labels}: not one of {len(paths)} files has a usable label; the first is {first}: {unfit[first]}"
        )
    columns = {name: _column(name, [table[n][name] for n in order]) for name in _names(table)}
    run_ids = numbered([table[n][RUN] for n in order] if RUN in _names(table, kept=True) else order)
    given = SPLIT in _names(table, kept=True)
    architectures = Architectures(hints)
    told: dict[str, list[str]] = {}
    recipe: dict[str, Any] = {
        "split": "the table's" if given else splits.told(val, test, seed),
        "assumed": told,
    }
    return Source(
        root=source,
        recipe=recipe | ({"classes": classes} if classes else {}),
        names=order,
        read=lambda number: _read(paths[order[number]], architectures, told),
        run_ids=run_ids,
        splits=_given([table[n][SPLIT] for n in order]) if given else splits.drawn(run_ids, val, test, seed),
        columns=columns,
        missing=[name for name in table if name not in paths],
        unfit=unfit,
    )


def _table(path: Path) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Lines by file, and why those are unfit whose label is not what its column must hold."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            lines = [(reader.line_num, line) for line in reader]
            header = list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ZooError(f"{path}: cannot be read as CSV ({error})") from error
    if header and FILE not in header:
        raise ZooError(f"{path}: the header {','.join(header)!r} lacks a column 'file', the paths below the folder")
    found: dict[str, dict[str, str]] = {}
    unfit: dict[str, str] = {}
    for number, line in lines:
        if None in line or None in line.values():
            raise ZooError(f"{path}: line {number} should have the columns {header}")
        if line[FILE] in found:
            raise ZooError(f"{path}: line {number} names {line[FILE]} again")
        found[line[FILE]] = line
        if reason := _no_number(line):
            unfit[line[FILE]] = f"line {number} of {path.name}: {reason}"
    if not found:
        raise ZooError(f"{path}: has no lines; expected the columns file, label, …")
    return found, unfit


def _no_number(line: Mapping[str, str]) -> str:
    """Which label of a line is none although its column has a range; empty if there is no such."""
    for name, text in line.items():
        if name in (FILE, RUN, SPLIT) or allowed_range(name, {}) is None:
            continue
        if name in WHOLE and _whole(text) is None:
            return f"{name} is {text!r}, no integer"
        if text and not _is_number(text):
            return f"{name} is {text!r}, no number"
    return ""


def _whole(text: str) -> int | None:
    """The integer that a text is, also as ``3.0``, which tables with gaps make of it."""
    try:
        value = int(text) if text.strip().lstrip("+-").isdecimal() else float(text)
    except ValueError:
        return None
    return int(value) if value == value // 1 and abs(value) < 2**63 else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _names(table: Mapping[str, Mapping[str, str]], kept: bool = False) -> list[str]:
    """Columns of the table; those with a meaning of their own are no labels."""
    first = next(iter(table.values()), {})
    return [name for name in first if kept or name not in (FILE, RUN, SPLIT)]


def _column(name: str, texts: list[str]) -> Array:
    """Integers if all are or must be, else numbers (empty: not known) if all are, else text."""
    if name in WHOLE:
        return np.array([_whole(text) for text in texts], dtype=np.int64)
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
    architectures: Architectures,
    told: dict[str, list[str]],
) -> Network:
    try:
        state = read_state_dict(path)
    except UnsafeFileError:
        raise
    except SpecError as error:
        raise FaultyNetworkError(str(error)) from error
    state = {name: t.float() for name, t in state.items() if t.is_floating_point()}
    known = len(architectures.told)
    try:
        spec = architectures.spec(state)
    except SpecError as error:
        raise FaultyNetworkError(f"{path}: {error}") from error
    if len(architectures.told) > known:
        told[path.name] = list(architectures.told[spec].notes)
    return Network(spec, row_of(spec, state))
