"""NG-T: the published sizes, the symmetries, and no influence of what else is in a batch."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from graph_specs import random_batch, spec_named
from torch import Tensor

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.encoders.attention_options import AttentionOptionError
from wsl.encoders.base import UnsupportedSpecError
from wsl.encoders.ng_transformer import NGTransformer
from wsl.mixed_symmetry import act_mixed, draw_mixed
from wsl.spec import WeightSpec, mlp_spec
from wsl.spec.family import SpecFamily
from wsl.symmetry import GroupElement, act, draw
from wsl.zoo.build.wild_cnn import WildCNN

SINE = mlp_spec((2, 32, 32, 1), "sine", {"omega": 30.0}, output_offset=0.5)
MIXED = ("lenet", "resnet_a", "resnet_b")
FORMS = ("dense", "sparse")
ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "identity")  # each has a row of its own


def small(spec: WeightSpec | SpecFamily, **options: Any) -> NGTransformer:
    torch.manual_seed(0)
    sizes = {"node_width": 8, "edge_width": 6, "width": 8, "hidden": 10, "edge_hidden": 6, "layers": 2, "heads": 2}
    return NGTransformer(spec, 5, **(sizes | {"head": (8,)} | {"fourier_std": 0.3} | options)).double().eval()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * float(b.detach().abs().max()))


@cache
def family() -> SpecFamily:
    return SpecFamily(tuple(spec_named(name) for name in MIXED))


def test_parameter_counts_are_the_published_ones() -> None:
    assert sum(p.numel() for p in NGTransformer(SINE, 10).parameters()) == 376_586
    assert sum(p.numel() for p in NGTransformer(SINE, 10, probes=64).parameters()) == 393_866
    zoo = [WildCNN(1, (16,) * 3, (3,) * 3, (name,) * 3, (-1,) * 3).spec() for name in ACTIVATIONS]
    sizes = {"node_width": 128, "edge_width": 64, "width": 256, "hidden": 256, "edge_hidden": 128, "head": (256, 256)}
    assert sum(p.numel() for p in NGTransformer(SpecFamily(tuple(zoo)), 1, **sizes).parameters()) == 1_807_873


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("readout", ["outputs", "mean", "max", "attention", "class_token"])
@pytest.mark.parametrize("name", ["lenet", "resnet_a", "gpt", "lstm"])
def test_invariant_to_the_permutations_of_any_spec(form: str, readout: str, name: str) -> None:
    spec = spec_named(name)
    model = small(spec, form=form, readout=readout, reverse_features=readout == "mean")
    batch = random_batch(spec)
    close(model(act(draw(spec, len(batch), dtype=torch.float64), batch)), model(batch))


@pytest.mark.parametrize("form", FORMS)
def test_inputs_and_outputs_are_not_interchangeable(form: str) -> None:
    spec = mlp_spec((4, 6, 5))
    model, batch = small(spec, form=form, layers=3), random_batch(spec)  # weights act as keys from the second on
    for kind in ("input", "output"):
        turned = torch.arange(spec.label[kind].size).roll(1).expand(len(batch), -1)
        moved = model(act(GroupElement(permutation={kind: turned}), batch))
        assert (moved - model(batch)).abs().max() > 1e-4 * model(batch).abs().max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("readout", ["outputs", "mean", "class_token"])
def test_a_network_alone_and_in_a_mixed_batch(form: str, readout: str) -> None:
    parts = [random_batch(spec, 2) for spec in family()]
    batch = MixedWeightBatch.collate(parts).select(torch.tensor([4, 0, 3, 5, 1, 2]))
    model = small(family(), form=form, readout=readout)
    together = model(batch)
    for number in range(len(batch)):
        close(model(batch.select(torch.tensor([number])))[0], together[number])
    alone = model(parts[0])
    close(alone, together[torch.tensor([1, 4])])


def test_sparse_differs_from_dense_only_in_its_pairs() -> None:
    """A network whose nodes are all joined (one neuron each) has the same pairs but for those of a node with itself."""
    spec = mlp_spec((2, 3, 1))
    dense, sparse = small(spec, form="dense"), small(spec, form="sparse")
    sparse.load_state_dict(dense.state_dict())
    batch = random_batch(spec)
    assert (dense(batch) - sparse(batch)).abs().max() > 1e-6


@pytest.mark.parametrize(
    "options",
    [{"modulation": False}, {"norm": "none"}, {"init": "t_fixup"}, {"probes": 3}, {"standardize": False}],
)
def test_options_keep_the_symmetry_and_gradients_reach_everything(options: dict[str, Any]) -> None:
    model = small(SINE, form="sparse", layers=3, **options)
    batch = random_batch(SINE, 3)
    batch = batch.with_values(batch.values * 0.1)
    model.fit_statistics(batch)
    close(model(act(draw(SINE, 3, dtype=torch.float64), batch)), model(batch))
    model.train()
    model(batch).square().sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


def test_t_fixup_scales_what_it_should() -> None:
    plain, fixed = small(SINE), small(SINE, init="t_fixup")
    factor = 0.67 * 2**-0.25
    a, b = plain.layers[0].attention, fixed.layers[0].attention
    torch.testing.assert_close(b.edge_value.weight, factor * a.edge_value.weight, rtol=1e-6, atol=0)
    close(b.node_maps[0].weight, a.node_maps[0].weight)


def test_a_batch_of_another_spec_is_refused() -> None:
    with pytest.raises(ValueError, match="built for"):
        small(SINE)(random_batch(mlp_spec((2, 3, 1))))


def test_heads_that_do_not_share_the_width_are_refused() -> None:
    with pytest.raises(AttentionOptionError, match=r"encoder.heads=3 cannot share encoder.width=128"):
        NGTransformer(spec_named("mlp"), 3, heads=3)


def test_a_spec_without_a_graph_is_refused() -> None:
    with pytest.raises(UnsupportedSpecError, match="NG-T"):
        small(mlp_spec((2, 3)).replace(connections=()))


def test_weights_are_what_the_network_is_told_apart_by() -> None:
    batch = random_batch(SINE, 2)
    values = batch.values.clone()
    values[1] = values[0]
    same = small(SINE)(WeightBatch(SINE, values))
    close(same[0], same[1])
    assert (small(SINE)(batch)[0] - small(SINE)(batch)[1]).abs().max() > 1e-6


# -- fields over the parameters --------------------------------------------------------------------------------------

FIELD: dict[str, Any] = {"equivariant": True, "field_scale": 1.0}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [{}, {"reverse_features": True}])
def test_fields_of_mixed_networks_move_with_their_neurons(form: str, options: dict[str, Any]) -> None:
    model = small(family(), form=form, **FIELD, **options)
    batch = MixedWeightBatch.collate([random_batch(spec, 2) for spec in family()])
    model.fit_statistics(batch)
    element = draw_mixed(batch)
    field = model(batch)
    assert field.shape == (len(batch.values), 5)
    expected = act_mixed(element, batch.with_values(field)).values
    assert (expected - field).abs().max() > 1e-2 * field.abs().max(), "the element moves nothing"
    close(model(act_mixed(element, batch)), expected)
    alone = model(batch.select(torch.tensor([2])))
    close(alone, field[batch.offsets[2] : batch.offsets[3]])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["mlp", "gpt", "lstm"])
def test_fields_of_traced_networks_move_with_their_neurons(form: str, name: str) -> None:
    spec = spec_named(name)
    model, batch = small(spec, form=form, **FIELD), random_batch(spec)
    element = draw(spec, len(batch), dtype=torch.float64)
    field = model(batch)
    assert field.shape == (len(batch), spec.numel, 5)
    close(model(act(element, batch)), act(element, batch.with_values(field)).values)


@pytest.mark.parametrize("form", FORMS)
def test_a_field_uses_every_layer_and_tells_parameters_apart(form: str) -> None:
    model, batch = small(SINE, form=form, layers=3, probes=3, **FIELD), random_batch(SINE, 3)
    batch = batch.with_values(batch.values * 0.1)
    model.fit_statistics(batch)
    assert all(layer.update is not None for layer in model.layers), "also the last layer updates its pairs"
    field = model(batch)
    assert field.std(1).min() > 1e-3 * field.abs().max()
    field.square().sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing
    assert model(batch.select(torch.arange(0))).shape == (0, SINE.numel, 5)
