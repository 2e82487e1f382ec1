"""Streaming a zoo from its file: speed against other ways of reading, memory, and how well rows are mixed.

Networks 2-32-32-1 (1,185 parameters) in batches of 64 and 256. The ways, interleaved, files in the page cache:

    raw h5py           ``read_direct`` of 16 MiB after another into the same memory, in file order, no batches
    streaming          :class:`~wsl.data.streaming.StreamedRows` in the project's loader, shuffled, checksums verified
    map-style h5py     torch's DataLoader over a dataset whose item is one row of the HDF5 file, shuffled
    file per network   torch's DataLoader over a dataset whose item is ``torch.load`` of one state dict, shuffled

Once more with the pages of the file dropped first (``cold``), for the first two. Memory is the resident size during an
epoch, in a fresh process per file, of 10 thousand to a million rows. ``python scripts/benchmarks/streaming.py
FIGURES.json MEMORY.png`` draws it from a file that ``scripts/benchmark.py streaming --json FIGURES.json`` has written.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / part) for part in ("", "scripts")]

import h5py  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

from benchmarks.measure import Report, in_fresh_process, interleaved  # noqa: E402
from wsl.data.loader import loader  # noqa: E402
from wsl.data.streaming import StreamedRows  # noqa: E402
from wsl.spec import mlp_spec  # noqa: E402
from wsl.zoo import Zoo, ZooWriter  # noqa: E402
from wsl.zoo.block_order import GROUPS, LANES, epoch_order  # noqa: E402

SPEC = mlp_spec((2, 32, 32, 1), "sine", {"omega": 30.0})
ROWS, FILES, SINGLE_ROWS = 100_000, 2_000, 1_000
BUFFER = 2**28
MEMORY_ROWS = (10_000, 100_000, 1_000_000)
REPEATS = 5


def run() -> Report:
    report = Report(f"reading {ROWS:,} networks of {SPEC.numel:,} parameters", ("way", "batch", "networks/s", "MB/s"))
    with tempfile.TemporaryDirectory() as folder:
        speed(report, Path(folder))
    mixing(report)
    with tempfile.TemporaryDirectory() as folder:
        memory(report, Path(folder))
    return report


def write(path: Path, rows: int) -> Path:
    block = np.random.default_rng(0).normal(0, 0.3, (min(rows, 10_000), SPEC.numel)).astype(np.float32)
    with ZooWriter(path, SPEC, rows, {}) as zoo:
        for start in range(0, rows, len(block)):
            zoo.write(start, block)
        zoo.set_columns({"label": np.arange(rows) % 10})
    return path


# -- speed ------------------------------------------------------------------------------------------------------------


class H5Rows(Dataset[Any]):
    """One row of the file per item."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, None

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> tuple[Any, int]:
        if self.file is None:
            self.file = h5py.File(self.path, "r", locking=False)
        return self.file["params"][row], int(self.file["columns/label"][row])


class FilePerNetwork(Dataset[Any]):
    """One state dict per file and item."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.paths = [folder / f"{number}.pt" for number in range(FILES)]
        for path in self.paths:
            torch.save({s.name: torch.randn(s.shape) for s in SPEC.stored}, path)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Any:
        return torch.load(self.paths[number], weights_only=True)


def speed(report: Report, folder: Path) -> None:
    path = write(folder / "zoo.h5", ROWS)
    files = FilePerNetwork(folder)
    rows: dict[str, tuple[Callable[[], object], int, str]] = {"raw h5py": (raw(path), ROWS, "")}
    for batch in (64, 256):
        rows[f"streaming {batch}"] = (epochs(stream(path, batch)), ROWS // batch * batch, str(batch))
    single = DataLoader(H5Rows(path), 64, shuffle=True)
    rows["map-style h5py"] = (lambda: drain(islice(single, SINGLE_ROWS // 64)), SINGLE_ROWS // 64 * 64, "64")
    torch_load = DataLoader(files, 64, shuffle=True, drop_last=True)
    rows["file per network"] = (lambda: drain(torch_load), FILES // 64 * 64, "64")
    seconds = interleaved({name: function for name, (function, _, _) in rows.items()}, REPEATS, warmup=1)
    rate = {name: count / seconds[name] for name, (_, count, _) in rows.items()}
    for name in ("raw h5py", "streaming 256"):
        rows[f"{name}, cold"] = rows[name]
        rate[f"{name}, cold"] = rows[name][1] / cold(path, rows[name][0])
    for name, value in rate.items():
        mb = f"{value * 4 * SPEC.numel / 1e6:,.0f}"
        report.rows.append((name.replace(" 64", "").replace(" 256", ""), rows[name][2], f"{value:,.0f}", mb))
        report.figures[f"{name}: networks/s"] = value
    for batch in (64, 256):
        ours = rate[f"streaming {batch}"]
        report.goal(f"batch {batch}: share of raw h5py", ours / rate["raw h5py"], ">=", 0.8)
        report.goal(f"batch {batch}: times a file per network", ours / rate["file per network"], ">=", 100)
        report.goal(f"batch {batch}: times map-style h5py", ours / rate["map-style h5py"], ">=", 10)


def raw(path: Path) -> Callable[[], object]:
    """The whole file in order, into the same memory."""
    file = h5py.File(path, "r", locking=False)
    params = file["params"]
    step = 2**24 // (4 * SPEC.numel) // params.chunks[0] * params.chunks[0]
    out = np.empty((step, SPEC.numel), np.float32)

    def read() -> None:
        for start in range(0, ROWS, step):
            stop = min(start + step, ROWS)
            params.read_direct(out, np.s_[start:stop], np.s_[: stop - start])

    return read


def stream(path: Path, batch: int, buffer: int = BUFFER) -> Any:
    zoo = Zoo(path)
    data = StreamedRows(zoo, zoo.specs[0], np.arange(len(zoo)), zoo.column("label"), batch, 0, buffer)
    return loader(data, data.sampler)


def epochs(batches: Any) -> Callable[[], object]:
    """One epoch after another, each in its own order."""

    def read() -> None:
        batches.sampler.set_epoch(batches.sampler.epoch + 1)
        drain(batches)

    return read


def drain(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass


def cold(path: Path, function: Callable[[], object]) -> float:
    """Median seconds with the file's pages dropped before each run."""
    seconds = []
    for _ in range(3):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


# -- mixing -----------------------------------------------------------------------------------------------------------


def mixing(report: Report, rows: int = 1_000_000, batch: int = 64) -> None:
    """A file sorted by class, the worst case: how much more the counts of a class vary over batches than at random."""
    chunk = 110
    blocks = np.append(np.arange(0, rows, chunk), rows)
    classes = np.arange(rows) * 10 // rows
    for mib in (64, 256, 1024):
        window = mib * 2**20 * 3 // 5 // (4 * SPEC.numel) // (LANES * GROUPS)
        order = epoch_order(blocks, batch, window, 0)[: rows // batch * batch].reshape(-1, batch)
        spread = np.mean([(classes[order] == label).sum(1).var() for label in range(10)]) / (batch * 0.1 * 0.9)
        report.figures[f"sorted by class, buffer {mib} MiB: variance of class counts"] = float(spread)
        report.rows.append((f"mixing: sorted by class, {mib} MiB", str(batch), f"{spread:.2f}× random", ""))


# -- memory -----------------------------------------------------------------------------------------------------------


def memory(report: Report, folder: Path) -> None:
    peaks = {}
    for rows in MEMORY_ROWS:
        path = write(folder / f"{rows}.h5", rows)
        found = in_fresh_process(resident, path)
        path.unlink()
        peaks[rows] = max(found["MiB"])
        report.figures[f"resident, {rows} rows"] = found
        report.rows.append((f"resident MiB, {rows:,} rows", "64", f"{peaks[rows]:,.0f}", ""))
    if len(peaks) > 1:
        small, large = MEMORY_ROWS[0], MEMORY_ROWS[-1]
        report.goal(f"resident, {large:,} rows to {small:,}", peaks[large] / peaks[small], "<=", 1.25)


def resident(path: Path) -> dict[str, list[float]]:
    """Resident MiB over an epoch, 100 times."""
    batches = stream(path, 64, 2**26)
    every = max(1, len(batches) // 100)
    found: dict[str, list[float]] = {"rows": [], "MiB": []}
    for number, _ in enumerate(batches):
        if number % every == 0:
            lines = Path("/proc/self/status").read_text().splitlines()
            kib = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
            found["rows"].append(64 * (number + 1))
            found["MiB"].append(kib / 1024)
    return found


def draw(figures: dict[str, Any], target: Path) -> None:
    """Resident size against the networks read so far, one curve per file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, found in figures.items():
        if name.startswith("resident, ") and isinstance(found, dict):
            rows = int(name.split()[1])
            gb = rows * 4 * SPEC.numel / 1e9
            axes.plot(found["rows"], found["MiB"], label=f"{rows:,} networks, {gb:.2g} GB")
    axes.set(xscale="log", xlabel="networks read", ylabel="resident memory, MiB", ylim=(0, None))
    axes.legend(frameon=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)


if __name__ == "__main__":
    source, picture = map(Path, sys.argv[1:])
    draw(json.loads(source.read_text()), picture)
