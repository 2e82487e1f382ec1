"""Timing, memory and the closing table that all benchmarks share."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

FILE_WIDTH = 160  #: columns of the table where the output goes to a file


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int = 10, warmup: int = 2) -> dict[str, float]:
    """Median seconds of each function, run in turn so noise hits all alike."""
    for _ in range(warmup):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def matmul_unit(repeats: int = 30) -> float:
    """Seconds of one 1024×1024 float32 ``torch.mm`` with the threads in force."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return interleaved({"mm": lambda: torch.mm(a, b)}, repeats=repeats, warmup=5)["mm"]


def one_unit(device: torch.device | None = None) -> Callable[[], object]:
    """One matmul unit, to be interleaved with what is measured in it: the unit varies with the machine."""
    a, b = torch.randn(1024, 1024, device=device), torch.randn(1024, 1024, device=device)
    return lambda: torch.mm(a, b)


def ten_units() -> Callable[[], object]:
    """Ten matmul units in a row."""
    unit = one_unit()
    return lambda: [unit() for _ in range(10)]


def peak_rss() -> int:
    """Largest resident size of this process so far, bytes (``ru_maxrss`` would begin at the parent's)."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """Result of a module-level function run in a process of its own, so that peak memory is its alone."""
    with multiprocessing.get_context("spawn").Pool(
        1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
    ) as pool:
        return pool.apply(function, args)


def training_memory(training: Callable[[str], Any], row: str, which: str, steps: int) -> float:
    """Peak resident MB of this process after ``steps`` steps of ``training(row)`` with its model ``which``.

    For :func:`in_fresh_process`, where the process does nothing else.
    """
    trained = training(row)
    for _ in range(steps):
        trained.step(getattr(trained, which))
    return peak_rss() / 2**20


def largest_difference(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], bound: float) -> float:
    """Largest difference within the pairs, relative to the largest value of the second of each.

    Raises:
        AssertionError: if it is not below ``bound``; then the two are not the same model.
    """
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    if not worst < bound:
        raise AssertionError(f"blocks and PyG differ by {worst:.1e}: the benchmark would compare two models")
    return worst


@dataclass
class Report:
    """A table of measurements and the goals met or missed."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    goals: list[tuple[str, float, str, float]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def goal(self, name: str, figure: float, relation: str, bound: float) -> None:
        """State a goal: ``figure`` should be ``relation`` ("<=" or ">=") ``bound``."""
        if relation not in ("<=", ">="):
            raise ValueError(f"relation is <= or >=, got {relation!r}")
        self.goals.append((name, figure, relation, bound))
        self.figures[name] = figure

    def print(self) -> None:
        console = Console() if sys.stdout.isatty() else Console(width=FILE_WIDTH)
        table = Table(*self.columns, title=self.title)
        for row in self.rows:
            table.add_row(*map(str, row))
        console.print(table)
        met = [g for g in self.goals if (g[1] <= g[3] if g[2] == "<=" else g[1] >= g[3])]
        console.print(f"goals met: {len(met)} of {len(self.goals)}", highlight=False)
        for goal in self.goals:
            if goal not in met:
                console.print(f"missed: {goal[0]} {goal[1]:.4g} (goal {goal[2]} {goal[3]:g})", highlight=False)
