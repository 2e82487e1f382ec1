"""NG-T: a training step by the compiled kernels, against the same formulas in torch, chunked and under plain autograd.

Chunks are computed again for the backward pass, as in the kernels. The reference runs the same layers on whole arrays
and keeps every intermediate, as published code does. The gradients of all are compared before any time is taken. A step
is forward, cross-entropy, backward and AdamW, for 64 networks 2-32-32-1 in the published size for INRs of MNIST. Each
peak of memory is that of a fresh process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Report, in_fresh_process, interleaved, peak_rss, ten_units
from wsl.batch import WeightBatch
from wsl.encoders.ng_transformer import NGTransformer
from wsl.graphs.edge_list import edge_list
from wsl.nn import relational
from wsl.nn.pairs import kernels
from wsl.spec import mlp_spec

BATCH = 64
SPEC = mlp_spec([2, 32, 32, 1], "sine", {"omega": 30.0}, output_offset=0.5)
FORMS = {"dense": 220.0, "sparse": 90.0}  # goals in matmul units
GOAL_MB = 1600


def kept_whole(
    function: Any, chunks: Sequence[Any], cut: Sequence[Tensor], whole: Sequence[Tensor], rows: int
) -> tuple[Tensor, ...]:
    """In place of :func:`wsl.nn.recompute.recomputed_in_chunks`: plain autograd."""
    parts = [function(chunk, [t[inside] for t in cut], whole) for chunk, inside, _ in chunks]
    return parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts, strict=True))


@contextmanager
def chunked() -> Iterator[None]:
    """Layers run in torch, in chunks that are computed again."""
    before = kernels.take
    kernels.take = lambda *_: False
    try:
        yield
    finally:
        kernels.take = before


@contextmanager
def plain() -> Iterator[None]:
    """Layers run in torch on whole arrays and keep what is between."""
    before = relational.recomputed_in_chunks, relational.CHUNK_VALUES
    relational.recomputed_in_chunks, relational.CHUNK_VALUES = kept_whole, 2**60
    try:
        with chunked():
            yield
    finally:
        relational.recomputed_in_chunks, relational.CHUNK_VALUES = before


WAYS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "compiled": nullcontext,
    "chunked": chunked,
    "plain": plain,
}


class TrainingStep:
    """An encoder and 64 networks."""

    def __init__(self, form: str) -> None:
        torch.manual_seed(0)
        self.batch = WeightBatch(SPEC, torch.randn(BATCH, SPEC.numel, 1) * 0.05)
        self.labels = torch.randint(0, 10, (BATCH,))
        self.encoder = NGTransformer(SPEC, 10, form=form)  # type: ignore[arg-type]
        self.encoder.fit_statistics(self.batch)
        self.optimizer = torch.optim.AdamW(self.encoder.parameters(), lr=1e-3, weight_decay=5e-4)

    def step(self, way: str) -> None:
        with WAYS[way]():
            self.gradients()
            self.optimizer.step()

    def gradients(self) -> list[Tensor]:
        self.optimizer.zero_grad()
        F.cross_entropy(self.encoder(self.batch), self.labels).backward()
        return [p.grad.clone() for p in self.encoder.parameters() if p.grad is not None]

    def check(self) -> float:
        """Largest difference of gradients from those under plain autograd, relative to the largest value.

        Raises:
            AssertionError: if it exceeds float32 rounding.
        """
        found = {}
        for way, using in WAYS.items():
            with using():
                found[way] = torch.cat([g.flatten() for g in self.gradients()])
        reference = found.pop("plain")
        worst = max(float((g - reference).abs().max() / reference.abs().max()) for g in found.values())
        if not worst < 1e-4:
            raise AssertionError(f"gradients differ by {worst:.1e}")
        return worst


def graph_share(training: TrainingStep, step: float) -> float:
    """Time of building the graph and its pairs, as a share of the step."""
    encoder = training.encoder
    with torch.no_grad():
        graph, _, _ = encoder.front(training.batch)

    def build() -> None:
        edge_list(training.batch, encoder.frame)
        encoder.pairs_of(graph.node_owner, graph.source, graph.target)

    build()
    start = time.perf_counter()
    build()
    return (time.perf_counter() - start) / step


def measure_memory(form: str, way: str) -> float:
    """Peak resident MB of a process that only trains."""
    training = TrainingStep(form)
    for _ in range(2):
        training.step(way)
    return peak_rss() / 2**20


def run() -> Report:
    of_each = [f"{way}: {figure}" for way in WAYS for figure in ("units", "MB")]
    columns = ["form", "ms", *of_each, "faster", "graph", "difference"]
    report = Report(f"NG-T training step, {BATCH} networks 2-32-32-1", columns)
    for form, goal in FORMS.items():
        training = TrainingStep(form)
        difference = training.check()
        steps: dict[str, Callable[[], object]] = {way: partial(training.step, way) for way in WAYS}
        times = interleaved({**steps, "units": ten_units()}, repeats=3, warmup=1)
        units = {way: times[way] / times["units"] * 10 for way in WAYS}
        memory = {way: in_fresh_process(measure_memory, form, way) for way in WAYS}
        share = graph_share(training, times["compiled"])
        report.rows.append(
            [
                form,
                f"{times['compiled'] * 1e3:.0f}",
                *(figure for way in WAYS for figure in (f"{units[way]:.0f}", f"{memory[way]:.0f}")),
                f"{units['plain'] / units['compiled']:.1f}×",
                f"{share:.1%}",
                f"{difference:.0e}",
            ]
        )
        report.goal(f"{form}: matmul units", units["compiled"], "<=", goal)
        report.goal(f"{form}: peak MB", memory["compiled"], "<=", GOAL_MB)
        report.goal(f"{form}: graph building's share of a step", share, "<=", 0.1)
    return report
