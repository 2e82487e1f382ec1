"""NG-GNN: a training step on dense blocks against the same model on PyG's message passing.

The reference shares weights and embedding with the encoder; its layers send messages along an edge index. Outputs of
both are compared before any time is taken. A step is forward, cross-entropy, backward and AdamW, for 64 networks
2-32-32-1. Each peak of memory is that of a fresh process that takes a few steps.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import scatter

from benchmarks.measure import Report, in_fresh_process, interleaved, largest_difference, ten_units, training_memory
from wsl.batch import WeightBatch
from wsl.encoders.ng_gnn import NGGNN
from wsl.graphs.blocks import BlockGraph
from wsl.nn.moments import VARIANCE_FLOOR
from wsl.nn.network_norm import Owners
from wsl.nn.pna_blocks import PNALayer
from wsl.spec import mlp_spec

BATCH = 64
SPEC = mlp_spec([2, 32, 32, 1], "sine", {"omega": 30.0}, output_offset=0.5)
#: row → options of the encoder
ROWS: dict[str, dict[str, int | bool]] = {
    "d=64, reverse edges": {"width": 64, "probes": 0, "reverse_edges": True},
    "d=64, reverse edges, 64 probes": {"width": 64, "probes": 64, "reverse_edges": True},
    "d=32": {"width": 32, "probes": 0, "reverse_edges": False},
    "d=32, 64 probes": {"width": 32, "probes": 64, "reverse_edges": False},
    "d=16": {"width": 16, "probes": 0, "reverse_edges": False},
    "d=16, 64 probes": {"width": 16, "probes": 64, "reverse_edges": False},
}
GOAL_ROW, GOAL_UNITS, GOAL_MB = "d=64, reverse edges", 110, 900


class PyGLayer(MessagePassing):
    """A layer of :class:`~wsl.nn.pna_blocks.PNALayer` with its weights, on an edge index."""

    def __init__(self, layer: PNALayer) -> None:
        super().__init__(aggr=None, node_dim=0)
        self.layer = layer

    def forward(self, x: Tensor, e: Tensor, edge_index: Tensor, amplification: Tensor) -> tuple[Tensor, Tensor]:
        if (update := self.layer.edge_update) is not None:
            source, target = edge_index
            e = update.out(F.silu(update.edge(e) + update.source(x[source]) + update.target(x[target])))
        h = self.propagate(edge_index, x=x, e=e, size=(len(x), len(x)))
        return self.layer.out(self.layer.combine(torch.cat([x, h, amplification * h], dim=-1))), e

    def message(self, x_i: Tensor, x_j: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.layer.film(e).chunk(2, dim=-1)
        return scale * self.layer.pair(torch.cat([x_i, x_j], dim=-1)) + shift

    def aggregate(self, inputs: Tensor, index: Tensor, dim_size: int) -> Tensor:
        mean, low, high = (scatter(inputs, index, 0, dim_size, r) for r in ("mean", "min", "max"))
        variance = scatter((inputs - mean[index]).square(), index, 0, dim_size, "mean")
        return torch.cat([mean, low, high, variance.clamp(min=VARIANCE_FLOOR).sqrt()], dim=-1)


class PyGReference(nn.Module):
    """The encoder's embedding and readout around layers on an edge index over all networks of the batch."""

    def __init__(self, encoder: NGGNN) -> None:
        super().__init__()
        self.encoder = encoder
        self.layers = nn.ModuleList(PyGLayer(layer) for layer in encoder.layers)
        self.ends = edge_ends(encoder.graph)

    def forward(self, batch: WeightBatch) -> Tensor:
        encoder, size = self.encoder, len(batch)
        x, e = encoder.embed(batch, encoder.standardize(batch.values))
        nodes = x.shape[1]
        x, e = x.flatten(0, 1), e.flatten(0, 1)
        starts = torch.arange(size).mul(nodes).reshape(-1, 1)
        edge_index = torch.stack([(ends + starts).flatten() for ends in self.ends])
        owners = Owners(torch.arange(size).repeat_interleave(nodes), size)
        for number, layer in enumerate(self.layers):
            x, e = layer(x, e, edge_index, encoder.layers[number].amplification.repeat(size, 1))
            if number < len(encoder.norms):
                x = encoder.activate(encoder.norms[number](x, owners))
        x = x.unflatten(0, (size, nodes))
        return encoder.readout(torch.cat([part.of(x).flatten(1) for part in encoder.outputs], dim=1))


def edge_ends(graph: BlockGraph) -> tuple[Tensor, Tensor]:
    """Sending and receiving node of each edge of one network, each ``[E]``."""
    number = torch.arange(graph.num_nodes).reshape(1, -1, 1)
    ends = [torch.broadcast_tensors(b.at_sources(number), b.at_targets(number)) for b in graph.blocks]
    source, target = (torch.cat([pair[side].flatten() for pair in ends]) for side in (0, 1))
    return source, target


class TrainingStep:
    """Encoder and reference with equal weights; ``step(model)`` trains one step on the same 64 networks."""

    def __init__(self, row: str) -> None:
        torch.manual_seed(0)
        self.batch = WeightBatch(SPEC, torch.randn(BATCH, SPEC.numel, 1) * 0.05)
        self.labels = torch.randint(0, 10, (BATCH,))
        self.blocks = NGGNN(SPEC, 10, **ROWS[row])  # type: ignore[arg-type]
        self.blocks.fit_statistics(self.batch)
        self.reference = PyGReference(self.blocks)
        self.optimizer = torch.optim.AdamW(self.blocks.parameters(), lr=1e-3, weight_decay=5e-4)

    def step(self, model: nn.Module) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(model(self.batch), self.labels).backward()
        self.optimizer.step()

    def check(self) -> float:
        """Largest difference of outputs and gradients, relative to the largest value of each tensor.

        Raises:
            AssertionError: if it exceeds float32 rounding; then the two are not the same model.
        """
        results = []
        for model in (self.blocks, self.reference):
            self.optimizer.zero_grad()
            out = model(self.batch)
            F.cross_entropy(out, self.labels).backward()
            grads = [p.grad.clone() for p in self.blocks.parameters() if p.grad is not None]
            results.append([out.detach(), torch.cat([g.flatten() for g in grads])])
        return largest_difference(zip(*results, strict=True), 1e-4)


def run() -> Report:
    """Measure all rows; the goals are those of the paper's model without probes."""
    columns = ["model", "blocks: ms", "units", "MB", "PyG: units", "MB", "faster", "difference"]
    report = Report(f"NG-GNN training step, {BATCH} networks 2-32-32-1", columns)
    for row in ROWS:
        training = TrainingStep(row)
        difference = training.check()
        steps = {which: partial(training.step, getattr(training, which)) for which in ("blocks", "reference")}
        times = interleaved({**steps, "units": ten_units()}, repeats=5, warmup=1)
        unit = times["units"] / 10
        blocks, reference = times["blocks"] / unit, times["reference"] / unit
        memory = {
            which: in_fresh_process(training_memory, TrainingStep, row, which, 3) for which in ("blocks", "reference")
        }
        cells = [f"{times['blocks'] * 1e3:.0f}", f"{blocks:.1f}", f"{memory['blocks']:.0f}"]
        cells += [f"{reference:.1f}", f"{memory['reference']:.0f}", f"{reference / blocks:.1f}×", f"{difference:.0e}"]
        report.rows.append([row, *cells])
        report.figures |= {f"{row}: units": blocks, f"{row}: MB": memory["blocks"], f"{row}: PyG units": reference}
        if row == GOAL_ROW:
            report.goal(f"{row}: matmul units", blocks, "<=", GOAL_UNITS)
            report.goal(f"{row}: peak MB", memory["blocks"], "<=", GOAL_MB)
    return report
