"""UNF layers: the pool bank against a plain loop over terms, forward and backward, 16 → 16 channels."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measure import Report, in_fresh_process, interleaved, matmul_unit
from wsl.nn.unf.layout import Layout, Member
from wsl.nn.unf.linear import UNFLinear
from wsl.spec import WeightSpec

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "tests" / part) for part in ("", "nn")]

import label_specs  # noqa: E402
from unf_reference import Term, terms  # noqa: E402

CHANNELS = 16
CASES: dict[str, Callable[[], WeightSpec]] = {
    "MLP 64-128-10": lambda: label_specs.mlp([64, 128, 10]),
    "Elman RNN, hidden 128": lambda: label_specs.elman(16, 128, 16),
    "GRU seq2seq, hidden 128": lambda: label_specs.gru_seq2seq(128, 16),
    "ResNet-20": lambda: label_specs.resnet20(),
    "transformer, 2 blocks of 32": lambda: label_specs.transformer(2, {"v": 64, "d": 32, "k": 32, "u": 32, "m": 128}),
}
#: the cases with many terms, to which the goals apply
GOALS = tuple(CASES)[2:]
LOOP, BANK = "loop", "bank"
COLUMNS = (
    "case",
    "batch",
    "terms",
    "params",
    "build s",
    "loop ms",
    "bank ms",
    "faster",
    "units",
    "loop MiB",
    "bank MiB",
    "floor MiB",
)
#: the loop's memory grows a little faster than the batch, since freed pieces of many sizes leave gaps
LOOP_SAFETY = 2.0


class TermLoop(nn.Module):
    """The layer as the official code evaluates it: every term by itself, each with a parameter of its own.

    Diagonal of the input, mean over what the output lacks, zeros with the term on the output's diagonal, axes in output
    order, unit axes for broadcasting, times the term's matrix.
    """

    def __init__(self, layer: UNFLinear) -> None:
        super().__init__()
        self.members = {m.tensor.name: m for bundle in layer.layout.bundles for m in bundle.members}
        found = list(terms(layer))
        self.terms = [Term(t.output, t.input, t.blocks, torch.empty(0)) for t in found]
        self.theta = nn.ParameterList(nn.Parameter(t.theta.detach().clone()) for t in found)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for term, theta in zip(self.terms, self.theta, strict=True):
            value = self._term(term, inputs[term.input]) @ theta
            out[term.output] = out[term.output] + value if term.output in out else value
        return out

    def _term(self, term: Term, x: Tensor) -> Tensor:
        axes = list(_permuted(self.members[term.input], term, side=1))
        block_of = {axis: k for k, block in enumerate(term.blocks) for axis in block[1]}
        held = [block_of[axis] for axis in axes]  # the block that each axis of x now ranges over
        while len(set(held)) < len(held):
            first = next(k for k in range(len(held)) if held[k] in held[k + 1 :])
            second = held.index(held[first], first + 1)
            x = x.diagonal(dim1=1 + first, dim2=1 + second).movedim(-1, -2)
            held = [b for k, b in enumerate(held) if k not in (first, second)] + [held[first]]
        gone = [k for k, block in enumerate(held) if not term.blocks[block][0]]
        if gone:
            x = x.mean([1 + k for k in gone])
        held = [block for k, block in enumerate(held) if k not in gone]
        return self._written(term, x, held)

    def _written(self, term: Term, x: Tensor, held: list[int]) -> Tensor:
        member = self.members[term.output]
        axes: list[int] = []
        for block in held:
            axes.append(term.blocks[block][0][0])
        for number, (written, _) in enumerate(term.blocks):
            if written and number not in held:
                x = x.unsqueeze(-2)
                axes.append(written[0])
            for axis in written[1:]:
                size = member.tensor.shape[axis]
                where = axes.index(written[0])
                if x.shape[1 + where] == 1:
                    x = x.expand(*(size if d == 1 + where else -1 for d in range(x.dim())))
                x = torch.diag_embed(x.movedim(1 + where, -1)).movedim(-3, -1).movedim(-3, 1 + where)
                axes.append(axis)
        order = [axes.index(axis) for axis in _permuted(member, term, side=0)]
        return x.permute(0, *(1 + k for k in order), x.dim() - 1)


def _permuted(member: Member, term: Term, side: int) -> tuple[int, ...]:
    return member.order[: sum(len(block[side]) for block in term.blocks)]


def _step(spec: WeightSpec, batch: int, kind: str) -> tuple[Callable[[], None], UNFLinear]:
    """One forward and backward pass, and the layer."""
    torch.manual_seed(0)
    layer = UNFLinear(Layout(spec), CHANNELS, CHANNELS)
    packed = [x.requires_grad_() for x in layer.layout.pack(torch.randn(batch, spec.numel, CHANNELS))]
    if kind == BANK:
        return lambda: _backward(layer(packed)), layer
    loop = TermLoop(layer)
    slots = {
        member.tensor.name: x.detach().unflatten(-1, (bundle.slots, CHANNELS))[..., member.slots, :].flatten(-2)
        for bundle, x in zip(layer.layout.bundles, packed, strict=True)
        for member in bundle.members
    }
    inputs = {key: x.contiguous().requires_grad_() for key, x in slots.items()}
    _check(layer, packed, loop, inputs)
    return lambda: _backward(list(loop(inputs).values())), layer


def _backward(outputs: list[Tensor]) -> None:
    torch.stack([y.sum() for y in outputs]).sum().backward()


@torch.no_grad()
def _check(layer: UNFLinear, packed: list[Tensor], loop: TermLoop, inputs: dict[str, Tensor]) -> None:
    """Both evaluations must be one function (biases start at zero)."""
    expected = loop({name: x[:1] for name, x in inputs.items()})
    for bundle, y in zip(layer.layout.bundles, layer([x[:1] for x in packed]), strict=True):
        for member in bundle.members:
            part = y.unflatten(-1, (bundle.slots, CHANNELS))[..., member.slots, :].flatten(-2)
            torch.testing.assert_close(part, expected[member.tensor.name], rtol=1e-3, atol=1e-4)


def _times(name: str, batch: int, kinds: tuple[str, ...]) -> dict[str, float]:
    """Seconds of each evaluation in one process, of a matmul unit, and of building the layer; and the floor, MiB.

    The floor is what any evaluation must hold at once: the outputs, and the gradients of inputs and coefficients.
    """
    torch.manual_seed(0)
    spec = CASES[name]()
    start = time.perf_counter()
    layer = UNFLinear(Layout(spec), CHANNELS, CHANNELS)
    build = time.perf_counter() - start
    steps = {kind: _step(spec, batch, kind)[0] for kind in kinds}
    start = time.perf_counter()
    for step in steps.values():
        step()  # warms up, and tells how many more there is time for
    repeats = max(1, min(10, int(20 / (time.perf_counter() - start))))
    counts = {"terms": sum(1 for _ in terms(layer)), "parameters": sum(p.numel() for p in layer.parameters())}
    counts["floor MiB"] = 4 * (counts["parameters"] + 2 * batch * spec.numel * CHANNELS) / 2**20
    return interleaved(steps, repeats, warmup=0) | {"unit": matmul_unit(10), "build": build} | counts


def _memory(name: str, batch: int, kind: str) -> float:
    """MiB by which one forward and backward pass raises the resident size, parameters and inputs not counted."""
    warm_up, _ = _step(label_specs.mlp([3, 4, 5]), 1, kind)
    warm_up()  # loads the kernels, whose pages would count otherwise
    step, _ = _step(CASES[name](), batch, kind)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far: building a layer is not what is measured
    before = _status("VmRSS")
    step()
    return (_status("VmHWM") - before) / 2**20


def _status(field: str) -> int:
    """A size of this process, bytes. (``ru_maxrss`` would also know the parent's peak, which survives ``exec``.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _fits(name: str, batch: int) -> bool:
    """Whether the loop would fit into the memory that is free; it keeps every term for the backward pass."""
    free = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    needed = in_fresh_process(_memory, name, 1, LOOP) * batch * LOOP_SAFETY
    return needed < int(free.split()[1]) / 1024


def measured(name: str, batch: int) -> dict[str, float]:
    """Figures of one case: of both evaluations, or of the pool bank alone where the loop does not fit into memory."""
    kinds = (LOOP, BANK) if batch == 1 or _fits(name, batch) else (BANK,)
    found = in_fresh_process(_times, name, batch, kinds)
    return found | {f"{kind} MiB": in_fresh_process(_memory, name, batch, kind) for kind in kinds}


def run() -> Report:
    report = Report("UNF layer, 16 → 16 channels, forward + backward", COLUMNS)
    for name in CASES:
        for batch in (1, 8):
            add(report, name, batch, measured(name, batch))
    return report


def add(report: Report, name: str, batch: int, found: dict[str, float]) -> None:
    """Put the figures of one case into the table, and its goals."""
    label = f"{name}, batch {batch}"
    report.figures[f"{label}: all"] = found
    both = LOOP in found
    ratio = found[LOOP] / found[BANK] if both else float("nan")
    memory = found[f"{BANK} MiB"] / found[f"{LOOP} MiB"] if both else float("nan")
    counts = (f"{found['terms']:,}", f"{found['parameters']:,}", f"{found['build']:.2f}")
    times = (f"{found[LOOP] * 1e3:.1f}" if both else "does not fit", f"{found[BANK] * 1e3:.1f}", f"{ratio:.1f}×")
    sizes = (
        f"{found[f'{LOOP} MiB']:.0f}" if both else "does not fit",
        f"{found[f'{BANK} MiB']:.0f}",
        f"{found['floor MiB']:.0f}",
    )
    report.rows.append((name, str(batch), *counts, *times, f"{found[BANK] / found['unit']:.1f}", *sizes))
    report.goal(f"{label}: build seconds", found["build"], "<=", 2.0)
    if name in GOALS and both:
        report.goal(f"{label}: times faster than the loop", ratio, ">=", 5.0)
        report.goal(f"{label}: share of the loop's memory", memory, "<=", 1 / 3)
        report.figures[f"{label}: floor as a share of the loop's memory"] = found["floor MiB"] / found[f"{LOOP} MiB"]
