"""What goes and what stays, entry by entry, against a plain dense reading of the rules."""

from __future__ import annotations

import math

import pytest
import torch
from node_batches import SPEC, N, batch
from torch import Tensor, nn

from wsl.encoders.node.attention import GATv2Node
from wsl.encoders.node.convolutions import GCN, GCNII, GIN, SAGE
from wsl.encoders.node.sparsifiable import Sparsifiable
from wsl.graphs.node_graph import NodeBatch, NodeGraph
from wsl.nn.sparse.dials import Dials
from wsl.nn.sparse.edge_choice import worth
from wsl.nn.sparse.linear import SparseLinear
from wsl.sparsity import SparsityError, check_target, check_threshold, edges, macs, weights
from wsl.sparsity.bound import layer_error
from wsl.sparsity.schedule import Schedule

OPTIONS = {"hidden": 8, "dropout": 0.0}


def pruning(encoder: Sparsifiable, delta_a: float, delta_w: float) -> Sparsifiable:
    """In training mode, about to choose."""
    encoder = encoder.double().train()
    dials = Dials(encoder)
    for sieve in (*dials.edges, *dials.weights):
        sieve.pruning = True
    for edge in dials.edges:
        edge.threshold = delta_a
    for weight in dials.weights:
        weight.threshold = delta_w
    return encoder


def dense(graph: NodeGraph, loops: bool) -> Tensor:
    """A[u, v] = 1 for the edge v → u."""
    a = torch.zeros(N, N, dtype=torch.float64)
    a[graph.edge_index[1], graph.edge_index[0]] = 1.0
    return a + torch.eye(N, dtype=torch.float64) if loops else a


def cut_weight(weight: Tensor, x: Tensor, delta: float) -> Tensor:
    """The weight rule with loops over its entries."""
    weight, x = weight.detach(), x.detach()
    norm, kept = float(x.norm()), weight.clone()
    for j in range(weight.shape[1]):
        column = float(x[:, j].norm())
        limit = math.inf if column == 0 else delta * norm / weight.shape[1] / column
        limit = min(limit, 0.999 * float(weight.abs().max()))
        for i in range(weight.shape[0]):
            kept[i, j] = 0.0 if abs(float(weight[i, j])) < limit else weight[i, j]
    return kept


def cut_edges(present: Tensor, score: Tensor, reference: float, delta: float) -> Tensor:
    """Entries of a dense adjacency that stay; the diagonal always does."""
    kept, score = present.clone(), score.detach()
    for u in range(N):
        for v in range(N):
            if u != v and present[u, v] and float(score[u, v]) < delta * reference:
                kept[u, v] = 0.0
    return kept


def over_edges(score: Tensor, present: Tensor) -> float:
    return float(score.detach()[present > 0].mean())


def symmetric(a: Tensor) -> Tensor:
    degree = a.sum(1)
    return a / (degree[:, None] * degree).sqrt()


DELTAS = pytest.mark.parametrize(("delta_a", "delta_w"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.5, 2.0)])


def check(encoder: Sparsifiable, given: NodeBatch, expected: Tensor, kept: list[Tensor]) -> None:
    """Outputs, and every layer's kept edges as a dense matrix."""
    assert (encoder(given) - expected).abs().max() < 1e-12 * expected.abs().max()
    whole = encoder.edges(given.graph)
    for sieve, matrix in zip(Dials(encoder).edges, kept, strict=True):
        mine = torch.zeros(N, N, dtype=torch.float64)
        mask = torch.ones(len(whole), dtype=torch.bool) if sieve.kept is None else sieve.kept
        mine[whole.target[mask], whole.source[mask]] = 1.0
        assert torch.equal(mine, (matrix > 0).double())


@DELTAS
def test_gcn(delta_a: float, delta_w: float) -> None:
    encoder, given = pruning(GCN(SPEC, 3, **OPTIONS), delta_a, delta_w), batch()
    x, a, kept = given.graph.x, dense(given.graph, loops=True), []
    present, w = a, symmetric(a)
    for number, layer in enumerate(encoder.layers):
        h = x @ cut_weight(layer.lin.weight, x, delta_w).t()
        score = w * h.norm(dim=1)
        present = cut_edges(present, score, over_edges(score, present), delta_a)
        kept.append(present)
        x = (w * present) @ h + layer.bias
        x = x.relu() if number == 0 else x
    check(encoder, given, x, kept)
    assert delta_a == 0 or kept[1].sum() < kept[0].sum() < a.sum(), "layers inherit and prune further"


@DELTAS
def test_sage(delta_a: float, delta_w: float) -> None:
    encoder, given = pruning(SAGE(SPEC, 3, **OPTIONS), delta_a, delta_w), batch()
    x, a, kept = given.graph.x, dense(given.graph, loops=False), []
    present, mean = a, a / a.sum(1, keepdim=True).clamp_min(1)
    for number, layer in enumerate(encoder.layers):
        score = a * x.norm(dim=1)
        present = cut_edges(present, score, over_edges(score, present), delta_a)
        kept.append(present)
        around = (mean * present) @ x
        left, right = cut_weight(layer.lin_l.weight, around, delta_w), cut_weight(layer.lin_r.weight, x, delta_w)
        x = around @ left.t() + layer.lin_l.bias + x @ right.t()
        x = x.relu() if number == 0 else x
    check(encoder, given, x, kept)


@DELTAS
def test_gin(delta_a: float, delta_w: float) -> None:
    encoder, given = pruning(GIN(SPEC, 3, norm="none", **OPTIONS), delta_a, delta_w), batch()
    x, present, kept = given.graph.x, dense(given.graph, loops=False), []
    for number, layer in enumerate(encoder.layers):
        layer.epsilon.data.fill_(0.3)
        score = present * x.norm(dim=1)
        present = cut_edges(present, score, over_edges(score, present), delta_a)
        kept.append(present)
        summed = 1.3 * x + present @ x
        inner = (summed @ cut_weight(layer.first.weight, summed, delta_w).t() + layer.first.bias).relu()
        x = inner @ cut_weight(layer.second.weight, inner, delta_w).t() + layer.second.bias
        x = x.relu() if number == 0 else x
    check(encoder, given, x, kept)


@DELTAS
def test_gcnii(delta_a: float, delta_w: float) -> None:
    encoder, given = pruning(GCNII(SPEC, 3, layers=3, **OPTIONS), delta_a, delta_w), batch()
    a, kept = dense(given.graph, loops=True), []
    present, w = a, symmetric(a)
    first = x = encoder.lin_in(given.graph.x).relu()
    for number, layer in enumerate(encoder.layers):
        score = w * x.norm(dim=1)
        present = cut_edges(present, score, over_edges(score, present), delta_a)
        kept.append(present)
        moved, beta = 0.9 * (w * present) @ x, math.log(0.5 / (number + 1) + 1)
        mixed = moved + 0.1 * first
        x = ((1 - beta) * mixed + beta * mixed @ cut_weight(layer.lin.weight, moved, delta_w).t()).relu()
    check(encoder, given, encoder.lin_out(x), kept)


@DELTAS
@pytest.mark.parametrize("shared", [False, True])
def test_gatv2(delta_a: float, delta_w: float, shared: bool) -> None:
    delta_a *= 0.3  # attention weights are far below 1
    encoder = GATv2Node(SPEC, 3, hidden=8, heads=2, dropout=0.0, attention_dropout=0.0, share_weights=shared)
    pruning(encoder, delta_a, delta_w)
    given = batch()
    x, present, kept = given.graph.x, dense(given.graph, loops=True), []
    for number, layer in enumerate(encoder.layers):
        heads, channels = layer.heads, layer.out_channels
        source = x @ cut_weight(layer.lin_l.weight, x, delta_w).t() + layer.lin_l.bias
        target = source if shared else x @ cut_weight(layer.lin_r.weight, x, delta_w).t() + layer.lin_r.bias
        joined = (source[None] + target[:, None]).view(N, N, heads, channels)
        score = (nn.functional.leaky_relu(joined, 0.2) * layer.att).sum(-1)
        alpha = score.masked_fill(present[..., None] == 0, -math.inf).softmax(1)
        norms = source.norm(dim=1)
        reference = over_edges(norms.expand(N, N), present)
        present = cut_edges(present, alpha.norm(dim=2) / heads * norms, reference, delta_a)
        kept.append(present)
        out = torch.einsum("uvh,vhc->uhc", alpha * present[..., None], source.view(N, heads, channels))
        x = (out.flatten(1) if layer.concat else out.mean(1)) + layer.bias
        x = nn.functional.elu(x) if number == 0 else x
    check(encoder, given, x, kept)
    assert delta_a == 0 or kept[0].sum() < dense(given.graph, loops=True).sum()


@pytest.mark.parametrize("kind", ["gcn", "sage", "gatv2"])
def test_an_absent_edge_leaves_no_trace(kind: str) -> None:
    """The sparse model is the dense one on the graph of its kept edges; a zero edge still counts in degrees."""
    kinds = {
        "gcn": lambda: GCN(SPEC, 3, layers=1, **OPTIONS),
        "sage": lambda: SAGE(SPEC, 3, layers=1, **OPTIONS),
        "gatv2": lambda: GATv2Node(SPEC, 3, layers=1, heads=2, dropout=0.0, attention_dropout=0.0),
    }
    encoder, given = pruning(kinds[kind](), 0.0, 0.0), batch()
    (sieve,) = Dials(encoder).edges
    sieve.sparsity = 0.6
    outputs = {}
    for sieve.renormalize in (True, False):
        sieve.pruning = True
        first = encoder(given)
        sieve.pruning = False
        outputs[sieve.renormalize] = encoder(given)  # what was chosen is used
        assert (outputs[sieve.renormalize] - first).abs().max() < 1e-12
    whole = encoder.edges(given.graph)
    left = whole.edge_index[:, sieve.kept & ~whole.is_loop]
    sieve.kept = None
    alone = encoder(NodeBatch(NodeGraph(given.graph.x, left, given.graph.y), given.row_ids))
    assert (outputs[True] - alone).abs().max() < 1e-12 * alone.abs().max()
    assert (outputs[False] - alone).abs().max() > 1e-3


def test_targets_are_met_and_the_best_edge_goes_last() -> None:
    value, target = torch.tensor([5.0, 4.0, 3.0, 1.0, 1.0]), torch.tensor([0, 0, 0, 1, 1])
    among = torch.ones(5, dtype=torch.bool)
    best = edges.best_in_edges(value, target, among, 3)
    assert best.tolist() == [True, False, False, True, False], "the first of equals"
    assert edges.strongest(value, 2, among).tolist() == [True, True, False, False, False]
    assert edges.strongest(value, 2, among, best).tolist() == best.tolist()
    assert edges.strongest(value, 3, among, best).tolist() == [True, True, False, True, False]
    among[0] = False
    assert edges.strongest(value, 2, among, best).tolist() == [False, True, False, True, False]


def test_weight_rule_at_its_edges() -> None:
    weight, x = torch.randn(5, 4), torch.randn(9, 4)
    x[:, 2] = 0
    columns = weights.column_norms(x)
    mask = weights.keep_above(weight, columns, 0.1)
    assert not mask[:, 2].any() or weight[:, 2].abs().max() == weight.abs().max(), "a dead column goes"
    assert weights.keep_above(weight, columns, 1e9).sum() >= 1, "the cap leaves the greatest entry"
    assert weights.keep_above(weight, torch.full((4,), 1e-9), 1.0).all(), "a silent input prunes nothing"
    assert (~weights.keep_share(weight, columns, 0.5)).sum() == 10
    assert (~weights.keep_share(weight, columns, 0.999)).sum() == 19
    equal = torch.ones(8) * 3.0
    limit = weights.thresholds(torch.ones(2, 8), equal, 0.5)
    assert torch.allclose(limit, torch.full((8,), 0.5 / math.sqrt(8)))
    assert torch.allclose(weights.thresholds(torch.ones(2, 8), equal, 0.3, absolute=True), torch.full((8,), 0.1))


def test_absolute_edges_are_those_of_the_papers_text() -> None:
    scores = edges.EdgeScores(torch.tensor([0.1, 0.2, 0.3]), torch.tensor(10.0))
    assert edges.above(scores, 0.2, absolute=True).tolist() == [False, False, True]
    assert edges.above(scores, 0.02).tolist() == [False, True, True]
    assert edges.above(scores, 0.0, absolute=True).all()


def test_pruned_weights_come_back_or_stay_away() -> None:
    layer, x = SparseLinear(4, 3, bias=False).train(), torch.randn(7, 4)
    layer.sieve.pruning, layer.sieve.sparsity = True, 0.5
    before = layer.weight.detach().clone()
    layer(x).sum().backward()
    assert torch.equal(layer.weight, before), "regrowing keeps dense values"
    assert (layer.weight.grad[~layer.sieve.kept] == 0).all() and (layer.weight.grad[layer.sieve.kept] != 0).all()
    first = layer.sieve.kept
    layer.sieve.monotone = True
    with torch.no_grad():
        layer(torch.randn(7, 4))
        layer.weight.add_(1.0)
        layer(x)
    assert not (layer.sieve.kept & ~first).any()


def test_schedule() -> None:
    schedule = Schedule(epochs=20, warm_up=4, monotone=10, freeze=15, ramp=5)
    assert [schedule.phase(e) for e in (3, 4, 9, 10, 14, 15)] == [
        "dense", "regrow", "regrow", "monotone", "monotone", "frozen",
    ]  # fmt: skip
    assert [schedule.share(e) for e in (3, 4, 8, 19)] == [0.0, pytest.approx(1 - 0.8**3), 1.0, 1.0]
    with pytest.raises(SparsityError, match=r"warm_up=20.*max_epochs=20"):
        Schedule(20, 20, 10, None, 0)
    with pytest.raises(SparsityError, match=r"freeze=3.*warm_up=5"):
        Schedule(20, 5, 10, 3, 0)


def test_macs_are_counted_in_full() -> None:
    layer = macs.LayerCost(
        rows=10**8, weights=10**6, all_weights=10**7, channels=128, edges=3 * 10**9, all_edges=6 * 10**9, loops=10**8
    )
    found = macs.total([layer, layer])
    assert found.macs == 2 * (10**14 + 384 * 10**9) and found.dense_macs == 2 * (10**15 + 768 * 10**9)
    assert found.edge_sparsity == pytest.approx(1 - 29 / 59) and found.weight_sparsity == pytest.approx(0.9)


def test_an_error_is_within_its_bounds() -> None:
    exact = torch.randn(5, 3, dtype=torch.float64)
    parts, place = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 0, 2, 3])
    pruned = exact - torch.zeros_like(exact).index_add_(0, place, parts)
    error = layer_error(exact, pruned, parts.norm(dim=1), place, 5)
    assert 0 < error.measured <= error.messages <= error.bound
    nothing = layer_error(exact, exact, parts.new_zeros(0), place[:0], 5)
    assert (nothing.measured, nothing.messages, nothing.bound) == (0, 0, 0)


def test_what_an_edge_is_worth() -> None:
    encoder, given = GCN(SPEC, 3, **OPTIONS).double().eval(), batch()
    loops = NodeBatch(NodeGraph(given.graph.x, given.graph.edge_index[:, :0], given.graph.y), given.row_ids)
    q = encoder(loops).softmax(-1).detach()
    said, whole = encoder(given).argmax(-1), encoder.edges(given.graph)
    doubt, need = worth(encoder, given, "doubt"), worth(encoder, given, "need")
    for e, (v, u) in enumerate(whole.edge_index.t().tolist()):
        entropy = -sum(p * math.log(p) for p in q[u].tolist())
        assert float(doubt[e]) == pytest.approx(entropy * float(q[v].max()), rel=1e-5)
        assert float(need[e]) == pytest.approx(float((1 - q[u, said[u]]) * q[v, said[u]]), rel=1e-5)
    assert all(sieve.kept is None for sieve in Dials(encoder).edges)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_wrong_thresholds(value: float) -> None:
    with pytest.raises(SparsityError, match="edge_threshold"):
        check_threshold("sparsity.edge_threshold", value)


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5])
def test_wrong_targets(value: float) -> None:
    with pytest.raises(SparsityError, match=r"edge_target=.*below 1"):
        check_target("sparsity.edge_target", value)
