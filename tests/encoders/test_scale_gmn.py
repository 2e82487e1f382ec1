"""ScaleGMN: published sizes, every option against every symmetry, both forms, families, what it must notice."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from random_networks import difference, networks

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.canonical import canonicalise
from wsl.encoders.base import UnsupportedSpecError
from wsl.encoders.scale_gmn import ScaleGMN
from wsl.execute import execute
from wsl.mixed_symmetry import act_mixed, draw_mixed
from wsl.nn.phases import fold_phases
from wsl.nn.scale_gmn.front import DenseFront, ListFront, reciprocal
from wsl.spec import SYMMETRIES, NeuronGroup, WeightSpec, mlp_spec
from wsl.spec.family import SpecFamily
from wsl.symmetry import act, draw, inverse
from wsl.zoo.build.wild_cnn import WildCNN

WIDTHS = [2, 7, 6, 5, 3]
STRESS = (1e-4, 1e4)
TOLERANCE = 1e-10


def mixed(activations: tuple[str, str, str]) -> WeightSpec:
    """An MLP with an activation of its own after every hidden layer."""
    spec = mlp_spec(WIDTHS, "gelu")
    labels, groups = list(spec.labels), list(spec.groups)
    for n, activation in enumerate(activations, start=1):
        one = mlp_spec([1, 2, 1], activation, {"omega": 3.0} if activation == "sine" else None)
        labels[n] = dataclasses.replace(labels[n], symmetries=one.labels[1].symmetries)
        groups[n] = NeuronGroup(groups[n].name, groups[n].label, activation, one.groups[1].parameters)
    return spec.replace(labels=tuple(labels), groups=tuple(groups))


def cnn(activation: str, widths: tuple[int, ...] = (4, 5), inputs: int = 1, classes: int = 3) -> WeightSpec:
    layers = len(widths)
    return WildCNN(inputs, widths, (3,) * layers, (activation,) * layers, (-1,) * layers, classes).spec()


SPECS = {
    "relu": mlp_spec(WIDTHS, "relu"),
    "tanh": mlp_spec(WIDTHS, "tanh"),
    "siren": mlp_spec([2, 7, 6, 3], "sine", {"omega": 30.0}, output_offset=0.5),
    "linear": mlp_spec(WIDTHS, "identity"),
    "gelu": mlp_spec(WIDTHS, "gelu"),
    "mixed": mixed(("relu", "tanh", "gelu")),
    "mixed_back": mixed(("sine", "leaky_relu", "identity")),
    "one_hidden": mlp_spec([3, 6, 2], "tanh"),
    "cnn_relu": cnn("relu"),
    "cnn_tanh": cnn("tanh"),
    "skips": WildCNN(3, (4, 6, 4), (3, 5, 1), ("relu", "relu", "tanh"), (-1, -1, 0), 5).spec(),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "forward": {},
    "both_ways": {"bidirectional": True},
    "abs": {"sign": "abs", "bidirectional": True, "normalize": False},
    "no_norm": {"sign": "abs", "norm": "none"},
    "full": {"readout": "full", "end_functions": "separate", "skip": True, "edge_codes": True},
    "full_both_ways": {"readout": "full", "bidirectional": True, "edge_codes": True},
    "codes": {"bidirectional": True, "codes_in_layers": True, "end_functions": "separate"},
    "edges": {"form": "edges", "bidirectional": True, "skip": True},
}


def build(spec: WeightSpec | SpecFamily, **options: Any) -> ScaleGMN:
    torch.manual_seed(3)
    return ScaleGMN(spec, 3, **{"width": 8, "layers": 4} | options).double().eval()


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", SPECS)
def test_every_symmetry_also_under_stress(name: str, option: str) -> None:
    spec = SPECS[name]
    encoder, batch = build(spec, **OPTIONS[option]), networks(spec)
    encoder.fit_statistics(batch)
    before = encoder(batch)
    assert (before - before.mean(0)).abs().max() > 1e-6, "the encoder sees the networks"
    for symmetry in [s for s in SYMMETRIES if spec.labels_with(s)]:
        for scale in ((0.1, 10.0), STRESS)[: 2 if symmetry == "scaling" else 1]:
            element = draw(spec, len(batch), symmetries=(symmetry,), scale=scale, dtype=torch.float64)
            assert difference(encoder(act(element, batch)), before) < TOLERANCE, (symmetry, scale)


ILLEGAL = [
    ("relu", "sign"), ("tanh", "scaling"), ("gelu", "scaling"), ("gelu", "sign"), ("mixed", "scaling"),
    ("mixed_back", "scaling"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "illegal"), ILLEGAL)
@pytest.mark.parametrize("option", OPTIONS)
def test_notices_actions_that_change_the_function(name: str, illegal: str, option: str) -> None:
    spec = SPECS[name]
    batch = networks(spec)
    element = draw(SPECS["linear"], 5, symmetries=(illegal,), scale=(0.5, 2.0), dtype=torch.float64)
    encoder = build(spec, **OPTIONS[option])
    assert difference(encoder(act(element, batch)), encoder(batch)) > 1e-6


def test_notices_scales_of_rows_without_their_columns() -> None:
    for option in OPTIONS.values():
        for name in ("relu", "linear", "tanh"):
            spec = SPECS[name]
            encoder, batch = build(spec, **option), networks(spec)
            values = batch.values.clone()
            values[:, torch.from_numpy(spec.tensor["seq.0.weight"].index()[0])] *= 1.5
            assert difference(encoder(batch.with_values(values)), encoder(batch)) > 1e-6


def test_forward_edges_alone_would_not_do_both_ways() -> None:
    """The published bidirectional model sends forward edge states backwards, which scaling notices."""
    spec = SPECS["relu"]
    encoder, batch = build(spec, bidirectional=True), networks(spec)
    element = draw(spec, 5, symmetries=("scaling",), dtype=torch.float64)
    original = encoder._first

    def wrong(mixed: MixedWeightBatch) -> Any:
        first = original(mixed)
        return first._replace(back=first.edges)

    encoder._first = wrong  # type: ignore[method-assign]
    assert difference(encoder(act(element, batch)), encoder(batch)) > 1e-6


# -- published models -------------------------------------------------------------------------------------------------

SMALL_CNN = {name: cnn(name, (16, 16, 16), classes=10) for name in ("relu", "tanh")}
INRS = {n: mlp_spec([2, 32, 32, n], "sine", {"omega": 30.0}) for n in (1, 3)}
SEPARATE = {"end_functions": "separate"}
CODED = {"skip": True, "edge_codes": True}
BACK = {"bidirectional": True}
FULL = {"readout": "full", **SEPARATE}
SIZES = [
    pytest.param(SMALL_CNN["relu"], 1, {}, 1_356_801, id="cnn_cifar10_relu"),
    pytest.param(SMALL_CNN["relu"], 1, BACK, 2_263_809, id="cnn_cifar10_relu_b"),
    pytest.param(SMALL_CNN["tanh"], 1, FULL, 2_318_849, id="cnn_cifar10_tanh"),
    pytest.param(SMALL_CNN["tanh"], 1, FULL | BACK, 3_441_665, id="cnn_cifar10_tanh_b"),
    pytest.param(SMALL_CNN["relu"], 1, FULL | {"width": 64, "skip": True}, 467_969, id="cnn_svhn_relu"),
    pytest.param(SMALL_CNN["tanh"], 1, SEPARATE | {"width": 64, "norm": "none"}, 547_457, id="cnn_svhn_tanh"),
    pytest.param(INRS[1], 10, CODED, 1_772_042, id="mnist"),
    pytest.param(INRS[1], 10, BACK | {"codes_in_layers": True}, 3_089_162, id="mnist_b"),
    pytest.param(INRS[1], 10, FULL | CODED | {"layers": 2}, 1_160_970, id="fashion"),
    pytest.param(INRS[1], 10, FULL | CODED | BACK | {"layers": 2}, 1_722_378, id="fashion_b"),
    pytest.param(INRS[3], 10, SEPARATE | {"width": 64, "sign": "abs"}, 397_450, id="cifar10"),
    pytest.param(INRS[3], 10, BACK | {"width": 64, "sign": "abs", "norm": "none"}, 492_298, id="cifar10_b"),
    pytest.param(INRS[3], 10, FULL | {"skip": True}, 2_285_322, id="cifar10_augmented"),
    pytest.param(INRS[3], 10, SEPARATE | BACK | {"skip": True}, 3_324_938, id="cifar10_augmented_b"),
]


@pytest.mark.parametrize(("spec", "out", "options", "size"), SIZES)
def test_published_models_have_their_sizes(spec: WeightSpec, out: int, options: dict[str, Any], size: int) -> None:
    assert sum(p.numel() for p in ScaleGMN(spec, out, **options).parameters()) == size


# -- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SPECS if name != "skips"])
@pytest.mark.parametrize("option", ["both_ways", "full", "full_both_ways", "codes"])
def test_blocks_equal_edges(name: str, option: str) -> None:
    spec = SPECS[name]
    blocks, edges = (build(spec, **OPTIONS[option] | {"form": form}) for form in ("blocks", "edges"))
    assert isinstance(blocks.front, DenseFront) and isinstance(edges.front, ListFront)
    edges.load_state_dict(blocks.state_dict())
    batch, results = networks(spec), []
    for encoder in (blocks, edges):
        encoder.fit_statistics(batch)
        values = batch.values.clone().requires_grad_()
        out = encoder(batch.with_values(values))
        grads = torch.autograd.grad(out.sin().sum(), [values, *encoder.parameters()], allow_unused=True)
        results.append([out, *grads])
    for one, other in zip(*results, strict=True):
        assert (one is None) == (other is None)
        assert one is None or (one - other).abs().max() <= 1e-10 * one.abs().max().clamp(min=1e-8)


def test_auto_takes_edges_where_there_are_no_blocks() -> None:
    assert isinstance(build(SPECS["skips"]).front, ListFront)
    assert isinstance(build(SPECS["cnn_relu"]).front, DenseFront)


# -- families ---------------------------------------------------------------------------------------------------------

WILD = SpecFamily(
    (
        SPECS["skips"],
        WildCNN(3, (4, 8), (5, 3), ("gelu", "leaky_relu"), (-1, -1), 5).spec(),
        WildCNN(3, (6, 4, 4), (3, 3, 3), ("identity", "sigmoid", "relu"), (-1, -1, 0), 5).spec(),
    )
)


def wild(size: int = 3) -> MixedWeightBatch:
    batch = MixedWeightBatch.collate([networks(spec, size) for spec in WILD])
    return batch.select(torch.arange(len(batch)).view(len(WILD), -1).T.flatten())


@pytest.mark.parametrize("option", [name for name in OPTIONS if name != "forward"])
def test_a_family_respects_each_networks_own_group(option: str) -> None:
    encoder, batch = build(WILD, **OPTIONS[option]), wild()
    encoder.fit_statistics(batch)
    before = encoder(batch)
    assert (before - before.mean(0)).abs().max() > 1e-6
    for symmetry in ("permutation", "scaling", "sign"):
        element = draw_mixed(batch, symmetries=(symmetry,), scale=STRESS)
        assert difference(encoder(act_mixed(element, batch)), before) < TOLERANCE, symmetry


def test_a_network_alone_gives_what_it_gives_in_a_mixed_batch() -> None:
    for option in ("full_both_ways", "edges"):
        encoder, batch = build(WILD, **OPTIONS[option]), wild()
        together = encoder(batch)
        for positions, part in batch.split():
            assert difference(encoder(part), together[positions]) < TOLERANCE
        assert encoder(batch.select(torch.arange(0))).shape == (0, 3)


def test_activations_of_a_family_are_told_apart() -> None:
    family = SpecFamily((mlp_spec(WIDTHS, "relu"), mlp_spec(WIDTHS, "leaky_relu")))
    encoder, batch = build(family), networks(family.specs[0])
    assert difference(encoder(dataclasses.replace(batch, spec=family.specs[1])), encoder(batch)) > 1e-6


# -- fields -----------------------------------------------------------------------------------------------------------

FIELDS: dict[str, dict[str, Any]] = {
    "forward": {},
    "both_ways": {"bidirectional": True, "skip": True, "edge_codes": True, "end_functions": "separate"},
    "abs": {"bidirectional": True, "sign": "abs", "norm": "none", "codes_in_layers": True},
}


def editor(spec: WeightSpec | SpecFamily, option: str) -> ScaleGMN:
    return build(spec, **FIELDS[option], width=6, layers=2, equivariant=True, field_scale=0.5)


@pytest.mark.parametrize("option", FIELDS)
@pytest.mark.parametrize("name", SPECS)
def test_fields_have_the_factors_of_the_parameters(name: str, option: str) -> None:
    """g⁻¹ · field(g · w) = field(w): compared where all entries have one size, whatever the factors."""
    spec = SPECS[name]
    encoder, batch = editor(spec, option), networks(spec)
    encoder.fit_statistics(batch)
    before = encoder(batch)
    assert before.shape == (5, spec.numel, 3) and (before.abs().amax(0) > 1e-8).all(), "every parameter is edited"
    for symmetry in [s for s in SYMMETRIES if spec.labels_with(s)]:
        for scale in ((0.1, 10.0), STRESS)[: 2 if symmetry == "scaling" else 1]:
            element = draw(spec, len(batch), symmetries=(symmetry,), scale=scale, dtype=torch.float64)
            after = encoder(act(element, batch))
            back = act(inverse(element), batch.with_values(after), shift=False).values
            assert difference(back, before) < TOLERANCE, (symmetry, scale)


@pytest.mark.parametrize(("name", "illegal"), ILLEGAL)
@pytest.mark.parametrize("option", FIELDS)
def test_fields_do_not_follow_actions_that_change_the_function(name: str, illegal: str, option: str) -> None:
    batch = networks(SPECS[name])
    element = draw(SPECS["linear"], 5, symmetries=(illegal,), scale=(0.5, 2.0), dtype=torch.float64)
    encoder = editor(SPECS[name], option)
    back = act(inverse(element), batch.with_values(encoder(act(element, batch)))).values
    assert difference(back, encoder(batch)) > 1e-4


@pytest.mark.parametrize("option", FIELDS)
def test_fields_of_a_family_follow_each_networks_own_group(option: str) -> None:
    encoder, batch = editor(WILD, option), wild()
    encoder.fit_statistics(batch)
    before = encoder(batch)
    assert before.shape == (len(batch.values), 3)
    for symmetry in ("permutation", "scaling", "sign"):
        element = draw_mixed(batch, symmetries=(symmetry,), scale=(0.1, 10.0))
        expected = act_mixed(element, batch.with_values(before)).values
        assert difference(encoder(act_mixed(element, batch)), expected) < TOLERANCE, symmetry
    for positions, part in batch.split():
        rows = torch.cat([torch.arange(*batch.offsets[p : p + 2]) for p in positions])
        assert difference(encoder(part).flatten(0, 1), before[rows]) < TOLERANCE
    assert encoder(batch.select(torch.arange(0))).shape == (0, 3)


def test_fields_do_not_grow_with_depth() -> None:
    """States do, by the number of neurons that are summed over, in every layer."""
    for name in ("siren", "relu"):
        wide = mlp_spec(
            [2, 32, 32, 3], "sine" if name == "siren" else "relu", {"omega": 30.0} if name == "siren" else None
        )
        batch = networks(wide)
        for layers in (1, 6):
            encoder = build(wide, bidirectional=True, skip=True, layers=layers, equivariant=True, field_scale=1.0)
            encoder.fit_statistics(batch)
            assert 0.05 < encoder(batch).square().mean().sqrt() < 20, (name, layers)


def test_weights_that_are_zero_are_edited_too() -> None:
    spec = SPECS["relu"]
    batch, weight = networks(spec), torch.from_numpy(spec.tensor["seq.2.weight"].index().ravel())
    values = batch.values.clone()
    values[:, weight] = 0
    assert (editor(spec, "both_ways")(batch.with_values(values))[:, weight].abs() > 1e-8).all()


# -- phases -----------------------------------------------------------------------------------------------------------


def test_folded_biases_are_the_canonical_ones_and_leave_the_function_alone() -> None:
    spec = SPECS["siren"]
    batch = networks(spec)
    folded = fold_phases(batch.flat()).stacked()
    torch.testing.assert_close(folded, canonicalise(batch, ("phase",))[0].values, rtol=0, atol=1e-14)
    bias = batch.with_values(folded)["seq.0.bias"]
    assert (30 * bias).abs().max() <= torch.pi / 2 + 1e-12 and (30 * batch["seq.0.bias"]).abs().max() > 3
    inputs = torch.rand(9, 2, dtype=torch.float64)
    assert difference(execute(batch.with_values(folded), inputs), execute(batch, inputs)) < 1e-10


def test_phases_are_noticed_where_they_are_not_folded() -> None:
    encoder, batch = build(SPECS["siren"], fold_phases=False), networks(SPECS["siren"])
    assert encoder.symmetries == {"permutation", "scaling", "sign"}
    element = draw(SPECS["siren"], 5, symmetries=("phase",), dtype=torch.float64)
    assert difference(encoder(act(element, batch)), encoder(batch)) > 1e-6


# -- zeros, refusals --------------------------------------------------------------------------------------------------


def test_zero_networks_and_zero_neurons_give_finite_outputs_and_gradients() -> None:
    for name in ("relu", "tanh", "cnn_relu"):
        for option in ("both_ways", "abs", "full_both_ways"):
            encoder = build(SPECS[name], **OPTIONS[option])
            values = networks(SPECS[name]).values.clone()
            values[0] = 0
            values[1, : SPECS[name].numel // 2] = 0
            values.requires_grad_()
            out = encoder(WeightBatch(SPECS[name], values))
            (grad,) = torch.autograd.grad(out.square().sum(), values)
            assert out.isfinite().all() and grad.isfinite().all()


def test_reciprocals() -> None:
    v = torch.tensor([[4.0], [-1e-30], [0.0]], dtype=torch.float64)
    torch.testing.assert_close(reciprocal(v), torch.tensor([[0.25], [-1e30], [0.0]], dtype=torch.float64))
    kernel = torch.randn(5, 9, dtype=torch.float64)
    torch.testing.assert_close((reciprocal(kernel) * kernel).sum(-1), torch.ones(5, dtype=torch.float64))


def test_refuses_what_it_cannot_take() -> None:
    tensors = [dataclasses.replace(t, scaling=(2,)) if t.role == "bias" else t for t in SPECS["relu"].tensors]
    squared = SPECS["relu"].replace(tensors=tuple(tensors))
    with pytest.raises(UnsupportedSpecError, match=r"set form=edges"):
        build(SPECS["skips"], form="blocks")
    with pytest.raises(UnsupportedSpecError, match=r"mixed zoo"):
        build(WILD, form="blocks")
    with pytest.raises(UnsupportedSpecError, match=r"fields on edge lists: set form=edges"):
        build(SPECS["relu"], form="blocks", equivariant=True)
    with pytest.raises(UnsupportedSpecError, match=r"do not scale like a bias .* encoder=canonical"):
        build(squared)
    with pytest.raises(ValueError, match="one channel"):
        build(SPECS["relu"])(WeightBatch(SPECS["relu"], torch.zeros(1, SPECS["relu"].numel, 2, dtype=torch.float64)))


@pytest.mark.parametrize("width", [4, 1])
def test_weights_that_decay_took_to_nothing_do_not_overflow(width: int) -> None:
    """A dead neuron, as weight decay leaves it: what goes in and out is nothing but for its exponent."""
    spec = cnn("relu")
    batch = WeightBatch(spec, torch.randn(3, spec.numel, 1) * 0.1)
    encoder = ScaleGMN(spec, 2, width=8, layers=4, bidirectional=True).eval()
    name = next(t.name for t in spec.tensors if t.role == "weight")
    values = batch.values.clone()
    dead = batch.with_values(values)
    dead[name][:, :width] *= 1e-35
    assert not torch.equal(dead.values, batch.values)
    assert encoder(dead).isfinite().all()
    assert torch.equal(reciprocal(torch.tensor([[1e-35, -2e-34], [0.0, 0.0]])), torch.zeros(2, 2))
    none = batch.with_values(values.clone())
    none[name][:, :width] = 0.0
    torch.testing.assert_close(encoder(dead), encoder(none), rtol=1e-3, atol=1e-4)
    encoder(dead).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())
