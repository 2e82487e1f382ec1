"""UNF layers on transformers of 1 to 12 blocks (width 32), full and reduced bases, 16 → 16 channels, both passes.

``python scripts/benchmarks/unf_scale.py FIGURES.json COST.png`` draws the curves from a file that
``scripts/benchmark.py unf_scale --json FIGURES.json`` has written.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / part) for part in ("", "scripts", "tests")]

import label_specs  # noqa: E402
import torch  # noqa: E402

from benchmarks.measure import Report, in_fresh_process  # noqa: E402
from wsl.nn.unf.basis import BasisOptions, count_table  # noqa: E402
from wsl.nn.unf.layout import Layout  # noqa: E402
from wsl.nn.unf.linear import UNFLinear  # noqa: E402

CHANNELS, REPEATS = 16, 3
SIZES = {"v": 64, "d": 32, "k": 32, "u": 32, "m": 128}
BLOCKS = (1, 2, 4, 6, 12)
#: option → (basis, what it can no longer express)
BASES: dict[str, tuple[BasisOptions, str]] = {
    "full": (BasisOptions(), "nothing"),
    "no diagonal writes": (BasisOptions(diagonal_writes=False), "diagonals of recurrent matrices written apart"),
    "role shared": (BasisOptions(theta="role_shared"), "blocks treated differently"),
    "low rank 16": (BasisOptions(theta="low_rank", rank=16), "more than 16 features between tensors per exchange"),
    "neighbours only": (BasisOptions(neighbours_only=True), "distant tensors within one layer"),
}


def measured(blocks: int, basis: str) -> dict[str, float]:
    """Terms, parameters, seconds to build, seconds per step and MiB above the interpreter, in a fresh process."""
    options = BASES[basis][0]
    spec = label_specs.transformer(blocks, SIZES)
    before = _resident("VmRSS")
    start = time.perf_counter()
    layer = UNFLinear(Layout(spec), CHANNELS, CHANNELS, options)
    build = time.perf_counter() - start
    packed = [x.requires_grad_() for x in layer.layout.pack(torch.randn(1, spec.numel, CHANNELS))]
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        torch.stack([y.sum() for y in layer(packed)]).sum().backward()
        seconds.append(time.perf_counter() - start)
    return {
        "tensors": len(spec.tensors),
        "terms": int(count_table(layer.layout, options).sum()),
        "parameters": sum(p.numel() for p in layer.parameters()),
        "build": build,
        "step": statistics.median(seconds[1:]),
        "MiB": (_resident("VmHWM") - before) / 2**20,
    }


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def run() -> Report:
    columns = ("blocks", "tensors", "basis", "terms", "parameters", "build s", "step ms", "peak MiB", "cannot express")
    report = Report("UNF layer on transformers, 16 → 16 channels, one network", columns)
    for blocks in BLOCKS:
        for basis, (_, loss) in BASES.items():
            found = in_fresh_process(measured, blocks, basis)
            report.figures[f"{blocks} blocks, {basis}"] = found
            counts = (f"{found['terms']:,.0f}", f"{found['parameters']:,.0f}", f"{found['build']:.2f}")
            costs = (f"{found['step'] * 1e3:.0f}", f"{found['MiB']:.0f}")
            report.rows.append((str(blocks), str(found["tensors"]), basis, *counts, *costs, loss))
            if blocks == BLOCKS[-1]:
                report.goal(f"{basis}: GiB at {blocks} blocks", found["MiB"] / 1024, "<=", 4.0)
                report.goal(f"{basis}: seconds to build {blocks} blocks", found["build"], "<=", 10.0)
    return report


def draw(figures: dict[str, dict[str, float]], target: Path) -> None:
    """Parameters, time and memory against blocks, one curve per basis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, key, label, scale in zip(
        panels,
        ("parameters", "step", "MiB"),
        ("parameters", "forward + backward, ms", "peak memory, MiB"),
        (1, 1e3, 1),
        strict=True,
    ):
        for basis in BASES:
            values = [figures[f"{blocks} blocks, {basis}"][key] * scale for blocks in BLOCKS]
            axes.plot(BLOCKS, values, marker=".", label=basis)
        axes.set(xlabel="transformer blocks", ylabel=label, yscale="log", xscale="log", xticks=BLOCKS)
        axes.set_xticks(BLOCKS, [str(n) for n in BLOCKS])
        axes.minorticks_off()
    panels[0].legend(frameon=False, fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)


if __name__ == "__main__":
    source, picture = map(Path, sys.argv[1:])
    draw(json.loads(source.read_text()), picture)
