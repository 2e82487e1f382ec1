"""A zoo file in a few lines: architectures, networks, splits, and how the values of its columns spread."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from rich.table import Table

from wsl.zoo.reader import Zoo

BARS = "▁▂▃▄▅▆▇█"
BINS = 20
LISTED = 8  # values of a text column that are counted by name


def card(zoo: Zoo) -> Table:
    """What the file holds, one line for each fact and column."""
    sizes = [spec.numel for spec in zoo.specs]
    many = f"{min(sizes):,} to {max(sizes):,}" if min(sizes) != max(sizes) else f"{sizes[0]:,}"
    kinds = f"{len(sizes)} architecture{'s' if len(sizes) > 1 else ''}"
    table = Table("zoo", str(zoo.path), title=f"{kinds}, {many} parameters", title_justify="left")
    table.add_row("networks", f"{len(zoo):,} of {len(np.unique(zoo.run_ids)):,} runs")
    table.add_row("splits", ", ".join(f"{name} {len(rows):,}" for name, rows in zoo.splits.items()))
    for name in zoo.columns:
        table.add_row(name, spread(zoo.column(name)))
    if left_out := zoo.recipe.get("left_out"):
        table.add_row("left out", f"{len(left_out):,} networks whose weights are not finite")
    table.add_row("file", f"{zoo.path.stat().st_size / 2**20:.1f} MiB")
    return table


def spread(values: npt.NDArray[np.generic]) -> str:
    """Mean, range and histogram of numbers; the counts of texts."""
    if values.dtype.kind == "U":
        names, counts = np.unique(values, return_counts=True)
        listed = ", ".join(f"{name} {count:,}" for name, count in zip(names[:LISTED], counts, strict=False))
        return listed + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
    numbers = values.astype(np.float64)
    low, high = numbers.min(), numbers.max()
    if low == high:
        return f"{low:.4g} in every row"
    counts, _ = np.histogram(numbers, BINS, (low, high))
    bars = "".join(" " if count == 0 else BARS[(len(BARS) - 1) * count // counts.max()] for count in counts.tolist())
    return f"mean {numbers.mean():.4g}, {low:.4g} |{bars}| {high:.4g}"
