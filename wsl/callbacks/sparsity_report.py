"""What a sparse run says at its end, and its tables on disk."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from wsl.sparsity.macs import Cost


def print_sparse(console: Console, cost: Cost, tested: Mapping[str, float], errors: list[dict[str, Any]]) -> None:
    """The test metric of each view beside the sparsities, and what pruning did to each layer."""
    table = Table(title="the sparse model, tested once", title_justify="left")
    for name in ("edges removed", "with loops", "weights removed", "MACs", "of dense", *tested):
        table.add_column(name, justify="right")
    shares = (cost.edge_sparsity, cost.edge_sparsity_with_loops, cost.weight_sparsity)
    share = cost.macs / max(1, cost.dense_macs)
    metrics = (f"{value:.4f}" for value in tested.values())
    table.add_row(*(f"{s:.1%}" for s in shares), f"{cost.macs:,}", f"{share:.1%}", *metrics)
    console.print(table)
    if not errors:
        return
    layers = Table(title="error of each layer's output by pruning, relative", title_justify="left")
    for name in errors[0]:
        layers.add_column(name)
    for row in errors:
        layers.add_row(*(v if isinstance(v, str) else f"{v:.4g}" for v in row.values()))
    console.print(layers)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows with the columns of the first one; nothing if there is none."""
    if not rows:
        return
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
