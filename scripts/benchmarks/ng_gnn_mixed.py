"""NG-GNN on a mixed batch: an edge list against padding every network to a dense N × N array of edges.

64 networks drawn by the rule of the CNN Wild Park: 2 to 5 convolutions of 4 to 32 channels and 3 × 3 to 7 × 7 kernels,
an activation for each layer, skips. The reference is how the published code does it: each batch becomes
``[B, N, N, 49]`` edge values, all of them pass the waves and maps of the embedding, then the real edges are picked and
the layers run on messages that are gathered and scattered (PyG), with plain autograd. Both hold the same weights and
give the same outputs, compared before any time is taken. A step is forward, loss, backward and AdamW. Each peak of
memory is that of a fresh process that takes a step, less what a process holds that has only loaded the batch.
"""

from __future__ import annotations

import random
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Report, in_fresh_process, interleaved, peak_rss, ten_units
from benchmarks.ng_gnn import PyGLayer
from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.encoders.graph_embedding import output_states
from wsl.encoders.ng_gnn import NGGNN
from wsl.graphs.edge_list import edge_list
from wsl.nn.network_norm import Owners
from wsl.spec.family import SpecFamily
from wsl.zoo.build.wild_cnn import WildCNN

BATCH = 64
FASTER, SMALLER, SHARE = 4.0, 5.0, 0.10


def wild_park(generator: random.Random) -> WildCNN:
    """An architecture by the rule of the published zoo."""
    depth = generator.choice((2, 3, 4, 5))

    def choices(options: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(generator.choice(options) for _ in range(depth))

    skips = tuple(generator.choice((-1, *range(layer - 1))) for layer in range(depth))
    activations = ("relu", "gelu", "tanh", "sigmoid", "leaky_relu", "identity")
    return WildCNN(3, choices((4, 8, 16, 32)), choices((3, 5, 7)), choices(activations), skips)  # type: ignore[arg-type]


class DenseReference(nn.Module):
    """The encoder's weights on a dense array of edges."""

    def __init__(self, encoder: NGGNN) -> None:
        super().__init__()
        self.encoder = encoder
        self.layers = nn.ModuleList(PyGLayer(layer) for layer in encoder.layers)

    def forward(self, batch: MixedWeightBatch) -> Tensor:
        encoder, front = self.encoder, self.encoder.front
        graph = edge_list(batch, front.frame)
        if front.standardize is None:
            raise ValueError("the reference reads standardised values")
        on_nodes, on_edges = front.standardize(graph, batch.values)
        x = front.embed.nodes(graph, on_nodes)
        sizes = graph.node_offsets.diff()
        most, count = int(sizes.max()), len(graph)
        owner, start = graph.node_owner[graph.source], graph.node_offsets[graph.node_owner[graph.source]]
        at = (owner * most + graph.source - start) * most + graph.target - start
        values = graph.spread_on_edges(on_edges).squeeze(-1)
        dense = values.new_zeros(count * most * most, values.shape[1]).index_copy(0, at, values)
        waves, lift, project = (
            part[0] for part in (front.embed.edge_waves, front.embed.lift_edges, front.embed.project_edges)
        )
        embedded = project(lift(waves(dense.view(count, most, most, -1))))
        e = embedded.flatten(0, 2).index_select(0, at)
        degree = graph.row_pointer.diff().to(x.dtype)
        amplification = degree.log1p().unsqueeze(-1) / front.log_degree
        for number, layer in enumerate(self.layers):
            x, e = layer(x, e, graph.edge_index, amplification)
            if number < len(encoder.norms):
                x = encoder.activate(encoder.norms[number](x, Owners(graph.node_owner, count)))
        return encoder.readout(output_states(graph, x).flatten(1))


class TrainingStep:
    """The published size on one mixed batch; ``step(model)`` trains one step of encoder or reference."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        generator = random.Random(0)
        specs = list(dict.fromkeys(wild_park(generator).spec() for _ in range(4 * BATCH)))[:BATCH]
        self.batch = MixedWeightBatch.collate([WeightBatch(s, torch.randn(1, s.numel, 1) * 0.1) for s in specs])
        self.target = torch.rand(BATCH, 1)
        self.edge_list = NGGNN(SpecFamily(tuple(specs)), 1, width=64, probes=0, reverse_edges=False)
        self.edge_list.fit_statistics(self.batch)
        self.dense = DenseReference(self.edge_list)
        self.optimizer = torch.optim.AdamW(self.edge_list.parameters(), lr=1e-3, weight_decay=5e-4)

    def step(self, model: nn.Module) -> None:
        self.optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(self.batch), self.target).backward()
        self.optimizer.step()

    def build(self) -> None:
        """The graph alone, from weights that are in memory."""
        edge_list(self.batch, self.edge_list.front.frame)

    def check(self) -> float:
        """Largest difference of outputs, relative to the largest.

        Raises:
            AssertionError: if it exceeds float32 rounding; then the two are not the same model.
        """
        with torch.no_grad():
            ours, theirs = self.edge_list(self.batch), self.dense(self.batch)
        worst = float((ours - theirs).abs().max() / theirs.abs().max())
        if not worst < 1e-4:
            raise AssertionError(f"edge list and dense array differ by {worst:.1e}: these are two models")
        return worst


def measure_memory(which: str) -> tuple[float, float]:
    """Resident MB before and at the peak of one training step."""
    training = TrainingStep()
    before = peak_rss() / 2**20
    training.step(getattr(training, which))
    return before, peak_rss() / 2**20


def run() -> Report:
    """Measure both forms; the goals are those of the published size."""
    columns = ["form", "ms", "units", "MB held", "MB peak", "MB of a step", "difference"]
    report = Report(f"NG-GNN training step, {BATCH} CNNs drawn like the Wild Park's, width 64", columns)
    training = TrainingStep()
    difference = training.check()
    steps = {which: partial(training.step, getattr(training, which)) for which in ("edge_list", "dense")}
    times = interleaved({**steps, "graph": training.build, "units": ten_units()}, repeats=3, warmup=1)
    unit = times["units"] / 10
    memory = {which: in_fresh_process(measure_memory, which) for which in ("edge_list", "dense")}
    for which, (before, peak) in memory.items():
        cells = [f"{times[which] * 1e3:.0f}", f"{times[which] / unit:.0f}", f"{before:.0f}", f"{peak:.0f}"]
        report.rows.append([which, *cells, f"{peak - before:.0f}", f"{difference:.0e}"])
        report.figures |= {f"{which}: units": times[which] / unit, f"{which}: MB": peak, f"{which}: MB held": before}
    report.rows.append(
        ["building the graph", f"{times['graph'] * 1e3:.0f}", f"{times['graph'] / unit:.0f}", "", "", "", ""]
    )
    of_step = {which: peak - before for which, (before, peak) in memory.items()}
    report.goal("times faster than dense", times["dense"] / times["edge_list"], ">=", FASTER)
    report.goal("times less memory than dense", of_step["dense"] / of_step["edge_list"], ">=", SMALLER)
    report.goal("share of a step that builds the graph", times["graph"] / times["edge_list"], "<=", SHARE)
    return report
