"""Splits of a source: those that were published, or drawn by run where none were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsl.zoo.importers.source import Array, read_json
from wsl.zoo.layout import ZooError

NAMES = ("train", "val", "test")


def published(path: Path, parts: int) -> dict[str, list[str]]:
    """A split file, ``{train, val, test}`` each a list of paths or ``{path: […], …}``: the last parts of each path.

    Such files name networks by paths of the machine that they were made on; only the last ``parts`` components are
    kept, and nothing is ever opened by them.

    Raises:
        ZooError: if the file has another form, or a network is in it twice.
    """
    content = read_json(path)
    if not isinstance(content, Mapping) or not set(content) & set(NAMES):
        raise ZooError(f"{path}: no split file; expected a JSON object with the keys {', '.join(NAMES)}")
    found: dict[str, list[str]] = {}
    seen: dict[str, str] = {}
    for split in (name for name in NAMES if name in content):
        entries = content[split]
        paths = entries.get("path") if isinstance(entries, Mapping) else entries
        if not isinstance(paths, list) or not all(isinstance(entry, str) for entry in paths):
            raise ZooError(f"{path}: {split} should be a list of paths, or an object with the list 'path'")
        found[split] = [tail(entry, parts) for entry in paths]
        for entry in found[split]:
            if entry in seen:
                raise ZooError(f"{path}: {entry} is in split {seen[entry]!r} and again in {split!r}")
            seen[entry] = split
    return found


def tail(path: str | Path, parts: int) -> str:
    """The last components of a path."""
    return "/".join(Path(path).parts[-parts:])


def arrange(
    split: Mapping[str, Sequence[str]], held: Mapping[str, Any]
) -> tuple[list[str], dict[str, Array], list[str]]:
    """Networks in the order of the split file, then those that it does not name; the splits by number; what is missing.

    Args:
        split: name → tails. held: tail → anything, what the source holds.
    """
    order: list[str] = []
    splits: dict[str, Array] = {}
    missing: list[str] = []
    for name, tails in split.items():
        mine = [entry for entry in tails if entry in held]
        missing += [entry for entry in tails if entry not in held]
        splits[name] = np.arange(len(order), len(order) + len(mine), dtype=np.int64)
        order += mine
    named = set(order)
    return order + [entry for entry in held if entry not in named], splits, missing


def drawn(run_ids: Array, val: float, test: float, seed: int) -> dict[str, Array]:
    """A random split by run, a function of the seed alone.

    Args:
        run_ids: of the networks to split, int64 ``[n]``.
        val, test: how many runs, as a share below 1 or a number.

    Raises:
        ZooError: if they leave no run to train on.
    """
    runs = np.unique(run_ids)
    sizes = [round(len(runs) * size) if size < 1 else int(size) for size in (val, test)]
    if sum(sizes) >= len(runs) or min(sizes) < 0:
        raise ZooError(f"{sizes[0]} runs to validate on and {sizes[1]} to test leave none of {len(runs)} to train on")
    order = np.random.default_rng([seed]).permutation(len(runs))
    held = {"val": runs[order[: sizes[0]]], "test": runs[order[sizes[0] : sum(sizes)]]}
    rows = {name: np.flatnonzero(np.isin(run_ids, chosen)) for name, chosen in held.items() if len(chosen)}
    left = np.flatnonzero(~np.isin(run_ids, np.concatenate(list(held.values()))))
    return {"train": left, **rows}


def told(val: float, test: float, seed: int) -> dict[str, Any]:
    """How a split was drawn, for the recipe."""
    return {"drawn": "by run", "val": val, "test": test, "seed": seed}
