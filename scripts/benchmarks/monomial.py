"""Training step of the published Monomial-NFN of the Small CNN Zoo, batch 64, against plain einsums.

The reference keeps the layout of the official code, ``[B, C, out, in, cells]`` for each weight, and evaluates every
term of every layer by an einsum of its own. Both are one function with the same parameters, which is checked first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Report, in_fresh_process, interleaved, peak_rss, ten_units
from wsl.batch import WeightBatch
from wsl.encoders.monomial import Monomial
from wsl.nn.monomial.linear import MonomialLinear
from wsl.spec import VirtualTensor, WeightSpec

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import label_specs

BATCH, REPEATS = 64, 8
OURS, PLAIN = "grouped by character", "plain einsums"


class PlainLayer(nn.Module):
    """All terms of one POS layer on a CNN of four layers, with the parameters of ours."""

    def __init__(self, layer: MonomialLinear) -> None:
        super().__init__()
        self.c_in, self.c_out = layer.c_in, layer.c_out
        terms: dict[str, Tensor] = {}
        for weight, exchange in zip(layer.weight, layer.plan, strict=True):
            members = [m for b in exchange.bundles for m in layer.layout.bundles[b].members]
            rows = weight.detach().split([m.cells * layer.c_in for m in members], dim=0)
            for source, block in zip(members, rows, strict=True):
                columns = block.split([m.cells * layer.c_out for m in members], dim=1)
                for sink, part in zip(members, columns, strict=True):
                    shape = (source.ends, -1, layer.c_in, sink.ends, sink.cells // sink.ends, layer.c_out)
                    # [q, f, c, k, f', c'] → [c'·f', c·f, q, k], as official layers hold their coefficients
                    term = part.reshape(shape).permute(5, 4, 2, 1, 0, 3).flatten(0, 1).flatten(1, 2)
                    terms[f"{sink.tensor.name} {source.tensor.name}".replace(".", "_")] = term.contiguous()
        self.terms = nn.ParameterDict({name: nn.Parameter(term) for name, term in terms.items()})
        self.constant = nn.Parameter(layer.bias[0].detach().view(-1, self.c_out).T.clone())

    def forward(self, weights: list[Tensor], biases: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        cells = [w.shape[-1] for w in weights]
        flat = [w.movedim(-1, 2).flatten(1, 2) for w in weights]  # [B, C·f, out, in]
        new_weights, new_biases = [], []
        for n in range(1, len(weights) + 1):
            w, b, weight, bias = flat[n - 1], biases[n - 1], f"layers_{n}_weight", f"layers_{n}_bias"
            if n == 1:
                out = torch.einsum("bcjq,dcqk->bdjk", w, self.terms[f"{weight} {weight}"])
                out = out + torch.einsum("bcj,dck->bdjk", b, self.terms[f"{weight} {bias}"][:, :, 0])
                own = torch.einsum("bcjq,dcq->bdj", w, self.terms[f"{bias} {weight}"][..., 0])
                own = own + torch.einsum("bcj,dc->bdj", b, self.terms[f"{bias} {bias}"][..., 0, 0])
            elif n < len(weights):
                out = torch.einsum("bcjk,dc->bdjk", w, self.terms[f"{weight} {weight}"][..., 0, 0])
                own = torch.einsum("bcj,dc->bdj", b, self.terms[f"{bias} {bias}"][..., 0, 0])
            else:
                out = torch.einsum("bcpk,dcpj->bdjk", w, self.terms[f"{weight} {weight}"])
                own = torch.einsum("bcp,dcpj->bdj", b, self.terms[f"{bias} {bias}"]) + self.constant
            new_weights.append(out.unflatten(1, (self.c_out, cells[n - 1])).movedim(2, -1))
            new_biases.append(own)
        return new_weights, new_biases


class PlainModel(nn.Module):
    """The published network, term by term."""

    def __init__(self, model: Monomial) -> None:
        super().__init__()
        self.spec = model.first
        self.layers = nn.ModuleList(PlainLayer(layer) for layer in model.stack.linear)  # type: ignore[arg-type]
        assert model.invariants is not None and model.head is not None
        self.names = [m.tensor.name for bundle in model.layout.bundles for m in bundle.members]
        self.scale = nn.ParameterList(nn.Parameter(p.detach().clone()) for p in model.invariants.weight)
        self.shift = nn.ParameterList(nn.Parameter(p.detach().clone()) for p in model.invariants.bias)
        self.head = mlp_like(model.head)

    def forward(self, batch: WeightBatch) -> Tensor:
        weights, biases = [], []
        for tensor in self.spec.tensors:
            x = batch[tensor.name].movedim(-1, 1)
            (biases if tensor.role == "bias" else weights).append(
                x if tensor.role == "bias" else _cells_last(x, tensor)
            )
        for number, layer in enumerate(self.layers):
            weights, biases = layer(weights, biases)
            if number + 1 < len(self.layers):
                weights, biases = [F.relu(w) for w in weights], [F.relu(b) for b in biases]
        found = {f"layers.{n + 1}.weight": w for n, w in enumerate(weights)}
        found |= {f"layers.{n + 1}.bias": b for n, b in enumerate(biases)}
        pooled = []
        for name, scale, shift in zip(self.names, self.scale, self.shift, strict=True):
            pooled.append(self._pooled(name, found[name], scale, shift))
        return self.head(torch.cat(pooled, dim=1))

    def _pooled(self, name: str, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        number, last = int(name.split(".")[1]), len(self.spec.tensors) // 2
        x = x.unsqueeze(-1).unsqueeze(-1) if name.endswith("bias") else x  # [B, C, out, in, cells]
        vectors = x.permute(0, 2, 3, 4, 1).flatten(3)
        if not (number == last and name.endswith("bias")):
            vectors = F.normalize(vectors, dim=-1)
        y = vectors * scale + shift
        kept = (1,) if number == 1 else (2,)
        return y.mean(dim=[d for d in (1, 2) if number not in (1, last) or d in kept]).flatten(1)


def _cells_last(x: Tensor, tensor: VirtualTensor) -> Tensor:
    """``[B, C, out, in, …]`` with one axis of kernel cells."""
    return x.flatten(4) if len(tensor.shape) > 2 else x.unsqueeze(-1)


def mlp_like(head: nn.Module) -> nn.Module:
    """A copy of the head."""
    layers = [
        nn.Linear(p.in_features, p.out_features) if isinstance(p, nn.Linear) else nn.ReLU() for p in head.children()
    ]
    out = nn.Sequential(*layers)
    out.load_state_dict(head.state_dict())
    return out


def models() -> tuple[WeightSpec, dict[str, nn.Module]]:
    torch.manual_seed(0)
    spec = label_specs.small_cnn("scaling")
    ours = Monomial(spec, 1, normalize=False)
    return spec, {OURS: ours, PLAIN: PlainModel(ours)}


def _step(model: nn.Module, batch: WeightBatch) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    target = torch.rand(len(batch), 1)

    def step() -> None:
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(batch), target).backward()
        optimizer.step()

    return step


def _times() -> dict[str, float]:
    """Seconds of a training step of each, and of ten matmul units, interleaved; the two models must agree first."""
    spec, made = models()
    batch = WeightBatch(spec, torch.randn(BATCH, spec.numel, 1) * 0.2)
    with torch.no_grad():
        torch.testing.assert_close(made[OURS](batch), made[PLAIN](batch), rtol=1e-3, atol=1e-4)
    steps: dict[str, Callable[[], object]] = {name: _step(model, batch) for name, model in made.items()}
    return interleaved(steps | {"ten units": ten_units()}, repeats=REPEATS)


def _memory(name: str) -> float:
    """Peak resident size of a process that trains one of them for three steps, MiB."""
    spec, made = models()
    step = _step(made[name], WeightBatch(spec, torch.randn(BATCH, spec.numel, 1) * 0.2))
    for _ in range(3):
        step()
    return peak_rss() / 2**20


def run() -> Report:
    columns = ("evaluation", "parameters", "step ms", "units", "peak MiB", "times faster")
    report = Report(f"Monomial-NFN of the Small CNN Zoo, training step, batch {BATCH}", columns)
    times = in_fresh_process(_times)
    unit = times["ten units"] / 10
    _, made = models()
    for name in (PLAIN, OURS):
        count = sum(p.numel() for p in made[name].parameters())
        memory = in_fresh_process(_memory, name)
        report.figures[name] = {"seconds": times[name], "units": times[name] / unit, "MiB": memory, "parameters": count}
        cells = (f"{times[name] * 1e3:.0f}", f"{times[name] / unit:.1f}", f"{memory:.0f}")
        report.rows.append((name, f"{count:,}", *cells, f"{times[PLAIN] / times[name]:.2f}×"))
    report.goal("times faster than plain einsums", times[PLAIN] / times[OURS], ">=", 1.0)
    return report
