"""Mixed batches move as the networks of each spec do alone."""

from __future__ import annotations

import pytest
import torch
from specs import attention_spec, gru_spec

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.execute import execute
from wsl.mixed_symmetry import MixedElement, act_mixed, draw_mixed, neuron_table
from wsl.spec import WeightSpec, mlp_spec
from wsl.symmetry import GroupElement, act

EVERY = ("permutation", "scaling", "sign", "phase")
SPECS = (
    mlp_spec([3, 7, 5, 2]),
    mlp_spec([2, 6, 6, 1], "sine", {"omega": 3.0}),
    gru_spec(),
    attention_spec(6, 3, 4),
    mlp_spec([3, 4, 2], "tanh"),
    mlp_spec([3, 2]),  # nothing hidden
)


def mixed(counts: tuple[int, ...] = (2, 1, 1, 2, 1, 1)) -> MixedWeightBatch:
    return MixedWeightBatch.collate(
        [WeightBatch(s, torch.randn(n, s.numel, 2, dtype=torch.float64)) for s, n in zip(SPECS, counts, strict=True)]
    ).select(torch.tensor([3, 0, 7, 2, 5, 1, 4, 6]))


def element_of(element: MixedElement, batch: MixedWeightBatch, network: int) -> GroupElement:
    """The part of one network, as an element of its spec's group."""
    spec: WeightSpec = batch.specs[batch.spec_ids[network]]
    _, _, offsets = batch.tables(neuron_table)
    at, parts = int(offsets[network]) + 1, ({}, {}, {})
    for label in (x for x in spec.labels if x.kind == "hidden" and x.symmetries):
        here = slice(at, at + label.size)
        parts[0][label.name] = element.source[here].unsqueeze(0) - at
        parts[1][label.name] = element.factor[here].unsqueeze(0)
        parts[2][label.name] = element.half_turns[here].unsqueeze(0)
        at += label.size
    assert at == offsets[network + 1]
    turning = {n: m for n, m in parts[2].items() if "phase" in spec.label[n].symmetries}
    return GroupElement(parts[0], parts[1], turning)


@pytest.mark.parametrize("shift", [True, False])
def test_every_network_moves_as_it_does_alone(shift: bool) -> None:
    batch = mixed()
    element = draw_mixed(batch, symmetries=EVERY)
    moved = act_mixed(element, batch, shift)
    assert not torch.allclose(moved.values, batch.values)
    for network in range(len(batch)):
        rows = slice(batch.offsets[network], batch.offsets[network + 1])
        spec = batch.specs[batch.spec_ids[network]]
        alone = WeightBatch(spec, batch.values[rows].unsqueeze(0))
        expected = act(element_of(element, batch, network), alone, shift).values[0]
        torch.testing.assert_close(moved.values[rows], expected)


def test_functions_are_unchanged() -> None:
    batch = mixed()
    batch = batch.with_values(batch.values[:, :1])
    for symmetry in EVERY:
        moved = act_mixed(draw_mixed(batch, symmetries=(symmetry,)), batch)
        assert not torch.allclose(moved.values, batch.values)
        for (_, before), (_, after) in zip(batch.split(), moved.split(), strict=True):
            shape = (3, 4) if before.spec in SPECS[2:4] else (3,)
            inputs = torch.randn(*shape, before.spec.labels[0].size, dtype=torch.float64)
            torch.testing.assert_close(execute(after, inputs), execute(before, inputs), rtol=1e-9, atol=1e-10)


def test_what_is_drawn_is_what_labels_have() -> None:
    batch = mixed()
    element = draw_mixed(batch, symmetries=EVERY)
    rows, owner, offsets = batch.tables(neuron_table)
    segment = offsets[:-1][owner] + rows[:, 0]
    assert torch.equal(segment[element.source], segment)  # neurons stay in their label
    assert torch.equal(element.source.sort().values, torch.arange(len(rows)))
    assert element.source[offsets[:-1]].equal(offsets[:-1])  # the neuron that stands for none
    assert torch.equal(element.factor[rows[:, 2] + rows[:, 3] == 0].unique(), torch.ones(1, dtype=torch.float64))
    assert set(element.factor[rows[:, 3] == 1].tolist()) == {-1.0, 1.0}
    assert not element.half_turns[rows[:, 4] == 0].any() and element.half_turns.any()
    still = draw_mixed(batch, symmetries=("sign",))
    assert torch.equal(still.source, torch.arange(len(rows))) and still.half_turns is None
    with pytest.raises(ValueError, match=r"unknown symmetries \['mirror'\]"):
        draw_mixed(batch, symmetries=("mirror",))


def test_draws_are_uniform_over_permutations() -> None:
    """All 3! orders of a label come up alike in 6,000 networks of two specs (chi-square, 5 degrees of freedom)."""
    specs = (mlp_spec([1, 3, 1]), mlp_spec([1, 3, 3, 1]))
    rows = [WeightBatch(s, torch.zeros(3000, s.numel, 1)) for s in specs]
    batch = MixedWeightBatch.collate(rows)
    element = draw_mixed(batch, torch.Generator().manual_seed(0))
    neurons = batch.tables(neuron_table)[0][:, 0] > 0
    orders = element.source[neurons].reshape(-1, 3)
    orders = orders - orders.amin(dim=1, keepdim=True)
    _, counts = orders.unique(dim=0, return_counts=True)
    expected = len(orders) / 6
    assert len(counts) == 6 and float(((counts - expected) ** 2 / expected).sum()) < 20.5
