"""What pruned propagation costs on a synthetic power-law graph: 1 M nodes, 20 M directed edges, Gaussian features.

Degrees fall like d^−2.5: endpoints are drawn with weights rank^−1/1.5 (Chung and Lu). APPNP, 20 hops, α = 0.1, one
block of 16 channels, float32, one run each. Exact propagation is 20 CSR products of scipy. Neighbours have nothing in
common here, so no error is given: it would be that of noise.

``python scripts/benchmarks/unifews_power_law.py FIGURES.json COST.png`` draws seconds against what is kept from a file
that ``scripts/benchmark.py unifews_power_law --json FIGURES.json`` has written.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / part) for part in ("", "scripts")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.measure import Report  # noqa: E402
from benchmarks.unifews_propagation import in_scipy, propagated_by_scipy  # noqa: E402
from wsl.nn.sparse.propagation import SourceLists, appnp, propagate  # noqa: E402

NODES, EDGES, CHANNELS, EXPONENT = 1_000_000, 20_000_000, 16, 2.5
THRESHOLDS = (0.0, 1e-3, 5e-3, 1e-2, 2e-2, 4e-2, 1e-1, 3e-1)


def power_law(nodes: int, edges: int, exponent: float) -> Tensor:
    """About so many directed edges ``[2, E]``, both directions of each, none twice, no self loop."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.arange(1, nodes + 1, dtype=torch.float64).pow(-1 / (exponent - 1)).cumsum(0)
    drawn = torch.rand(2, edges // 2, generator=generator, dtype=torch.float64) * ends[-1]
    first, second = torch.searchsorted(ends, drawn).clamp_max(nodes - 1)
    first, second = torch.minimum(first, second), torch.maximum(first, second)
    code = (first * nodes + second)[first != second].unique()
    first, second = code // nodes, code % nodes
    return torch.stack([torch.cat([first, second]), torch.cat([second, first])])


def seconds_of(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = function()
    return time.perf_counter() - start, found


def run() -> Report:
    edge_index = power_law(NODES, EDGES, EXPONENT)
    lists, theta = SourceLists.of(edge_index, NODES), appnp(20, 0.1)
    x = torch.randn(NODES, CHANNELS, generator=torch.Generator().manual_seed(1))
    report = Report(
        f"APPNP, 20 hops, {NODES:,} nodes, {edge_index.shape[1]:,} edges, {CHANNELS} channels",
        ("how", "pairs kept", "pruned", "seconds", "× scipy"),
    )
    matrix = in_scipy(lists)
    exact, _ = seconds_of(lambda: propagated_by_scipy(matrix, x.numpy(), theta))
    all_pairs = len(lists.target) * CHANNELS * 20
    report.rows.append(("scipy", f"{all_pairs:,}", "0 %", f"{exact:.2f}", "1"))
    curve = []
    for threshold in THRESHOLDS:
        seconds, found = seconds_of(lambda t=threshold: propagate(lists, x, theta, t))  # type: ignore[misc]
        curve.append({"δ": threshold, "kept": found.updates, "seconds": seconds})
        numbers = (f"{found.updates:,}", f"{found.sparsity:.1%}", f"{seconds:.2f}", f"{exact / seconds:.2f}")
        report.rows.append((f"δ = {threshold:g}", *numbers))
    report.figures |= {"scipy": exact, "pairs": all_pairs, "curve": curve}
    kept, spent = (np.array([point[key] for point in curve]) for key in ("kept", "seconds"))
    report.goal("correlation of seconds with pairs kept", float(np.corrcoef(kept, spent)[0, 1]), ">=", 0.9)
    report.goal("times as fast as scipy without pruning", exact / curve[0]["seconds"], ">=", 1.0)
    return report


def draw(figures: dict[str, Any], target: Path) -> None:
    """Seconds against pairs kept, exact propagation as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes, curve = figure.subplots(), figures["curve"]
    kept = [100 * point["kept"] / figures["pairs"] for point in curve]
    axes.plot(kept, [point["seconds"] for point in curve], marker=".", color="#1f6f8b", label="pruned propagation")
    axes.axhline(figures["scipy"], color="#333333", linestyle="--", linewidth=1, label="exact, scipy CSR")
    axes.set(xlabel="(edge, channel) pairs kept, %", ylabel="seconds", xlim=0, ylim=0)
    axes.legend(frameon=False, fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)


if __name__ == "__main__":
    source, picture = map(Path, sys.argv[1:])
    draw(json.loads(source.read_text()), picture)
