"""NG-GNN and GATv2 with pruned messages and weights: against loops, alone and in batches, symmetric, reloaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from graph_specs import random_batch
from torch import Tensor

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.encoders.base import Encoder
from wsl.encoders.canonical import Canonical
from wsl.encoders.gatv2 import GATv2Encoder
from wsl.encoders.ng_gnn import NGGNN
from wsl.nn.edge_runs import edge_runs
from wsl.nn.edge_step import active_edges, plain_messages
from wsl.nn.gatv2_conv import GATv2Conv
from wsl.nn.moments import VARIANCE_FLOOR
from wsl.nn.pna_blocks import PNALayer, PrunedRuns
from wsl.nn.sparse import network_sieve
from wsl.nn.sparse.dials import Dials, network_costs
from wsl.nn.sparse.network_sieve import Networks
from wsl.sparsity.macs import total
from wsl.spec import mlp_spec
from wsl.spec.family import SpecFamily
from wsl.symmetry import act, draw
from wsl.zoo.build.wild_cnn import WildCNN

RELU = mlp_spec([3, 8, 6, 4], "relu")
CNNS = (
    WildCNN(3, (4, 6), (3, 5), ("relu", "tanh"), (-1, -1), 5).spec(),
    WildCNN(3, (4, 8, 4), (3, 3, 3), ("gelu", "relu", "tanh"), (-1, -1, 0), 5).spec(),
)
NG = partial(NGGNN, width=8, layers=3, probes=0, fourier_features=4, fourier_std=0.5)
GAT = partial(GATv2Encoder, width=8, layers=3, heads=2, probes=0, fourier_features=4, fourier_std=0.5)
BOTH = [pytest.param(NG, id="ng_gnn"), pytest.param(GAT, id="gatv2")]
#: enough of each encoder's edges go and stay
DELTA = {NG: 1.0, GAT: 0.09}


def networks(size: int = 5) -> WeightBatch:
    """Of different scales, so that one statistic for all of them would not be that of each."""
    scales = torch.linspace(0.1, 1.5, size, dtype=torch.float64).view(-1, 1, 1)
    return WeightBatch(RELU, torch.randn(size, RELU.numel, 1, dtype=torch.float64) * scales)


def family_batch() -> MixedWeightBatch:
    parts = [random_batch(spec, 2, seed) for seed, spec in enumerate(CNNS)]
    return MixedWeightBatch.collate(parts).select(torch.arange(4).roll(1))


def pruned(encoder: Encoder, batch: Any, **dials: Any) -> Encoder:
    """After one training forward that chose; in evaluation mode."""
    encoder = encoder.double()
    encoder.fit_statistics(batch)
    for module in encoder.modules():
        if isinstance(module, GATv2Conv):
            module.att.data *= 20.0  # attention that is far from uniform
    found = Dials(encoder)
    for sieve in found.networks:
        sieve.threshold, sieve.sparsity = dials.get("threshold", 0.0), dials.get("edges")
        sieve.best_in_edge = dials.get("best_in_edge", False)
    for weight in found.weights:
        weight.sparsity = dials.get("weights")
    found.prune(edges="threshold" in dials or "edges" in dials, weights="weights" in dials)
    encoder.train()
    encoder(batch)
    found.prune(edges=False, weights=False)
    return encoder.eval()


def change(after: Tensor, before: Tensor) -> float:
    after, before = after.detach(), before.detach()
    return float((after - before).abs().max() / (before - before.mean(0)).abs().max())


def edge_sparsity(encoder: Encoder, batch: Any) -> float:
    return total(network_costs(encoder, batch)).edge_sparsity


# -- what a pruned layer computes ------------------------------------------------------------------------------------


def list_of_edges() -> tuple[PrunedRuns, Tensor, Tensor]:
    """Two networks of 4 and 3 nodes, node 6 without edges; states of nodes and of edges."""
    ends = [(0, 1), (2, 1), (3, 1), (0, 2), (1, 2), (3, 2), (0, 3), (2, 3), (4, 5), (5, 5), (5, 4)]
    source, target = torch.tensor(sorted(ends, key=lambda pair: pair[1])).T
    owner = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    edges = PrunedRuns(edge_runs(source, target, 7), Networks.of(owner, 2, target), 0.7)
    return edges, torch.randn(1, 7, 4, dtype=torch.float64), torch.randn(1, 11, 4, dtype=torch.float64)


@pytest.mark.parametrize("update", [False, True])
def test_a_pruned_edge_is_absent_from_principal_aggregation(update: bool) -> None:
    edges, x, e = list_of_edges()
    layer = PNALayer(4, None, update).double().train()
    layer.sieve.pruning, layer.sieve.threshold = True, 1.0
    out, left, kept = layer.pruned(x, e, edges)
    terms = layer.edge_update.terms(x, e, edges.runs) if update else None
    moved = e if terms is None else layer.edge_update.out(active_edges(e, terms, edges.runs))
    messages = plain_messages(moved, layer._terms(x, e, edges.runs)[1], edges.runs)[0]
    target, owner = edges.runs.target, edges.networks.owner
    means = [messages[owner[target] == b].norm(dim=1).mean() for b in range(2)]
    stay = [k for k in range(11) if messages[k].norm() >= means[owner[target[k]]]]
    assert 2 < len(stay) < 9 and len(kept.runs.source) == len(stay) == left.shape[1]
    expected = []
    for node in range(7):
        into = [k for k in stay if target[k] == node]
        h = torch.cat([torch.zeros(12).double(), torch.full((4,), VARIANCE_FLOOR**0.5, dtype=torch.float64)])
        if into:
            m = messages[into]
            std = m.var(0, correction=0).clamp(min=VARIANCE_FLOOR).sqrt()
            h = torch.cat([m.mean(0), m.amin(0), m.amax(0), std])
        scaled = torch.tensor(len(into) + 1.0).double().log() / 0.7 * h
        expected.append(layer.out(layer.combine(torch.cat([x[0, node], h, scaled]))))
    assert torch.allclose(out[0], torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_gradients_of_a_pruned_layer() -> None:
    edges, x, e = list_of_edges()
    layer = PNALayer(4, None, True).double().train()
    layer.sieve.pruning, layer.sieve.sparsity = True, 0.5
    assert torch.autograd.gradcheck(
        lambda a, b: layer.pruned(a, b, edges)[:2], (x.requires_grad_(), e.requires_grad_()), atol=1e-6
    )


def test_a_pruned_edge_is_absent_from_the_softmax() -> None:
    """The encoder's first layer against the same layer on the edges that its own attention leaves."""
    encoder, batch = GAT(RELU, 4, form="edges"), networks()
    encoder = pruned(encoder, batch, threshold=0.09)
    seen: list[Any] = []
    for pruner in encoder.pruners:
        pruner.register_forward_hook(lambda _, given, out: seen.append((given, out)))
    encoder(batch)
    for (layer, x, e, edges), (y, left, kept) in seen:
        index = torch.stack([edges.graph.source, edges.graph.target])
        _, (_, alpha) = layer(x, edges.graph, e, return_attention_weights=True)
        norm = layer.lin_l(x).norm(dim=1)[index[0]]
        owner = edges.networks.owner[index[1]]
        means = torch.stack([norm[owner == b].mean() for b in range(len(batch))])
        stay = alpha.norm(dim=1) / 2 * norm >= 0.09 * means[owner]
        assert 0 < int(stay.sum()) <= len(stay)
        assert torch.equal(kept.graph.source, index[0, stay]) and torch.equal(left, e[stay])
        assert torch.allclose(y, layer(x, index[:, stay], e[stay]), rtol=1e-12, atol=1e-12)
    assert len(seen[-1][1][2].graph) < 0.9 * len(seen[0][0][3].graph)


# -- each network by itself ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dials", [{"threshold": True}, {"edges": 0.6}, {"edges": 0.6, "best_in_edge": True}])
@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("kind", ["one spec", "family"])
def test_a_network_alone_and_in_any_batch_keeps_the_same_edges(
    make: Callable[..., Encoder], kind: str, dials: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = networks() if kind == "one spec" else family_batch()
    spec = RELU if kind == "one spec" else SpecFamily(CNNS)
    options = {} if kind == "one spec" else {"readout": "mean"}
    dials = {**dials, "threshold": DELTA[make]} if "threshold" in dials else dials
    encoder = pruned(make(spec, 3, **options), batch, **dials)
    assert 0.2 < edge_sparsity(encoder, batch) < 0.95
    together = encoder(batch)

    def alone() -> Tensor:
        return torch.cat([encoder(batch.select(torch.tensor([k]))) for k in range(len(batch))])

    assert change(alone(), together) < 1e-10
    plain = Networks.of.__func__
    monkeypatch.setattr(  # control: one statistic for the whole batch
        network_sieve.Networks,
        "of",
        classmethod(lambda cls, owner, size, *rest: plain(cls, torch.zeros_like(owner), 1, *rest)),
    )
    assert change(alone(), encoder(batch)) > 1e-5


@pytest.mark.parametrize("make", BOTH)
def test_blocks_and_edge_lists_prune_alike(make: Callable[..., Encoder]) -> None:
    batch = networks()
    blocks = pruned(make(RELU, 4, form="blocks"), batch, edges=0.5)
    edges = make(RELU, 4, form="edges").double().eval()
    names = {"places": "positional.weight", "edge_waves.0": "edge_waves", "lift_edges.0": "lift_edges"}
    names |= {"project_edges.0": "project_edges", "front.": ""}
    held = dict(blocks.state_dict())
    for name in edges.state_dict():
        other = name
        for new, old in names.items():
            other = other.replace(new, old)
        if other in held and other != name:
            held[name] = held.pop(other)
    missing = edges.load_state_dict(held, strict=False)
    assert all("standardize" in name or "log_degree" in name or "layers" in name for name in missing.missing_keys)
    edges.fit_statistics(batch)
    for layer in blocks.layers if isinstance(blocks, NGGNN) else ():
        assert layer.sieve.rule is not None
    assert edge_sparsity(blocks, batch) == pytest.approx(0.5, abs=0.02)
    assert edge_sparsity(edges, batch) == edge_sparsity(blocks, batch)


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("form", ["blocks", "edges"])
def test_permuted_neurons_are_not_noticed(make: Callable[..., Encoder], form: str) -> None:
    batch = networks()
    encoder = pruned(make(RELU, 4, form=form), batch, threshold=DELTA[make], weights=0.3)
    assert 0.1 < edge_sparsity(encoder, batch) < 0.95
    before = encoder(batch)
    moved = act(draw(RELU, len(batch), torch.Generator().manual_seed(3), dtype=torch.float64), batch)
    assert change(encoder(moved), before) < 1e-10
    Dials(encoder).view("full")
    assert change(encoder(batch), before) > 1e-3, "pruning changes nothing, so the test is blind"


def test_scaled_neurons_are_not_noticed_through_the_canonical_wrapper() -> None:
    batch = networks()
    encoder = pruned(Canonical(RELU, 4, encoder=partial(NG, fourier_features=0)), batch, edges=0.5)
    moved = act(
        draw(RELU, len(batch), torch.Generator().manual_seed(3), ("permutation", "scaling"), dtype=torch.float64), batch
    )
    assert change(encoder(moved), encoder(batch)) < 1e-10
    assert edge_sparsity(encoder, batch) == pytest.approx(0.5, abs=0.02)


# -- weights and state -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", BOTH)
def test_weights_go_and_a_reloaded_encoder_is_as_sparse(make: Callable[..., Encoder]) -> None:
    batch = networks()
    encoder = pruned(make(RELU, 4), batch, edges=0.4, weights=0.7)
    cost = total(network_costs(encoder, batch))
    assert cost.weight_sparsity == pytest.approx(0.7, abs=0.01)
    assert cost.edge_sparsity == pytest.approx(0.4, abs=0.02)
    assert cost.macs < 0.4 * cost.dense_macs
    again = make(RELU, 4).double().eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(batch), encoder(batch))


def test_an_open_encoder_has_no_new_state() -> None:
    for make in (NG, GAT):
        encoder = make(RELU, 4)
        assert not [name for name in encoder.state_dict() if "sieve" in name or "pruners" in name]


def test_weights_are_judged_by_what_they_multiply() -> None:
    """Edge maps by edge states after the update, node maps by node states: against the rule on these inputs."""
    from wsl.sparsity.weights import column_norms, keep_share

    edges, x, e = list_of_edges()
    layer = PNALayer(4, None, True).double().train()
    for sieve in Dials(layer).weights:
        sieve.pruning, sieve.sparsity = True, 0.5
    update, messages = layer._terms(x, e, edges.runs)
    parts = layer.edge_update
    z = e @ (parts.edge.weight * parts.edge.sieve.kept).T
    assert torch.equal(parts.edge.sieve.kept, keep_share(parts.edge.weight, column_norms(e), 0.5))
    assert torch.equal(parts.source.sieve.kept, keep_share(parts.source.weight, column_norms(x), 0.5))
    z = torch.nn.functional.silu(z + edges.runs.on_edges(update.source, update.target))
    assert torch.equal(parts.out.sieve.kept, keep_share(parts.out.weight, column_norms(z), 0.5))
    new = z @ (parts.out.weight * parts.out.sieve.kept).T + parts.out.bias
    assert torch.equal(layer.film.sieve.kept, keep_share(layer.film.weight, column_norms(new), 0.5))
    assert torch.equal(messages.film, layer.film.weight * layer.film.sieve.kept)
