"""Networks fitted per second: the builder of INR zoos against one network at a time, written as anyone would write it.

Both follow the published recipe (28×28, SIREN 2-32-32-1, Adam 5e-4). A step costs the same at the start and at the end,
so a few are timed and 1,000 stated: seconds per network = 1,000 × seconds per step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import nn

from benchmarks.measure import Report, interleaved, matmul_unit
from wsl.zoo.build.siren_fit import Kernel, Schedule, Siren, default_kernel, fit, initial_values
from wsl.zoo.coordinates import grid

SIREN = Siren((2, 32, 32, 1))
SIDE, RATE, STEPS = 28, 5e-4, 1000
PLAIN_STEPS, FIT_STEPS, NETWORKS = 60, 100, 8


class Sine(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(SIREN.omega * x)


def plain(row: np.ndarray, x: np.ndarray, y: np.ndarray, steps: int) -> None:
    """The reference: nn.Module, autograd, torch.optim.Adam, one network."""
    layers = [layer for i, o in itertools.pairwise(SIREN.widths) for layer in (nn.Linear(i, o), Sine())]
    network = nn.Sequential(*layers[:-1])
    nn.utils.vector_to_parameters(torch.from_numpy(row.copy()), network.parameters())
    inputs, target = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (network(inputs) + SIREN.output_offset - target).square().mean()
        if loss.item() <= 1e-4:  # 40 dB
            break
        loss.backward()
        optimizer.step()


def with_threads(threads: int, function: Callable[[], object]) -> Callable[[], object]:
    """The function, run with this many threads of torch."""

    def run() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            function()
        finally:
            torch.set_num_threads(before)

    return run


def run() -> Report:
    threads = torch.get_num_threads()
    x = grid(SIDE, SIDE)
    targets = np.random.default_rng(0).random((NETWORKS, len(x), 1), dtype=np.float32)
    values = initial_values(SIREN, [(0, 0, image, 0) for image in range(NETWORKS)])
    schedule = Schedule(RATE, FIT_STEPS, 1e-4)

    with ThreadPoolExecutor(threads) as pool:

        def many(kernel: Kernel) -> None:
            """As the builder does it: the networks shared out over threads that each compute alone."""
            parts = np.array_split(np.arange(NETWORKS), threads)
            list(pool.map(lambda part: fit(SIREN, values[part], x, targets[part], schedule, kernel), parts))

        ways: dict[str, tuple[Callable[[], object], int]] = {
            f"plain loop, torch with {threads} thread(s)": (
                lambda: plain(values[0], x, targets[0], PLAIN_STEPS),
                PLAIN_STEPS,
            ),
            "torch kernel": (with_threads(1, lambda: many("torch")), NETWORKS * FIT_STEPS),
            "compiled kernel": (with_threads(1, lambda: many("native")), NETWORKS * FIT_STEPS),
        }
        if threads > 1:
            alone = with_threads(1, lambda: plain(values[0], x, targets[0], PLAIN_STEPS))
            ways = {"plain loop, torch with 1 thread": (alone, PLAIN_STEPS), **ways}
        if default_kernel() == "torch":
            del ways["compiled kernel"]
        seconds = interleaved({name: function for name, (function, _) in ways.items()}, repeats=7, warmup=1)
    per_network = {name: STEPS * seconds[name] / steps for name, (_, steps) in ways.items()}
    return report(per_network, matmul_unit(), threads)


def report(per_network: dict[str, float], unit: float, threads: int) -> Report:
    plain_best = min(value for name, value in per_network.items() if name.startswith("plain"))
    title = f"fitting 28×28 INRs, {STEPS:,} steps (extrapolated), {threads} threads; 1 unit = {unit * 1e3:.1f} ms"
    table = Report(title, ("way", "networks/s", "ratio to the best plain loop", "units per network"))
    for name, value in per_network.items():
        table.rows.append((name, f"{1 / value:.2f}", f"{plain_best / value:.1f}", f"{value / unit:.1f}"))
        table.figures[f"{name}: networks/s"] = 1 / value
        table.figures[f"{name}: units per network"] = value / unit
    best = min(per_network.values())
    table.goal("times faster than the plain loop", plain_best / best, ">=", 8)
    table.goal("times faster than the plain loop, stretch", plain_best / best, ">=", 12)
    return table
