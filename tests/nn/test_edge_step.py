"""The closed-form edge step against plain autograd, by gradcheck, and in chunks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wsl.graphs.blocks import BlockGraph, block_graph
from wsl.nn import edge_step as module
from wsl.nn.block_pieces import Blocks
from wsl.nn.edge_runs import EdgeRuns, edge_runs
from wsl.nn.edge_step import Messages, Update, edge_step, plain_edge_step
from wsl.nn.moments import VARIANCE_FLOOR, aggregate, aggregate_backward
from wsl.spec import mlp_spec


def drawn(graph: BlockGraph | EdgeRuns, width: int, size: int, update: bool) -> list[Tensor]:
    """e and the terms, in float64."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    nodes = (size, graph.num_nodes, width)
    edges = graph.num_edges if isinstance(graph, BlockGraph) else len(graph.source)
    tensors = [normal(size, edges, width)]
    tensors += [normal(*nodes), normal(*nodes), normal(2 * width, width), normal(2 * width)]
    if update:
        tensors += [normal(*nodes), normal(*nodes), normal(width, width), normal(width, width), normal(width)]
    return tensors


def run(step, graph: BlockGraph | EdgeRuns, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    e, *terms = tensors
    on = Blocks(graph) if isinstance(graph, BlockGraph) else graph
    return step(e, Messages(*terms[:4]), Update(*terms[4:]) if terms[4:] else None, on)


def graph_of(reverse: bool) -> BlockGraph:
    return block_graph(mlp_spec([2, 4, 3, 1]), reverse)


@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("networks_per_chunk", [1, 3, 100])
def test_equals_the_plain_form(
    reverse: bool, update: bool, networks_per_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = graph_of(reverse)
    monkeypatch.setattr(module, "CHUNK_VALUES", networks_per_chunk * graph.num_edges * 5)
    tensors = drawn(graph, width=5, size=7, update=update)
    plain, closed = run(plain_edge_step, graph, tensors), run(edge_step, graph, tensors)
    seeds = [torch.randn_like(out) for out in plain]
    wanted = torch.autograd.grad(plain, tensors, seeds)
    got = torch.autograd.grad(closed, tensors, seeds)
    for a, b in zip((*plain, *wanted), (*closed, *got), strict=True):
        assert (a - b).abs().max() <= 1e-12 * a.abs().max()


@pytest.mark.parametrize("update", [False, True])
def test_gradcheck(update: bool) -> None:
    graph = block_graph(mlp_spec([2, 3, 1]), reverse_edges=True)
    tensors = drawn(graph, width=2, size=2, update=update)
    assert torch.autograd.gradcheck(lambda *t: run(edge_step, graph, list(t)), tensors)


@pytest.mark.parametrize("part", [0, 1])
def test_one_result_alone_may_be_used(part: int) -> None:
    graph = graph_of(reverse=True)
    tensors = drawn(graph, width=3, size=2, update=True)
    wanted, got = (
        torch.autograd.grad(run(step, graph, tensors)[part].sin().sum(), tensors, materialize_grads=True)
        for step in (plain_edge_step, edge_step)
    )
    for a, b in zip(wanted, got, strict=True):
        assert (a - b).abs().max() <= 1e-12 * max(1.0, float(a.abs().max()))


def test_ties_share_the_gradient_evenly_and_the_floor_passes_none() -> None:
    graph = block_graph(mlp_spec([4, 1]))
    messages = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64).reshape(1, 4, 1).requires_grad_()
    moments = aggregate(messages, graph)
    assert moments[0, -1].tolist() == [2.0, 1.0, 3.0, 1.0]
    grad = torch.zeros_like(moments)
    grad[0, -1] = torch.tensor([0.0, 1.0, 10.0, 0.0])
    (wanted,) = torch.autograd.grad(moments, messages, grad)
    got = aggregate_backward(messages.detach(), moments.detach(), grad, graph)
    assert got.flatten().tolist() == wanted.flatten().tolist() == [0.5, 5.0, 5.0, 0.5]
    flat = torch.full_like(messages, 2.0)
    moments = aggregate(flat, graph)
    assert moments[0, -1, 3] == VARIANCE_FLOOR**0.5
    grad = torch.zeros_like(moments)
    grad[0, -1, 3] = 1.0
    assert not aggregate_backward(flat, moments, grad, graph).any()


def test_a_node_without_edges_aggregates_zeros_and_the_floor() -> None:
    graph = block_graph(mlp_spec([2, 3]))
    moments = aggregate(torch.randn(4, graph.num_edges, 2), graph)
    assert not moments[:, :2, :6].any()
    assert (moments[:, :2, 6:] == VARIANCE_FLOOR**0.5).all()


# -- on an edge list -------------------------------------------------------------------------------------------------


def random_runs() -> EdgeRuns:
    """Twelve nodes of degree 0 to 5, a self loop and a double edge among the edges."""
    source = torch.randint(0, 12, (24,))
    target = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 6, 6, 7, 8, 8, 8, 9, 9, 11, 11])
    source[1], source[4] = 1, source[3]
    return edge_runs(source, target, 12)


def test_runs_hold_every_edge_once_by_degree() -> None:
    runs = random_runs()
    assert sorted(runs.order.tolist()) == list(range(24))
    degrees = runs.degree[runs.target]
    assert bool((degrees.diff() >= 0).all()) and int(runs.degree[5]) == int(runs.degree[10]) == 0
    for degree, count, node, edge in runs.runs:
        targets = runs.target[edge : edge + degree * count].view(count, degree)
        assert torch.equal(targets, runs.nodes[node : node + count].unsqueeze(1).expand(-1, degree))


@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize("values", [1, 40, 10**6])
def test_edge_list_equals_the_plain_form(update: bool, values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_VALUES", values)
    graph = random_runs()
    tensors = drawn(graph, width=5, size=1, update=update)
    plain, closed = run(plain_edge_step, graph, tensors), run(edge_step, graph, tensors)
    seeds = [torch.randn_like(out) for out in plain]
    wanted = torch.autograd.grad(plain, tensors, seeds)
    got = torch.autograd.grad(closed, tensors, seeds)
    for a, b in zip((*plain, *wanted), (*closed, *got), strict=True):
        assert (a - b).abs().max() <= 1e-12 * a.abs().max()


def test_edge_list_aggregates_node_by_node() -> None:
    graph = random_runs()
    messages = torch.randn(1, 24, 3, dtype=torch.float64)
    found = graph.aggregate(messages)[0]
    for node in range(12):
        m = messages[0, graph.target == node]
        if len(m):
            std = m.var(0, correction=0).clamp_min(VARIANCE_FLOOR).sqrt()
            expected = torch.cat([m.mean(0), m.amin(0), m.amax(0), std])
        else:
            expected = torch.tensor([0.0] * 9 + [VARIANCE_FLOOR**0.5] * 3, dtype=torch.float64)
        assert torch.allclose(found[node], expected, rtol=1e-12)


def test_a_graph_without_edges_aggregates_nothing() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    graph = edge_runs(none, none, 3)
    tensors = drawn(graph, width=2, size=1, update=True)
    for step in (edge_step, plain_edge_step):
        e, h = run(step, graph, tensors)
        assert e.shape == (1, 0, 2) and not h[..., :6].any() and bool((h[..., 6:] == VARIANCE_FLOOR**0.5).all())
