"""ScaleGMN: a training step on dense blocks against the same model on PyG's message passing.

The references share weights, embedding and readout with the encoder. Their layers send messages along an edge index
over all networks of the batch, in two ways:

``as written``  the formulas on every edge and node, as published layers do: maps after vectors are gathered, the
                functions of nodes with and without factors everywhere, of which a mask keeps one;
``careful``     maps of nodes before they are gathered, and of two functions only the one that counts.

Both evaluate ρ for each sign. Outputs and gradients of all three are compared before any time is taken. A step is
forward, cross-entropy, backward and AdamW. Each peak of memory is that of a fresh process that takes a few steps.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from benchmarks.measure import Report, in_fresh_process, interleaved, largest_difference, ten_units, training_memory
from wsl.batch import WeightBatch
from wsl.encoders.scale_gmn import ScaleGMN
from wsl.nn.monomial.invariants import unit
from wsl.nn.scale_gmn.functions import ScaleInv, Symmetrised
from wsl.nn.scale_gmn.graph import DenseGraph
from wsl.nn.scale_gmn.layer import EdgeUpdate, Message, OfKind, ScaleGMNLayer
from wsl.spec import WeightSpec, mlp_spec
from wsl.zoo.build.wild_cnn import WildCNN

BATCH = 16
SIREN = mlp_spec([2, 32, 32, 1], "sine", {"omega": 30.0}, output_offset=0.5)
CNN = WildCNN(1, (16, 16, 16), (3, 3, 3), ("relu",) * 3, (-1,) * 3, 10).spec()
#: row → networks and options of the encoder
ROWS: dict[str, tuple[WeightSpec, dict[str, Any]]] = {
    "MNIST INRs, d=128": (SIREN, {"skip": True, "edge_codes": True}),
    "MNIST INRs, d=64, both ways": (SIREN, {"width": 64, "bidirectional": True}),
    "Small CNN Zoo, ReLU, d=64": (CNN, {"width": 64}),
}
MODELS = ("blocks", "as_written", "careful")
GOAL_ROW, GOAL = "MNIST INRs, d=128", 3.0


class PyGLayer(MessagePassing):
    """A layer of :class:`~wsl.nn.scale_gmn.layer.ScaleGMNLayer` with its weights, on an edge index.

    All neurons that have factors have the same: signs (``signed``) or positive ones.
    """

    def __init__(self, layer: ScaleGMNLayer, signed: bool) -> None:
        super().__init__(aggr="sum", node_dim=0)
        self.layer, self.signed = layer, signed

    def forward(
        self, x: Tensor, e: Tensor, back: Tensor, edge_index: Tensor, free: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        layer, there = self.layer, edge_index.flip(0)
        heard = [x, self.along(edge_index, x, e, free, layer.message)]
        if layer.back_message is not None:
            heard.append(self.along(there, x, back, free, layer.back_message))
        new = self.of_kind(layer.update, torch.cat(heard, dim=-1), free)
        new = new if layer.skip is None else new + layer.skip(x)
        if layer.edge_update is not None:
            e = self.updated(layer.edge_update, new, e, edge_index, free)
        if layer.back_update is not None:
            back = self.updated(layer.back_update, new, back, there, free)
        return new, e, back if layer.own_back else e

    def along(self, edge_index: Tensor, x: Tensor, e: Tensor, free: Tensor, of: Message) -> Tensor:
        """Sums of messages at the nodes that edges reach."""
        return self.propagate(edge_index, x=self.sent(of, x), e=e, free=free, of=of)  # type: ignore[no-any-return]

    def message(self, x_j: Tensor, e: Tensor, free_i: Tensor, of: Message) -> Tensor:
        return self.of_kind(of.function, self.received(of, x_j) * of.edge(e), free_i)

    def sent(self, of: Message, x: Tensor) -> Tensor:
        """What is gathered of the states of nodes."""
        return x

    def received(self, of: Message, x_j: Tensor) -> Tensor:
        """Γ_v h_j of what was gathered."""
        return of.node(x_j)

    def of_kind(self, function: OfKind, x: Tensor, free: Tensor) -> Tensor:
        moved = function.moved.linear(x) * self.invariant(function.moved.gate, x)
        return torch.where(free, function.free[0](x), moved)

    def invariant(self, function: ScaleInv, x: Tensor) -> Tensor:
        return function.phi(self.canonical(function.even, x))  # type: ignore[no-any-return]

    def canonical(self, even: Symmetrised | None, x: Tensor) -> Tensor:
        if not self.signed:
            return unit(x)
        return x.abs() if even is None else even.rho(x) + even.rho(-x)

    def updated(self, update: EdgeUpdate, x: Tensor, e: Tensor, edge_index: Tensor, free: Tensor) -> Tensor:
        ends = [
            torch.where(free[nodes], x[nodes], self.canonical(update.even, x[nodes])) for nodes in edge_index.unbind()
        ]
        return update.linear(e) * update.phi(torch.cat(ends, dim=-1))  # type: ignore[no-any-return]


class CarefulPyGLayer(PyGLayer):
    """The same, but maps of nodes come before nodes are gathered, and of two functions the one that counts is taken."""

    def sent(self, of: Message, x: Tensor) -> Tensor:
        return of.node(x)

    def received(self, of: Message, x_j: Tensor) -> Tensor:
        return x_j

    def of_kind(self, function: OfKind, x: Tensor, free: Tensor) -> Tensor:
        rows = [kind.nonzero().squeeze(-1) for kind in (free.squeeze(-1), ~free.squeeze(-1))]
        ends, moved = (x.index_select(0, of_kind) for of_kind in rows)
        moved = function.moved.linear(moved) * self.invariant(function.moved.gate, moved)
        return torch.cat([function.free[0](ends), moved]).index_select(0, torch.cat(rows).argsort())

    def updated(self, update: EdgeUpdate, x: Tensor, e: Tensor, edge_index: Tensor, free: Tensor) -> Tensor:
        canonical = torch.where(free, x, self.canonical(update.even, x))
        ends = [canonical.index_select(0, nodes) for nodes in edge_index.unbind()]
        return update.linear(e) * update.phi(torch.cat(ends, dim=-1))  # type: ignore[no-any-return]


class PyGReference(nn.Module):
    """The encoder's embedding and readout around layers on an edge index over all networks of the batch."""

    def __init__(self, encoder: ScaleGMN, layer: type[PyGLayer]) -> None:
        super().__init__()
        self.encoder = encoder
        signed = bool(encoder.spec.labels_with("sign"))
        self.layers = nn.ModuleList(layer(of, signed) for of in encoder.layers)  # type: ignore[arg-type]
        self.ends = edge_ends(encoder.front.graph)  # type: ignore[arg-type]

    def forward(self, batch: WeightBatch) -> Tensor:
        encoder, size = self.encoder, len(batch)
        graph, x, edges, back, _ = encoder._first(encoder._folded(batch)[0])
        nodes = x.shape[1]
        starts = torch.arange(size).mul(nodes).reshape(-1, 1)
        edge_index = torch.stack([(ends + starts).flatten() for ends in self.ends])
        kinds = zip(graph.kinds, graph.split(x), strict=True)
        free = torch.cat([torch.full((size, part.shape[1], 1), kind.free) for kind, part in kinds], dim=1).flatten(0, 1)
        e, r = (
            torch.cat([part.flatten(1, 2) for part in parts], dim=1).flatten(0, 1)
            for parts in (edges.values(), back.values())
        )
        x = x.flatten(0, 1)
        for layer in self.layers:
            x, e, r = layer(x, e, r, edge_index, free)
        return encoder.readout(x.unflatten(0, (size, nodes)), graph)  # type: ignore[no-any-return]


def edge_ends(graph: DenseGraph) -> tuple[Tensor, Tensor]:
    """Sending and receiving node of each edge of one network, each ``[E]``."""
    number = torch.arange(sum(size for _, size in graph.sets)).reshape(1, -1, 1)
    ends = [torch.broadcast_tensors(part.at("source", number), part.at("target", number)) for part in graph.parts]
    source, target = (torch.cat([pair[side].flatten() for pair in ends]) for side in (0, 1))
    return source, target


class TrainingStep:
    """Encoder and reference with equal weights; ``step(model)`` trains one step on the same networks."""

    def __init__(self, row: str) -> None:
        torch.manual_seed(0)
        spec, options = ROWS[row]
        self.batch = WeightBatch(spec, torch.randn(BATCH, spec.numel, 1) * 0.05)
        self.labels = torch.randint(0, 10, (BATCH,))
        self.blocks = ScaleGMN(spec, 10, **options)
        self.blocks.fit_statistics(self.batch)
        self.as_written = PyGReference(self.blocks, PyGLayer)
        self.careful = PyGReference(self.blocks, CarefulPyGLayer)
        self.optimizer = torch.optim.AdamW(self.blocks.parameters(), lr=1e-3, weight_decay=1e-2)

    def step(self, model: nn.Module) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(model(self.batch), self.labels).backward()
        self.optimizer.step()

    def check(self) -> float:
        """Largest difference of outputs and gradients in float64, relative to the largest value of each.

        Raises:
            AssertionError: if it exceeds rounding; then the two are not the same model.
        """
        self.blocks.double()
        batch, results = self.batch.with_values(self.batch.values.double()), []
        for model in (self.blocks, self.as_written, self.careful):
            self.optimizer.zero_grad()
            out = model(batch)
            F.cross_entropy(out, self.labels).backward()
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.blocks.parameters()]
            results.append([out.detach(), torch.cat([g.flatten() for g in grads])])
        self.optimizer.zero_grad()
        self.blocks.float()
        pairs = [pair for other in results[1:] for pair in zip(results[0], other, strict=True)]
        return largest_difference(pairs, 1e-10)


def run() -> Report:
    columns = ["model", "blocks: ms", "units", "MB", "as written: units", "MB", "faster", "careful: units", "faster"]
    report = Report(f"ScaleGMN training step, {BATCH} networks", [*columns, "difference"])
    for row in ROWS:
        training = TrainingStep(row)
        difference = training.check()
        steps = {model: partial(training.step, getattr(training, model)) for model in MODELS}
        times = interleaved({**steps, "units": ten_units()}, repeats=5, warmup=1)
        units = {model: 10 * times[model] / times["units"] for model in MODELS}
        faster = {model: units[model] / units["blocks"] for model in MODELS}
        memory = {
            model: in_fresh_process(training_memory, TrainingStep, row, model, 2) for model in ("blocks", "as_written")
        }
        cells = [row, f"{times['blocks'] * 1e3:.0f}", f"{units['blocks']:.1f}", f"{memory['blocks']:.0f}"]
        cells += [f"{units['as_written']:.1f}", f"{memory['as_written']:.0f}", f"{faster['as_written']:.1f}×"]
        report.rows.append([*cells, f"{units['careful']:.1f}", f"{faster['careful']:.1f}×", f"{difference:.0e}"])
        report.figures |= {f"{row}: units, {model}": found for model, found in units.items()}
        report.figures |= {f"{row}: MB, {model}": found for model, found in memory.items()}
        if row == GOAL_ROW:
            report.goal(f"{row}: times faster than PyG as written", faster["as_written"], ">=", GOAL)
    return report
