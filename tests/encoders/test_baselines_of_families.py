"""StatNN, the flat MLP and probes on mixed zoos: they read there what they read of each architecture alone."""

from __future__ import annotations

import pytest
import torch
from specs import cnn_spec, gru_spec

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.encoders.base import UnsupportedSpecError
from wsl.encoders.mlp import FlatMLP
from wsl.encoders.probe import ProbeMLP
from wsl.encoders.statnn import STATISTICS, StatNN, statistics
from wsl.execute import execute
from wsl.mixed_symmetry import act_mixed, draw_mixed
from wsl.nn.places import slot_names, slots_of
from wsl.nn.probes import ProbeFeatures
from wsl.nn.tensor_statistics import TensorStatistics
from wsl.spec import SpecError, WeightSpec
from wsl.spec.family import SpecFamily

ALIKE = (cnn_spec("relu"), cnn_spec("tanh"))
WIDER = (cnn_spec("relu"), cnn_spec("relu", (1, 6, 3)))
VARIED = (cnn_spec("relu"), cnn_spec("tanh", (1, 3, 5, 2)), cnn_spec("relu", (1, 2, 3, 4, 5)), gru_spec())


def mixed(specs: tuple[WeightSpec, ...]) -> MixedWeightBatch:
    parts = [WeightBatch(s, torch.randn(3, s.numel, 1, dtype=torch.float64)) for s in specs]
    batch = MixedWeightBatch.collate(parts)
    return batch.select(torch.randperm(len(batch)))


@pytest.mark.parametrize("specs", [ALIKE, WIDER])
def test_statistics_of_networks_with_the_same_tensors(specs: tuple[WeightSpec, ...]) -> None:
    batch = mixed(specs)
    found = TensorStatistics(specs)(batch)
    assert found.shape == (len(batch), STATISTICS * len(specs[0].tensors))
    for positions, part in batch.split():
        torch.testing.assert_close(found[positions], statistics(part), rtol=1e-12, atol=1e-12)


def test_statistics_of_varied_networks_are_means_over_places() -> None:
    batch = mixed(VARIED)
    reader = TensorStatistics(VARIED)
    found = reader(batch).reshape(len(batch), len(reader.slots), STATISTICS + 1)
    for positions, part in batch.split():
        each = statistics(part).reshape(len(part), -1, STATISTICS)
        names = slot_names(part.spec, by_name=False)
        for slot, number in reader.slots.items():
            of_slot = [i for i, name in enumerate(names) if name == slot]
            assert (found[positions, number, -1] == len(of_slot)).all()
            expected = each[:, of_slot].mean(1) if of_slot else torch.zeros(len(part), STATISTICS)
            torch.testing.assert_close(found[positions, number, :-1], expected.double(), rtol=1e-12, atol=1e-12)


def test_places_are_counted_from_both_ends() -> None:
    assert slots_of(VARIED[:3]) == (
        "first weight", "first bias", "hidden weight", "hidden bias", "last weight", "last bias",
    )  # fmt: skip
    assert slot_names(VARIED[2], False)[4:6] == ("hidden weight", "hidden bias")
    assert slots_of(ALIKE) == tuple(t.name for t in ALIKE[0].tensors)


@pytest.mark.parametrize("specs", [ALIKE, WIDER, VARIED])
def test_permutations_pass_unnoticed_and_other_changes_do_not(specs: tuple[WeightSpec, ...]) -> None:
    batch = mixed(specs)
    encoder = StatNN(SpecFamily(specs), 3, hidden=(8,)).double()
    encoder.fit_statistics(batch)
    moved = act_mixed(draw_mixed(batch), batch)
    assert not torch.equal(moved.values, batch.values)
    torch.testing.assert_close(encoder(moved), encoder(batch), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(encoder(batch.with_values(batch.values * 1.1)), encoder(batch))


@pytest.mark.parametrize("specs", [ALIKE, VARIED])
def test_a_network_alone_gives_what_it_gives_in_any_batch(specs: tuple[WeightSpec, ...]) -> None:
    batch = mixed(specs)
    encoder = StatNN(SpecFamily(specs), 3, hidden=(8,)).double()
    encoder.fit_statistics(batch)
    alone = torch.cat([encoder(batch.select(torch.tensor([i]))) for i in range(len(batch))])
    torch.testing.assert_close(alone, encoder(batch), rtol=1e-10, atol=1e-10)


def test_a_flat_mlp_reads_rows_that_store_the_same_tensors() -> None:
    batch = mixed(ALIKE)
    encoder = FlatMLP(SpecFamily(ALIKE), 3, hidden=(8,)).double()
    encoder.fit_statistics(batch)
    torch.testing.assert_close(encoder.mean, batch.stacked().squeeze(-1).mean(0))
    for positions, part in batch.split():
        torch.testing.assert_close(encoder(part), encoder(batch)[positions])
    with pytest.raises(UnsupportedSpecError, match="store the same tensors"):
        FlatMLP(SpecFamily(VARIED), 3)
    with pytest.raises(ValueError, match="was built for"):
        encoder(mixed(WIDER))
    with pytest.raises(ValueError, match="cannot be stacked"):
        mixed(WIDER).stacked()


def probing(specs: tuple[WeightSpec, ...]) -> ProbeMLP:
    return ProbeMLP(SpecFamily(specs), 3, probes=4, probe_size=6, hidden=(8,)).double()


def test_probes_read_what_each_network_answers_and_nothing_else() -> None:
    specs = VARIED[:3]
    batch, encoder = mixed(specs), probing(specs)
    answers = encoder.answers(batch)
    assert answers.shape == (len(batch), 4 * 2)
    for positions, part in batch.split():
        torch.testing.assert_close(answers[positions], execute(part, encoder.probes).flatten(1))
    moved = act_mixed(draw_mixed(batch, symmetries=("permutation", "scaling", "sign")), batch)
    assert not torch.equal(moved.values, batch.values)
    torch.testing.assert_close(encoder(moved), encoder(batch), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(encoder(batch.with_values(batch.values * 1.1)), encoder(batch))


def test_probes_of_a_network_alone_are_those_in_any_batch() -> None:
    batch, encoder = mixed(VARIED[:3]), probing(VARIED[:3])
    alone = torch.cat([encoder(batch.select(torch.tensor([i]))) for i in range(len(batch))])
    torch.testing.assert_close(alone, encoder(batch), rtol=1e-10, atol=1e-10)
    assert encoder(batch.select(torch.tensor([], dtype=torch.int64))).shape == (0, 3)


def test_probes_learn_from_every_architecture() -> None:
    batch, encoder = mixed(VARIED[:3]), probing(VARIED[:3])
    for positions, _ in batch.split():
        encoder.zero_grad()
        encoder(batch)[positions].square().sum().backward()
        assert encoder.probes.grad is not None
        assert (encoder.probes.grad.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize(
    "specs, reason",
    [
        (VARIED, "reads sequence inputs"),
        ((cnn_spec(), cnn_spec(classes=5)), "the same outputs of all networks"),
        ((cnn_spec(), cnn_spec(channels=(2, 4, 3))), "inputs that all networks read"),
    ],
)
def test_probes_refuse_networks_that_do_not_answer_alike(specs: tuple[WeightSpec, ...], reason: str) -> None:
    with pytest.raises(UnsupportedSpecError, match=reason):
        probing(specs)


def test_probe_features_of_blocks_are_of_vectors() -> None:
    with pytest.raises(SpecError, match="edge lists run those of images"):
        ProbeFeatures(cnn_spec(), probes=4, width=8)
