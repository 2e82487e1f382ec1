"""A zoo file in words: architectures, networks, splits, how the values of its columns spread, how it was made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from wsl.zoo.architectures import activations, counted, depth, kinds, widths
from wsl.zoo.reader import Zoo

BARS = "▁▂▃▄▅▆▇█"
BINS = 20
LISTED = 8  # values of a text column that are counted by name, and architectures that are shown
RECIPE_LINES, LINE = 40, 96  # of the recipe that are shown, and the letters of each
FIRST = ("reference", "licence", "license", "source", "import", "dataset")  # what of a recipe is told first


def card(zoo: Zoo) -> Table:
    """What the file holds, one line for each fact and column."""
    sizes = [spec.numel for spec in zoo.specs]
    many = f"{min(sizes):,} to {max(sizes):,}" if min(sizes) != max(sizes) else f"{sizes[0]:,}"
    number = f"{len(sizes):,} architecture{'s' if len(sizes) > 1 else ''}"
    table = Table("zoo", escape(str(zoo.path)), title=f"{number}, {many} parameters", title_justify="left")
    table.add_row("networks", f"{len(zoo):,} of {len(np.unique(zoo.run_ids)):,} runs")
    table.add_row("splits", _splits(zoo))
    for name in zoo.columns:
        table.add_row(escape(name), escape(spread(zoo.column(name))))
    if left_out := zoo.recipe.get("left_out"):
        table.add_row("left out", _left_out(left_out))
    table.add_row("file", f"{zoo.path.stat().st_size / 2**20:.1f} MiB, digest {zoo.digest[:16]}…")
    return table


def full_card(zoo: Zoo) -> Group:
    """The card, the architectures, and the recipe."""
    return Group(card(zoo), architectures(zoo), recipe(zoo))


def architectures(zoo: Zoo) -> Table:
    """The most frequent architectures, and all of them in the last line; whether their symmetries were checked."""
    counts = np.bincount(zoo.spec_ids, minlength=len(zoo.specs))
    columns = ("networks", "parameters", "widths", "depth", "activations", "layers", "checked")
    table = Table(title="architectures", title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for number in counts.argsort(kind="stable")[::-1][:LISTED].tolist():
        spec = zoo.specs[number]
        words = (widths(spec), str(depth(spec)), ", ".join(activations(spec)), ", ".join(kinds(spec)))
        table.add_row(f"{counts[number]:,}", f"{spec.numel:,}", *words, "yes" if spec.verified else "no")
    if len(zoo.specs) > 1:
        depths, sizes = [depth(spec) for spec in zoo.specs], [spec.numel for spec in zoo.specs]
        table.add_section()
        table.add_row(
            f"{len(zoo):,}", f"{min(sizes):,} to {max(sizes):,}", f"{len(zoo.specs):,} architectures",
            f"{min(depths)} to {max(depths)}",
            counted(name for spec in zoo.specs for name in activations(spec)),
            counted(kind for spec in zoo.specs for kind in kinds(spec)),
            f"{sum(spec.verified for spec in zoo.specs):,}",
        )  # fmt: skip
    return table


def recipe(zoo: Zoo) -> Table:
    """How the zoo was made: reference and licence first."""
    table = Table("recipe", "", title_justify="left")
    entries = {key: value for key, value in zoo.recipe.items() if key != "left_out"}
    ordered = {key: entries[key] for key in FIRST if key in entries} | entries
    lines = list(_lines(ordered))
    for key, value in lines[:RECIPE_LINES]:
        table.add_row(escape(key), escape(value if len(value) <= LINE else f"{value[: LINE - 1]}…"))
    if len(lines) > RECIPE_LINES:
        table.add_row("…", f"{len(lines) - RECIPE_LINES} more")
    if not lines:
        table.add_row("", "the file does not say how it was made")
    return table


def spread(values: npt.NDArray[np.generic]) -> str:
    """Mean, range and histogram of numbers; the counts of texts."""
    if values.dtype.kind == "U":
        return counted(values.tolist(), LISTED)
    numbers = values.astype(np.float64)
    numbers, total = numbers[np.isfinite(numbers)], len(numbers)
    unknown = f", {total - len(numbers):,} not known" if len(numbers) < total else ""
    if not len(numbers):
        return "not known"
    low, high = numbers.min(), numbers.max()
    if low == high:
        return f"{low:.4g} in every row{unknown}"
    counts, _ = np.histogram(numbers, BINS, (low, high))
    bars = "".join(" " if count == 0 else BARS[(len(BARS) - 1) * count // counts.max()] for count in counts.tolist())
    return f"mean {numbers.mean():.4g}, {low:.4g} |{bars}| {high:.4g}{unknown}"


def _splits(zoo: Zoo) -> str:
    usual = {name: zoo.splits[name] for name in ("train", "val", "test") if name in zoo.splits}
    sizes = [f"{name} {len(rows):,}" for name, rows in (usual | zoo.splits).items()]
    outside = len(zoo) - sum(map(len, zoo.splits.values()))
    return ", ".join([*sizes, f"{outside:,} in none"] if outside else sizes)


def _left_out(entries: Any) -> str:
    """How many networks are not in the file, and why."""
    if all(isinstance(entry, Mapping) for entry in entries):
        kinds_ = Counter(str(entry.get("kind", "unknown")) for entry in entries)
        return f"{len(entries):,} networks: {', '.join(f'{count:,} {kind}' for kind, count in kinds_.items())}"
    return f"{len(entries):,} networks whose weights are not finite"


def _lines(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as ``key.subkey`` → text."""
    if isinstance(value, Mapping) and (value or not key):
        for name, part in value.items():
            yield from _lines(part, f"{key}.{name}" if key else str(name))
    else:
        yield key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
