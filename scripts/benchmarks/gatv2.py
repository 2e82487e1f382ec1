"""Closed-form GATv2 against PyTorch Geometric's layer, eager and compiled: time, saved bytes, peak bytes.

One training step of a hidden layer (64 features in, every gradient taken), single precision. The graphs: 100,000 nodes
with 1,000,000 edges of skewed degree; 64 neural graphs of a 10-25-25-10 network with edge features; a random graph of
the size of Cora; and the edges of Cora, PubMed and Coauthor Physics where their files are found (``WSL_DATA``, else
``../shared/data`` beside the checkout). Sorting is part of preparing a graph and not of a step, its time is a figure of
its own. Each graph runs in a process of its own, with one thread, for which the goals are stated, then with all that
were asked for.

    saved   bytes of distinct storages handed to autograd for the backward pass
    peak    largest running sum of allocations during a step, above what existed before it
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import Report, in_fresh_process, interleaved, matmul_unit
from wsl.graphs.blocks import BlockGraph, block_graph
from wsl.nn.gatv2.graph import EdgeGraph
from wsl.nn.gatv2_conv import GATv2Conv
from wsl.spec import mlp_spec

DATA = Path(os.environ.get("WSL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
FEATURES = 64
NETWORKS = 64
REAL = {"Cora": "cora", "PubMed": "pubmed", "Coauthor Physics": "coauthor_physics"}
REPEATS = {"medium": 5, "neural graphs": 11, "Cora-sized": 31, "Cora": 31, "PubMed": 11, "Coauthor Physics": 5}
EAGER = {"neural graphs": "dense blocks"}  # the form that a layer chooses by itself, else the edge list
COMPILED = {"neural graphs": "dense blocks", "Cora": "csr"}

Graph = tuple[Tensor, int, Tensor | None, BlockGraph | None]


def run() -> Report:
    report = Report(
        "GATv2, forward and backward of one hidden layer",
        ("graph", "threads", "layer", "ms", "units", "speed", "saved MB", "of PyG's", "peak MB", "of PyG's"),
    )
    asked = torch.get_num_threads()
    for threads in dict.fromkeys((1, asked)):
        torch.set_num_threads(threads)
        for name, repeats in REPEATS.items():
            if name in REAL and not (DATA / f"{REAL[name]}.npz").is_file():
                report.rows.append((name, threads, f"skipped: no {REAL[name]}.npz in WSL_DATA"))
                continue
            result = in_fresh_process(measure, name, repeats)
            _add_rows(report, name, threads, result)
            if threads == 1:
                _add_goals(report, name, result)
    torch.set_num_threads(asked)
    return report


def _add_rows(report: Report, name: str, threads: int, result: dict[str, Any]) -> None:
    base = result["layers"]["PyG"]
    for layer, figures in result["layers"].items():
        report.rows.append(
            (
                name,
                threads,
                layer,
                f"{figures['seconds'] * 1e3:.1f}",
                f"{figures['seconds'] / result['unit']:.2f}",
                f"{base['seconds'] / figures['seconds']:.2f}×",
                f"{figures['saved'] / 1e6:.1f}",
                f"{figures['saved'] / base['saved']:.3f}",
                f"{figures['peak'] / 1e6:.1f}",
                f"{figures['peak'] / base['peak']:.3f}",
            )
        )
    report.figures[f"{name}, {threads} threads"] = result


def _add_goals(report: Report, name: str, result: dict[str, Any]) -> None:
    layers = result["layers"]
    ours = EAGER.get(name, "edge list")
    compiled = f"{COMPILED.get(name, 'edge list')}, compiled"

    def speed(of: str, against: str) -> float:
        return layers[against]["seconds"] / layers[of]["seconds"]

    peak = layers[ours]["peak"] / layers["PyG"]["peak"]
    if name == "medium":
        report.goal("medium: times as fast as PyG", speed(ours, "PyG"), ">=", 2.0)
        report.goal("medium: share of PyG's peak", peak, "<=", 0.17)
        report.goal("medium: compiled, times as fast as PyG compiled", speed(compiled, "PyG, compiled"), ">=", 1.15)
    elif name == "neural graphs":
        report.goal("neural graphs: times as fast as PyG", speed(ours, "PyG"), ">=", 4.0)
        report.goal("neural graphs: share of PyG's peak", peak, "<=", 1 / 14)
        figure = speed(compiled, "PyG, compiled")
        report.goal("neural graphs: compiled, times as fast as PyG compiled", figure, ">=", 1.3)
    elif name == "Cora":
        report.goal("Cora: times as fast as PyG", speed(ours, "PyG"), ">=", 1.2)
        report.goal("Cora: compiled, times as fast as PyG compiled", speed(compiled, "PyG, compiled"), ">=", 1.0)


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Figures of every layer on one graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_geometric.nn import GATv2Conv as PyGConv

    torch.manual_seed(0)
    edge_index, nodes, edge_attr, blocks = _graph(name)
    x, grad = torch.randn(nodes, FEATURES, requires_grad=True), torch.randn(nodes, FEATURES)
    heads, channels = (8, 8) if name.startswith("Cora") or name in REAL else (4, 16)
    options = {"heads": heads, "add_self_loops": False, "edge_dim": None if edge_attr is None else edge_attr.shape[1]}
    pyg = PyGConv(FEATURES, channels, **options)
    start = time.perf_counter()
    prepared = EdgeGraph.from_edge_index(edge_index, nodes)
    sorting = time.perf_counter() - start

    def ours(graph: EdgeGraph | BlockGraph, **more: Any) -> Callable[[], Tensor]:
        layer = GATv2Conv(FEATURES, channels, **options, **more)
        layer.load_state_dict(pyg.state_dict())
        return lambda: layer(x, graph, edge_attr)

    compiled_pyg = torch.compile(pyg, dynamic=True)
    forwards = {
        "PyG": lambda: pyg(x, edge_index, edge_attr),
        "edge list": ours(prepared),
        "csr": ours(prepared, form="csr"),
    }
    if blocks is not None:
        forwards["dense blocks"] = ours(blocks)
    forwards["PyG, compiled"] = lambda: compiled_pyg(x, edge_index, edge_attr)
    forwards["edge list, compiled"] = ours(prepared, form="edge_list", compiled=True)
    forwards["csr, compiled"] = ours(prepared, form="csr", compiled=True)
    if blocks is not None:
        forwards["dense blocks, compiled"] = ours(blocks, compiled=True)
    steps = {layer: _step(forward, x, grad) for layer, forward in forwards.items()}
    seconds = interleaved(steps, repeats=repeats, warmup=2)
    layers = {
        layer: {"seconds": seconds[layer], "saved": saved_bytes(forward), "peak": peak_bytes(steps[layer])}
        for layer, forward in forwards.items()
    }
    return {
        "layers": layers,
        "unit": matmul_unit(),
        "sorting seconds": sorting,
        "edges": edge_index.shape[1],
        "nodes": nodes,
    }


def _graph(name: str) -> Graph:
    """Edges ``[2, E]``, number of nodes, edge features, and the blocks where there are any."""
    if name == "medium":
        nodes, edges = 100_000, 1_000_000
        target = (torch.rand(edges).square() * nodes).long()
        return torch.stack([torch.randint(nodes, (edges,)), target]), nodes, None, None
    if name == "neural graphs":
        blocks = block_graph(mlp_spec([10, 25, 25, 10]), reverse_edges=True)
        return _edge_list(blocks), NETWORKS * blocks.num_nodes, torch.randn(NETWORKS * blocks.num_edges, 16), blocks
    if name == "Cora-sized":
        return torch.randint(2708, (2, 10_556)), 2708, None, None
    with np.load(DATA / f"{REAL[name]}.npz") as data:
        return torch.from_numpy(data["edge_index"].astype(np.int64)), int(data["x_shape"][0]), None, None


def _edge_list(blocks: BlockGraph) -> Tensor:
    layer = GATv2Conv(1, 1, add_self_loops=False)
    with torch.no_grad():
        _, (edge_index, _) = layer(torch.zeros(NETWORKS * blocks.num_nodes, 1), blocks, return_attention_weights=True)
    return edge_index.contiguous()


def _step(forward: Callable[[], Tensor], x: nn.Parameter | Tensor, grad: Tensor) -> Callable[[], None]:
    def step() -> None:
        x.grad = None
        forward().backward(grad)

    return step


def saved_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward pass."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storages.values())


def peak_bytes(step: Callable[[], None]) -> int:
    """Largest running sum of the bytes that a step allocates and frees."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    total = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak
