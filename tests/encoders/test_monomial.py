"""Monomial-NFN: published size, every option against every symmetry, families of activations, refusals."""

from __future__ import annotations

import dataclasses

import label_specs
import pytest
import torch
from random_networks import difference, networks

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.encoders.base import UnsupportedSpecError
from wsl.encoders.monomial import Monomial
from wsl.execute import execute
from wsl.nn.monomial.invariants import unit
from wsl.spec import Connection, Label, NeuronGroup, StoredTensor, VirtualTensor, WeightSpec, mlp_spec
from wsl.spec.family import SpecFamily
from wsl.symmetry import act, draw, inverse

WIDTHS = [2, 7, 6, 5, 3]
STRESS = (1e-4, 1e4)
TOLERANCE = 1e-10


def mixed(activations: tuple[str, str, str]) -> WeightSpec:
    """An MLP with an activation of its own after every hidden layer; its function can be run."""
    spec = mlp_spec(WIDTHS, "gelu")
    labels, groups = list(spec.labels), list(spec.groups)
    for n, activation in enumerate(activations, start=1):
        one = mlp_spec([1, 2, 1], activation, {"omega": 3.0} if activation == "sine" else None)
        labels[n] = dataclasses.replace(labels[n], symmetries=one.labels[1].symmetries)
        groups[n] = NeuronGroup(groups[n].name, groups[n].label, activation, one.groups[1].parameters)
    return spec.replace(labels=tuple(labels), groups=tuple(groups))


def cnn(activation: str, last_kernel: int = 1) -> WeightSpec:
    """Convolutions 1 → 4 → 5, averaged over positions, then three classes (a linear layer, or a convolution)."""
    allowed = {"relu": ("scaling",), "tanh": ("sign",)}[activation]
    labels = [Label("x", 1, "input"), Label("a", 4, "hidden", ("permutation", *allowed))]
    labels += [Label("b", 5, "hidden", ("permutation", *allowed)), Label("y", 3, "output"), Label("cells", 9, "fixed")]
    groups = [NeuronGroup("x", "x"), NeuronGroup("a", "a", activation), NeuronGroup("b", "b", activation)]
    groups += [NeuronGroup("pooled", "b"), NeuronGroup("y", "y")]
    stored, tensors, connections, offset = [], [], [], 0
    for name, out, into, cells in (("c1", "a", "x", 9), ("c2", "b", "a", 9), ("head", "y", "b", last_kernel**2)):
        size = {label.name: label.size for label in labels}
        shape = (size[out], size[into], *((cells,) if cells > 1 else ()))
        count = size[out] * size[into] * cells
        stored += [
            StoredTensor(f"{name}.weight", shape, offset),
            StoredTensor(f"{name}.bias", (size[out],), offset + count),
        ]
        axes, power = ((out, into, "cells"), (1, -1, 0)) if cells > 1 else ((out, into), (1, -1))
        strides = (size[into] * cells, cells, 1)[: len(shape)] if cells > 1 else (size[into], 1)
        tensors.append(VirtualTensor(f"{name}.weight", "weight", offset, shape, strides, axes, power))
        tensors.append(VirtualTensor(f"{name}.bias", "bias", offset + count, (size[out],), (1,), (out,), (1,)))
        offset += count + size[out]
        parts = {"weight": f"{name}.weight", "bias": f"{name}.bias"}
        if name == "head" and cells == 1:
            connections.append(Connection("b", "pooled", "pool", {}, {"op": "global_avg"}))
            connections.append(Connection("pooled", "y", "linear", parts))
        else:
            connections.append(Connection(into, out, "conv", parts, {"kernel": [3, 3]}))
    groups = groups if last_kernel == 1 else [g for g in groups if g.name != "pooled"]
    return WeightSpec(stored, tensors, labels, groups, connections)


SPECS = {
    "relu": mlp_spec(WIDTHS, "relu"),
    "tanh": mlp_spec(WIDTHS, "tanh"),
    "siren": mlp_spec([2, 7, 6, 3], "sine", {"omega": 30.0}, output_offset=0.5),
    "linear": mlp_spec(WIDTHS, "identity"),
    "gelu": mlp_spec(WIDTHS, "gelu"),
    "mixed": mixed(("relu", "tanh", "gelu")),
    "mixed_back": mixed(("sine", "leaky_relu", "identity")),
    "two_layers": mlp_spec([3, 6, 2], "tanh"),
    "cnn_relu": cnn("relu"),
    "cnn_tanh": cnn("tanh"),
    "cnn_conv_last": cnn("relu", last_kernel=3),
}  # fmt: skip
OPTIONS: dict[str, dict[str, object]] = {
    "published": {},
    "rich": {"gated": True, "normal": "joint", "pooling": "rich", "paths": 4},
    "l1": {"normal": "l1", "odd": "tanh", "positive": "leaky_relu"},
    "squared": {"normal": "squared_l2", "positive": "abs", "odd": "identity"},
    "plain": {"normal": "l2", "normalize": False, "init": "kaiming_normal"},
    "equivariant": {"equivariant": True},
    "equivariant_rich": {"equivariant": True, "gated": True, "paths": 3, "init": "uniform"},
}
INPUTS = {"mlp": (5,), "cnn": (4, 1, 9, 9)}


def build(spec: WeightSpec | SpecFamily, **options: object) -> Monomial:
    torch.manual_seed(3)
    return Monomial(spec, 3, **{"channels": (6, 5), "head": (16,)} | options).double().eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", SPECS)
def test_every_symmetry_also_under_stress(name: str, option: str) -> None:
    spec = SPECS[name]
    encoder, batch = build(spec, **OPTIONS[option]), networks(spec)
    encoder.fit_statistics(batch)
    before = encoder(batch)
    assert (before - before.mean(0)).abs().max() > 1e-6, "the encoder sees the networks"
    for symmetry in ("permutation", "scaling", "sign"):
        for scale in ((0.1, 10.0), STRESS):
            element = draw(spec, len(batch), symmetries=(symmetry,), scale=scale, dtype=torch.float64)
            after = encoder(act(element, batch))
            if encoder.equivariant:
                after = act(inverse(element), batch.with_values(after)).values
            assert difference(after, before) < TOLERANCE, (symmetry, scale)


@pytest.mark.parametrize("name", SPECS)
def test_the_same_elements_leave_the_networks_functions_alone(name: str) -> None:
    spec = SPECS[name]
    batch = networks(spec)
    inputs = torch.randn(3, spec.size_of("input"), dtype=torch.float64) if "cnn" not in name else None
    inputs = torch.randn(3, 1, 9, 9, dtype=torch.float64) if inputs is None else inputs
    before = execute(batch, inputs)
    for symmetry in ("permutation", "scaling", "sign"):
        element = draw(spec, len(batch), symmetries=(symmetry,), dtype=torch.float64)
        assert difference(execute(act(element, batch), inputs), before) < TOLERANCE


ILLEGAL = [("relu", "sign"), ("tanh", "scaling"), ("gelu", "scaling"), ("gelu", "sign"), ("mixed", "scaling")]


@pytest.mark.parametrize(("name", "illegal"), ILLEGAL)
@pytest.mark.parametrize("option", ["published", "rich", "equivariant"])
def test_notices_actions_that_change_the_function(name: str, illegal: str, option: str) -> None:
    spec = SPECS[name]
    false = mlp_spec(WIDTHS, "identity")
    labels = tuple(dataclasses.replace(la, symmetries=(illegal,)) if la.kind == "hidden" else la for la in false.labels)
    batch = networks(spec)
    element = draw(false.replace(labels=labels), len(batch), symmetries=(illegal,), dtype=torch.float64)
    encoder = build(spec, **OPTIONS[option])
    after = encoder(act(element, batch))
    if encoder.equivariant:
        after = act(inverse(element), batch.with_values(after)).values
    assert difference(after, encoder(batch)) > 1e-6


@pytest.mark.parametrize("option", ["published", "rich"])
def test_notices_scales_of_rows_without_their_columns(option: str) -> None:
    spec = SPECS["relu"]
    encoder, batch = build(spec, **OPTIONS[option]), networks(spec)
    values = batch.values.clone()
    row = spec.tensor["seq.0.weight"].index()[0]
    values[:, torch.from_numpy(row)] *= torch.rand(1, len(row), 1, dtype=torch.float64) + 1
    assert difference(encoder(batch.with_values(values)), encoder(batch)) > 1e-6


def test_the_published_model_of_the_small_cnn_zoo_has_its_size() -> None:
    assert sum(p.numel() for p in Monomial(label_specs.small_cnn("scaling"), 1).parameters()) == 254_619


def test_zero_networks_and_zero_neurons_give_finite_outputs_and_gradients() -> None:
    for name in ("relu", "tanh", "cnn_relu"):
        for option in OPTIONS:
            encoder = build(SPECS[name], **OPTIONS[option])
            values = networks(SPECS[name]).values.clone()
            values[0] = 0
            values[1, : SPECS[name].numel // 2] = 0
            values.requires_grad_()
            out = encoder(WeightBatch(SPECS[name], values))
            (grad,) = torch.autograd.grad(out.square().sum(), values)
            assert out.isfinite().all() and grad.isfinite().all()


def test_unit_vectors_keep_direction_at_any_scale_and_zero_stays_zero() -> None:
    x = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    for scale in (1e-30, 1.0, 1e30):
        torch.testing.assert_close(unit(x * scale), torch.tensor([[0.6, -0.8], [0.0, 0.0]]))
    torch.testing.assert_close(unit(x, order=1), torch.tensor([[3 / 7, -4 / 7], [0.0, 0.0]]))
    y = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, (y,))


# -- families ---------------------------------------------------------------------------------------------------------

FAMILY = SpecFamily((mlp_spec(WIDTHS, "relu"), mlp_spec(WIDTHS, "tanh"), mlp_spec(WIDTHS, "gelu")))


def interleaved(moved: tuple[str, ...] = ()) -> MixedWeightBatch:
    """Networks of all specs of the family, interleaved; moved by elements of each one's own group."""
    torch.manual_seed(5)
    parts = [networks(spec, 4) for spec in FAMILY]
    elements = [draw(p.spec, 4, symmetries=moved, scale=STRESS, dtype=torch.float64) for p in parts]
    batch = MixedWeightBatch.collate([act(e, p) if moved else p for e, p in zip(elements, parts, strict=True)])
    return batch.select(torch.arange(12).view(3, 4).T.flatten())


@pytest.mark.parametrize("option", ["published", "rich", "squared"])
def test_a_family_respects_each_networks_own_group(option: str) -> None:
    encoder = build(FAMILY, **OPTIONS[option])
    batch = interleaved()
    encoder.fit_statistics(batch)
    before = encoder(batch)
    for symmetry in ("permutation", "scaling", "sign"):
        assert difference(encoder(interleaved((symmetry,))), before) < TOLERANCE
    relu, tanh = networks(FAMILY.specs[0], 1), networks(FAMILY.specs[1], 1)
    assert difference(encoder(tanh.with_values(relu.values)), encoder(relu)) > 1e-6, "activations are told apart"


def test_a_family_gives_a_network_alone_what_it_gives_in_a_mixed_batch() -> None:
    for options in (OPTIONS["published"], OPTIONS["equivariant_rich"]):
        encoder, batch = build(FAMILY, **options), interleaved()
        together = encoder(batch)
        for positions, part in batch.split():
            alone = encoder(part)
            inside = together[positions] if not encoder.equivariant else together.view(len(batch), -1, 3)[positions]
            assert difference(alone, inside) < TOLERANCE


def test_families_that_differ_in_more_than_activations_are_refused() -> None:
    with pytest.raises(UnsupportedSpecError, match=r"activations only; spec 1, .*other tensors or labels"):
        build(SpecFamily((mlp_spec([2, 4, 3], "relu"), mlp_spec([2, 5, 3], "relu"))))


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_refuses_what_it_cannot_take() -> None:
    with pytest.raises(UnsupportedSpecError, match=r"'h' twice; use unf"):
        build(label_specs.elman(3, 4, 2))
    with pytest.raises(UnsupportedSpecError, match=r"paths=4 need a chain"):
        build(label_specs.residual(3, 4, 5, 2, {"i": "input", "o": "output"}), paths=4)
    with pytest.raises(UnsupportedSpecError, match=r"one layer"):
        build(mlp_spec([3, 2], "relu"), paths=4)
    with pytest.raises(ValueError, match="this encoder was built for"):
        build(SPECS["relu"])(networks(SPECS["tanh"]))
