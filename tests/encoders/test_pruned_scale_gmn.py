"""ScaleGMN with pruned messages: against loops, alone and in batches, under scales and signs, reloaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from graph_specs import random_batch
from torch import Tensor

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.encoders.scale_gmn import ScaleGMN
from wsl.nn.sparse.dials import Dials, network_costs
from wsl.sparsity.macs import total
from wsl.spec import WeightSpec, mlp_spec
from wsl.symmetry import act, draw

SPECS = {name: mlp_spec([3, 8, 6, 4], name) for name in ("relu", "tanh")}
GROUPS = {"relu": ("permutation", "scaling"), "tanh": ("permutation", "sign")}
SMALL: Callable[..., ScaleGMN] = partial(ScaleGMN, width=8, layers=3)
RULES = [{"threshold": 0.9}, {"edges": 0.5}, {"edges": 0.5, "best_in_edge": True}]


def networks(spec: WeightSpec, size: int = 5) -> WeightBatch:
    """Of different scales, so that one statistic for all of them would not be that of each."""
    scales = torch.linspace(0.3, 1.5, size, dtype=torch.float64).view(-1, 1, 1)
    return WeightBatch(spec, random_batch(spec, size, 1).values.double() * scales)


def pruned(encoder: ScaleGMN, batch: Any, reference: str = "destination", **dials: Any) -> ScaleGMN:
    """After one training forward that chose; in evaluation mode."""
    encoder = encoder.double()
    encoder.fit_statistics(batch)
    found = Dials(encoder)
    for sieve in found.networks:
        sieve.threshold, sieve.sparsity = dials.get("threshold", 0.0), dials.get("edges")
        sieve.best_in_edge, sieve.reference = dials.get("best_in_edge", False), reference
    found.prune(edges=True, weights=False)
    encoder.train()(batch)
    found.prune(edges=False, weights=False)
    return encoder.eval()


def change(after: Tensor, before: Tensor) -> float:
    after, before = after.detach(), before.detach()
    return float((after - before).abs().max() / (before - before.mean(0)).abs().max())


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("activation", SPECS)
def test_symmetries_hold_with_pruning_on(activation: str, rule: dict[str, Any], bidirectional: bool) -> None:
    """A control that compares with the mean over the network changes its mind where neurons are scaled."""
    spec = SPECS[activation]
    batch = networks(spec)
    torch.manual_seed(0)
    encoder = pruned(SMALL(spec, 4, bidirectional=bidirectional), batch, **rule)
    assert 0.2 < total(network_costs(encoder, batch)).edge_sparsity < 0.8
    before = encoder(batch)
    element = draw(spec, len(batch), torch.Generator().manual_seed(3), GROUPS[activation], dtype=torch.float64)
    moved = act(element, batch)
    assert change(encoder(moved), before) < 1e-9
    Dials(encoder).view("full")
    assert change(encoder(batch), before) > 1e-3, "pruning changes nothing, so the test is blind"
    if activation == "relu":
        control = pruned(SMALL(spec, 4), batch, "network", **rule)
        assert change(control(moved), control(batch)) > 1e-4


@pytest.mark.parametrize("kind", ["one spec", "mixed"])
def test_a_network_alone_and_in_any_batch_keeps_the_same_edges(kind: str) -> None:
    spec = SPECS["relu"]
    batch: Any = networks(spec)
    batch = batch if kind == "one spec" else MixedWeightBatch.collate([batch])
    encoder = pruned(SMALL(spec, 4), batch, edges=0.5)
    alone = torch.cat([encoder(batch.select(torch.tensor([k]))) for k in range(len(batch))])
    assert change(alone, encoder(batch)) < 1e-10


def test_what_goes_is_below_the_mean_into_its_neuron() -> None:
    """A loop over the edges of the first layer: which stay, and that only they are summed."""
    batch = networks(SPECS["relu"])
    encoder = pruned(SMALL(SPECS["relu"], 4), batch, threshold=0.9)
    seen: list[Any] = []
    encoder.pruners[0].register_forward_hook(lambda _, given, out: seen.append((given, out)))
    sums: list[Tensor] = []
    encoder.layers[0].message.register_forward_hook(lambda _, given, out: sums.append(out))
    encoder(batch)
    (layer, x, edges, _, graph, _, along), (left, _, kept) = seen[0]
    sent, expected, gone = layer.message.node(x), torch.zeros_like(x), 0
    products = {n: layer.message.edge(edges[n]) * sent[graph.parts[n].sources] for n in along}
    for node in range(len(x)):
        into = [(n, k) for n in along for k in range(len(products[n])) if graph.parts[n].targets[k] == node]
        norms = [float(products[n][k].detach().norm()) for n, k in into]
        for (n, k), norm in zip(into, norms, strict=True):
            if norm >= 0.9 * sum(norms) / len(norms):
                message = layer.message.function(products[n][k : k + 1], graph.parts[n].target)
                expected[node] += message[0].detach()
            else:
                gone += 1
    assert gone == sum(len(products[n]) - len(left[n]) for n in along) > 0
    assert all(len(kept.parts[n].targets) == len(left[n]) for n in along)
    assert torch.allclose(sums[0], expected, rtol=1e-10, atol=1e-10)


def test_a_reloaded_encoder_is_as_sparse_and_an_open_one_has_no_new_state() -> None:
    batch = networks(SPECS["relu"])
    fresh = SMALL(SPECS["relu"], 4)
    assert not [name for name in fresh.state_dict() if "pruners" in name or "lists" in name]
    encoder = pruned(fresh, batch, edges=0.4)
    cost = total(network_costs(encoder, batch))
    assert cost.edge_sparsity == pytest.approx(0.4, abs=0.03) and cost.macs < cost.dense_macs
    again = SMALL(SPECS["relu"], 4).double().eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(batch), encoder(batch))


def test_blocks_that_prune_nothing_are_the_blocks() -> None:
    """With a threshold of 0 the edge list says what the blocks say."""
    batch = networks(SPECS["tanh"])
    encoder = SMALL(SPECS["tanh"], 4, form="blocks").double().eval()
    encoder.fit_statistics(batch)
    before = encoder(batch)
    assert change(pruned(encoder, batch)(batch), before) < 1e-10


def test_fields_cannot_be_pruned() -> None:
    assert not len(Dials(SMALL(SPECS["relu"], 1, equivariant=True)))
