"""The relational layer equals the published formulas, written out with one loop over all pairs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graph_specs import random_batch, spec_named
from torch import Tensor

from wsl.batch import MixedWeightBatch
from wsl.graphs.edge_list import EdgeList, edge_list
from wsl.graphs.frame import frame_of
from wsl.graphs.network import GraphOptions
from wsl.graphs.pairs import Pairs, dense_pairs, sparse_pairs
from wsl.nn import relational
from wsl.nn.pairs import kernels
from wsl.nn.relational import RelationalLayer
from wsl.spec import mlp_spec

C, D, A, H = 6, 4, 8, 2


@pytest.fixture(autouse=True, params=["compiled", "torch"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms of the layer hold to everything here."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "take", lambda *_: False)
    elif not kernels.take(torch.zeros(1)):
        pytest.skip("there is no C compiler")


def graphs(reverse: bool = True) -> EdgeList:
    """Three small networks of two architectures, one of them twice but not side by side."""
    small, large = mlp_spec((2, 3, 1)), mlp_spec((2, 2, 4, 1))
    batch = MixedWeightBatch.collate([random_batch(s, 1) for s in (large, small, large)])
    return edge_list(batch, frame_of([small, large], GraphOptions()), reverse)


def expected_pairs(graph: EdgeList, dense: bool) -> set[tuple[int, int]]:
    if dense:
        owner = graph.node_owner.tolist()
        n = len(owner)
        return {(i, j) for i in range(n) for j in range(n) if owner[i] == owner[j]}
    edges = set(zip(graph.source.tolist(), graph.target.tolist(), strict=True))
    return edges | {(j, i) for i, j in edges}


def pairs_of(graph: EdgeList, dense: bool) -> Pairs:
    return (dense_pairs if dense else sparse_pairs)(graph.node_owner, graph.source, graph.target)


@pytest.mark.parametrize("dense", [True, False])
def test_pairs_are_those_asked_for(dense: bool) -> None:
    graph = graphs()
    pairs = pairs_of(graph, dense)
    listed = list(zip(pairs.query.tolist(), pairs.key.tolist(), strict=True))
    assert len(listed) == len(pairs) and set(listed) == expected_pairs(graph, dense)
    assert [listed[p] for p in pairs.partner.tolist()] == [(j, i) for i, j in listed]
    ends = list(zip(graph.source.tolist(), graph.target.tolist(), strict=True))
    assert [listed[p] for p in pairs.along.tolist()] == ends
    assert [listed[p] for p in pairs.against.tolist()] == [(j, i) for i, j in ends]
    for r in pairs.rectangles:
        block = pairs.query[r.pair_slice].view(r.rows, r.degree)
        assert torch.equal(block, pairs.rows[r.row_slice].unsqueeze(1).expand_as(block))
    assert sum(r.rows * r.degree for r in pairs.rectangles) == len(pairs)
    assert all(r.cut(5) for r in pairs.rectangles)


def plain(layer: RelationalLayer, nodes: Tensor, edges: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """The formulas of the docstrings, a query at a time."""
    attention, update = layer.attention, layer.update
    assert update is not None
    (wq, wk, wv), scale = (m.weight for m in attention.node_maps), attention.edge_maps[-1].weight
    heads = []
    for i in range(len(nodes)):
        mine = (pairs.query == i).nonzero().flatten()
        n_j, e = nodes[pairs.key[mine]], edges[mine]
        q = nodes[i] @ wq.T + e @ attention.edge_maps[0].weight.T
        k = n_j @ wk.T + e @ attention.edge_maps[1].weight.T
        v = n_j @ wv.T
        v = (v * (e @ scale.T) if attention.modulation else v) + e @ attention.edge_value.weight.T
        of_heads = [
            torch.softmax((q_h * k_h).sum(1) / A**0.5, 0) @ v_h
            for q_h, k_h, v_h in zip(q.chunk(H, 1), k.chunk(H, 1), v.chunk(H, 1), strict=True)
        ]
        heads.append(torch.cat(of_heads))
    x = layer.norm(nodes + attention.out(torch.stack(heads)))
    x = layer.feed.norm(x + layer.feed.narrow(F.gelu(layer.feed.widen(x))))
    both = torch.cat([edges, edges[pairs.partner]], dim=1)
    z = update.both(both) + update.query(x)[pairs.query] + update.key(x)[pairs.key]
    e = update.norm(edges + update.out(F.gelu(z)))
    return x, update.feed.norm(e + update.feed.narrow(F.gelu(update.feed.widen(e))))


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("modulation", [True, False])
def test_layer_equals_the_formulas(dense: bool, modulation: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relational, "CHUNK_VALUES", 7 * A)  # several chunks
    graph = graphs()
    pairs = pairs_of(graph, dense)
    layer = RelationalLayer(C, D, A, 10, 12, H, modulation=modulation).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    nodes = torch.randn(graph.num_nodes, C, dtype=torch.float64, requires_grad=True)
    edges = torch.randn(len(pairs), D, dtype=torch.float64, requires_grad=True)
    ours, theirs = layer(nodes, edges, pairs), plain(layer, nodes, edges, pairs)
    weights = [torch.randn_like(t) for t in ours]
    inputs = [nodes, edges, *layer.parameters()]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    found, expected = (
        torch.autograd.grad([(w * t).sum() for w, t in zip(weights, out, strict=True)], inputs)
        for out in (ours, theirs)
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_dropout_is_the_same_when_computed_again() -> None:
    """The gradient of the sum along a direction agrees with a difference quotient under the same random numbers."""
    graph = graphs()
    pairs = pairs_of(graph, dense=True)
    layer = RelationalLayer(C, D, A, 10, 12, H, dropout=0.4).double()
    nodes = torch.randn(graph.num_nodes, C, dtype=torch.float64)
    edges = torch.randn(len(pairs), D, dtype=torch.float64, requires_grad=True)

    def value(e: Tensor) -> Tensor:
        torch.manual_seed(3)
        return sum(t.square().sum() for t in layer(nodes, e, pairs))  # type: ignore[return-value]

    direction, h = torch.randn_like(edges), 1e-6
    (grad,) = torch.autograd.grad(value(edges), edges)
    with torch.no_grad():
        quotient = (value(edges + h * direction) - value(edges - h * direction)) / (2 * h)
    torch.testing.assert_close((grad * direction).sum(), quotient, rtol=1e-6, atol=1e-6)


def test_a_node_without_keys_is_only_fed_forward() -> None:
    spec = spec_named("lenet")
    graph = edge_list(random_batch(spec, 1), frame_of([spec], GraphOptions()), True)
    pairs = pairs_of(graph, dense=False)
    lonely = Pairs(pairs.rows[:0], *(t[:0] for t in (pairs.query, pairs.key, pairs.partner)), (), *2 * (pairs.key[:0],))
    layer = RelationalLayer(C, D, A, 10, 12, H).double()
    nodes = torch.randn(graph.num_nodes, C, dtype=torch.float64)
    x, e = layer(nodes, torch.zeros(0, D, dtype=torch.float64), lonely)
    assert x.isfinite().all() and e.shape == (0, D)
