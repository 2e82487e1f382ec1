"""Edges of many graphs, each pruned by itself: against loops over groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wsl.nn.sparse.network_sieve import Networks, NetworkSieve, Norms
from wsl.sparsity.networks import compared_within, relative, strongest_of_each

OWNER = torch.tensor([2, 0, 1, 0, 0, 2, 1, 0, 2, 0])


def test_strongest_of_each_is_a_loop_over_owners() -> None:
    value = torch.rand(10, dtype=torch.float64)
    among, first = torch.rand(10) < 0.8, torch.rand(10) < 0.3
    count = torch.tensor([2, 1, 0])
    kept = strongest_of_each(value, OWNER, count, among, first)
    for owner in range(3):
        edges = [e for e in range(10) if OWNER[e] == owner and among[e]]
        best = sorted(edges, key=lambda e: (-int(first[e]), -float(value[e])))[: int(count[owner])]
        assert {e for e in edges if kept[e]} == set(best)
    assert not bool((kept & ~among).any())


def test_equal_edges_stay_together() -> None:
    value = torch.tensor([3.0, 1.0, 1.0, 2.0, 1.0, 5.0])
    owner = torch.tensor([0, 0, 0, 0, 1, 1])
    kept = strongest_of_each(value, owner, torch.tensor([3, 1]), torch.ones(6, dtype=torch.bool))
    assert kept.tolist() == [True, True, True, True, False, True]


def test_means_are_within_groups_and_of_counted_edges() -> None:
    value, counted = torch.rand(10, dtype=torch.float64), torch.rand(10) < 0.7
    scores = compared_within(value, 2 * value, OWNER, 4, counted)
    for e in range(10):
        group = [2 * float(value[k]) for k in range(10) if OWNER[k] == OWNER[e] and counted[k]]
        assert float(scores.reference[e]) == pytest.approx(sum(group) / len(group) if group else 0.0)
    assert relative(compared_within(torch.zeros(10), torch.zeros(10), OWNER, 4, counted)).tolist() == [1.0] * 10


def chosen(sieve: NetworkSieve, target: Tensor, owner: Tensor, norm: Tensor, share: float | None) -> Tensor:
    sieve.train()
    sieve.pruning, sieve.threshold, sieve.sparsity = True, 0.9, share
    kept = sieve(target, Networks.of(owner, 2, target), lambda: Norms(norm, norm))
    assert kept is not None
    return kept


@pytest.mark.parametrize("share", [None, 0.6])
def test_scaled_neurons_keep_their_edges_only_if_compared_within_the_destination(share: float | None) -> None:
    """A positive factor for each receiver, as scaling a neuron multiplies all messages into it."""
    owner = torch.tensor([0] * 6 + [1] * 6)
    target = torch.arange(12).repeat_interleave(7)
    norm, factor = torch.rand(84, dtype=torch.float64), torch.rand(12, dtype=torch.float64) * 5 + 0.1
    scaled = norm * factor[target]
    destination, network = NetworkSieve("destination"), NetworkSieve("network")
    before = chosen(destination, target, owner, norm, share)
    assert 0.2 < float(before.double().mean()) < 0.8
    assert torch.equal(before, chosen(destination, target, owner, scaled, share))
    assert not torch.equal(chosen(network, target, owner, norm, share), chosen(network, target, owner, scaled, share))


def test_the_rule_is_state_and_evaluation_does_not_change_it() -> None:
    owner, target = torch.zeros(3, dtype=torch.int64), torch.arange(3).repeat_interleave(4)
    norm = torch.rand(12, dtype=torch.float64)
    sieve = NetworkSieve()
    assert sieve.open and not sieve.state_dict()
    kept = chosen(sieve, target, owner, norm, 0.5)
    other = NetworkSieve().eval()
    other.load_state_dict(sieve.state_dict())
    networks = Networks.of(owner, 1, target)
    again = other(target, networks, lambda: Norms(norm, norm))
    assert torch.equal(kept, again) and other.used == (12, 12, 6)
    other.threshold = other.sparsity = 0.0
    assert torch.equal(kept, other(target, networks, lambda: Norms(norm, norm)))
    other.view = "full"
    assert other(target, networks, lambda: Norms(norm, norm)) is None


def test_best_edges_go_last_and_protected_receivers_lose_nothing() -> None:
    target = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    norm = torch.tensor([9.0, 8.0, 7.0, 0.3, 0.2, 0.1, 0.01, 0.01])
    sieve = NetworkSieve().train()
    sieve.pruning, sieve.best_in_edge, sieve.sparsity = True, True, 0.5
    networks = Networks.of(torch.zeros(3, dtype=torch.int64), 1, target, torch.tensor([True, True, False]))
    assert int(networks.edges) == 6
    kept = sieve(target, networks, lambda: Norms(norm, norm))
    assert kept.tolist() == [True, True, False, True, False, False, True, True]
    assert math.isnan(float(sieve.rule[1])) is False
