"""A pruned GCN against the dense one in its best form: inference, and a training epoch with frozen edges.

GCN 2 × 512 on Cora, PubMed and Coauthor Physics where their files are found (``WSL_DATA``, else ``../shared/data``
beside the checkout). The gains come one after the other: products with CSR adjacency instead of gather and scatter, CSR
features instead of dense ones (together the dense model in its best form), fewer edges, fewer weights. What is kept is
what one choice by Unifews' scores keeps.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.measure import Report, interleaved, matmul_unit
from wsl.data.graph_data import GraphData
from wsl.encoders.node.convolutions import GCN
from wsl.graphs.node_graph import NodeBatch, NodeGraph, NodeGraphSpec
from wsl.nn.sparse.dials import Dials

DATA = Path(os.environ.get("WSL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
GRAPHS = {"Cora": ("cora", 25), "PubMed": ("pubmed", 7), "Coauthor Physics": ("coauthor_physics", 5)}
BEST = "CSR features"
#: what is measured: name → (features by their entries, share of edges pruned, share of weights pruned)
FORMS = {
    "CSR adjacency": (False, 0.0, 0.0),
    BEST: (True, 0.0, 0.0),
    "50 % edges": (True, 0.5, 0.0),
    "50 % weights": (True, 0.0, 0.5),
    "50 % edges, 50 % weights": (True, 0.5, 0.5),
    "90 % edges": (True, 0.9, 0.0),
    "95 % weights": (True, 0.0, 0.95),
    "90 % edges, 95 % weights": (True, 0.9, 0.95),
}


class PyG(nn.Module):
    """The model as users write it: GCNConv on dense features."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch_geometric.nn import GCNConv
        self.first, self.second = GCNConv(features, 512), GCNConv(512, classes)

    def forward(self, batch: NodeBatch) -> torch.Tensor:
        graph = batch.graph
        out: torch.Tensor = self.second(self.first(graph.x, graph.edge_index).relu(), graph.edge_index)
        return out


def run() -> Report:
    report = Report(
        "GCN 2 × 512", ("graph", "form", "inference ms", "units", "× PyG", "× best dense", "training ms", "×")
    )
    unit = matmul_unit()
    for name, (file, repeats) in GRAPHS.items():
        if not (DATA / f"{file}.npz").is_file():
            report.rows.append((name, f"skipped: no {file}.npz in WSL_DATA", *[""] * 6))
            continue
        inference, training = measure(DATA / f"{file}.npz", repeats)
        for form, seconds in inference.items():
            epoch = training.get(form)
            report.rows.append(
                (
                    name,
                    form,
                    f"{seconds * 1e3:.1f}",
                    f"{seconds / unit:.2f}",
                    f"{inference['PyG'] / seconds:.2f}",
                    f"{inference[BEST] / seconds:.2f}",
                    "" if epoch is None else f"{epoch * 1e3:.0f}",
                    "" if epoch is None else f"{training[BEST] / epoch:.2f}",
                )
            )
        report.figures[name] = {"inference": inference, "training": training}
        pruned = inference["90 % edges, 95 % weights"]
        if name == "Coauthor Physics":
            report.goal("Physics, inference: times as fast as the best dense form", inference[BEST] / pruned, ">=", 1.5)
            epoch = training["90 % edges, 95 % weights"]
            report.goal("Physics, training: times as fast as the best dense form", training[BEST] / epoch, ">=", 1.5)
            report.goal("Physics, inference: times as fast as PyG", inference["PyG"] / pruned, ">=", 5.0)
        sparse = [form for form, (_, edges, weights) in FORMS.items() if edges or weights]
        for what, seconds in (("inference", inference), ("training", training)):
            worst = max(seconds[form] for form in sparse) / seconds[BEST]
            report.goal(f"{name}, {what}: time of the slowest sparse form, of the best dense one's", worst, "<=", 1.05)
    return report


def measure(path: Path, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of an inference and of a training epoch, for each form."""
    data = GraphData(path=str(path), split="stratified")
    batch, graph = data.batch("train"), data.graph
    torch.manual_seed(0)
    models: dict[str, nn.Module] = {"PyG": PyG(graph.x.shape[1], data.classes)}
    models |= {form: _pruned(graph, data.classes, *options) for form, options in FORMS.items()}

    def inference(model: nn.Module) -> Callable[[], object]:
        def once() -> object:
            model.eval()
            with torch.no_grad():
                return model(batch)

        return once

    slow = {form: inference(models[form]) for form in ("PyG", "CSR adjacency")}
    seconds = interleaved(slow, max(1, repeats // 4), warmup=0 if len(data.graph.x) > 30_000 else 1)
    seconds |= interleaved({form: inference(m) for form, m in models.items() if form not in slow}, repeats, warmup=1)
    trained = {form: model for form, model in models.items() if form not in slow}
    epochs = interleaved({form: _epoch(model, batch) for form, model in trained.items()}, repeats, warmup=1)
    return seconds, epochs


def _pruned(graph: NodeGraph, classes: int, sparse: bool, edges: float, weights: float) -> GCN:
    """One choice of edges and weights, then frozen."""
    spec = NodeGraphSpec(graph.x.shape[1])
    model = GCN(spec, classes, hidden=512, dropout=0.0, input_dropout=False, read_sparse=sparse).train()
    dials = Dials(model)
    for sieve in dials.edges:
        sieve.sparsity = edges
    for mask in dials.weights:
        mask.sparsity = weights
    dials.prune(edges=edges > 0, weights=weights > 0)
    with torch.no_grad():
        model(NodeBatch(graph, torch.arange(graph.num_nodes)))
    dials.prune(edges=False, weights=False)
    return model


def _epoch(model: nn.Module, batch: NodeBatch) -> Callable[[], object]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)  # as train.py has it

    def once() -> None:
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(batch)[batch.row_ids], batch.target).backward()
        optimizer.step()

    return once
