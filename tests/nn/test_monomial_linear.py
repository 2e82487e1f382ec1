"""Monomial layers: published parameter counts, the terms that survive, symmetry and its limits."""

from __future__ import annotations

import dataclasses

import label_specs
import pytest
import torch
from label_specs import small_cnn, with_symmetries
from torch import Tensor

from wsl.batch import WeightBatch
from wsl.nn.chain import chain
from wsl.nn.monomial.characters import RepeatedLabelError, monomial_layout
from wsl.nn.monomial.linear import MonomialLinear
from wsl.nn.unf.basis import BasisOptions
from wsl.nn.unf.layout import Layout
from wsl.nn.unf.linear import UNFLinear
from wsl.spec import NeuronGroup, WeightSpec, mlp_spec
from wsl.symmetry import act, draw, inverse

SINE = {"omega": 30.0}
SIREN_1, SIREN_3 = mlp_spec([2, 32, 32, 1], "sine", SINE), mlp_spec([2, 32, 32, 3], "sine", SINE)
RELU_1, RELU_3 = mlp_spec([2, 32, 32, 1], "relu"), mlp_spec([2, 32, 32, 3], "relu")


def layer_of(spec: WeightSpec, c_in: int, c_out: int) -> MonomialLinear:
    return MonomialLinear(monomial_layout((spec,)), c_in, c_out)


@pytest.mark.parametrize(
    ("spec", "c_in", "c_out", "count"),
    [
        pytest.param(small_cnn("scaling"), 1, 16, 7_584, id="cnn-1-16"),
        pytest.param(small_cnn("scaling"), 16, 16, 118_944, id="cnn-16-16"),
        pytest.param(small_cnn("scaling"), 16, 5, 37_170, id="cnn-16-5"),
        pytest.param(RELU_1, 16, 16, 3_344, id="siren1-pos-16"),
        pytest.param(SIREN_1, 16, 16, 3_856, id="siren1-sign-16"),
        pytest.param(RELU_1, 256, 256, 852_224, id="siren1-pos-256"),
        pytest.param(SIREN_1, 256, 256, 983_296, id="siren1-sign-256"),
        pytest.param(RELU_3, 16, 16, 7_472, id="siren3-pos-16"),
        pytest.param(SIREN_3, 16, 16, 9_008, id="siren3-sign-16"),
        pytest.param(RELU_3, 256, 256, 1_901_312, id="siren3-pos-256"),
        pytest.param(SIREN_3, 256, 256, 2_294_528, id="siren3-sign-256"),
    ],
)
def test_published_parameter_counts(spec: WeightSpec, c_in: int, c_out: int, count: int) -> None:
    assert sum(p.numel() for p in layer_of(spec, c_in, c_out).parameters()) == count


@pytest.mark.parametrize("widths", [[2, 6, 5, 3], [3, 4, 2], [2, 6, 5, 4, 3]])
def test_with_unknown_activations_it_is_the_layer_of_nfn_hnp(widths: list[int]) -> None:
    spec = mlp_spec(widths, "gelu")
    full = UNFLinear(Layout(spec), 3, 4, BasisOptions(drop_redundant=False))
    assert sum(p.numel() for p in layer_of(spec, 3, 4).parameters()) == sum(p.numel() for p in full.parameters())


def reads(spec: WeightSpec) -> dict[str, set[str]]:
    """Output tensor → the input tensors that it depends on; "1" for a constant."""
    layer = layer_of(spec, 1, 1).double()
    torch.nn.init.ones_(layer.bias[0]) if len(layer.bias) else None
    found: dict[str, set[str]] = {t.name: set() for t in spec.tensors}

    def run(values: Tensor) -> WeightBatch:
        return WeightBatch(spec, layer.layout.unpack(layer(layer.layout.pack(values)), 1))

    with torch.no_grad():
        zero = torch.zeros(1, spec.numel, 1, dtype=torch.float64)
        at_zero = run(zero)
        for name in found:
            if at_zero[name].any():
                found[name].add("1")
        for source in spec.tensors:
            values = zero.clone()
            values[:, torch.from_numpy(source.index().ravel())] = torch.randn(source.numel, 1, dtype=torch.float64)
            out = run(values)
            for name in found:
                if not torch.equal(out[name], at_zero[name]):
                    found[name].add(source.name)
    return {name.removeprefix("seq."): {s.removeprefix("seq.") for s in sources} for name, sources in found.items()}


def test_surviving_terms_under_scaling() -> None:
    first, last = {"0.weight", "0.bias"}, "3.weight"
    assert reads(mlp_spec([2, 4, 5, 4, 3], "relu")) == {
        "0.weight": first, "0.bias": first, "1.weight": {"1.weight"}, "1.bias": {"1.bias"},
        "2.weight": {"2.weight"}, "2.bias": {"2.bias"}, last: {last}, "3.bias": {"3.bias", "1"},
    }  # fmt: skip


def test_surviving_terms_under_sign() -> None:
    first, last = {"0.weight", "0.bias"}, {"3.weight", "2.bias"}
    assert reads(mlp_spec([2, 4, 5, 4, 3], "tanh")) == {
        "0.weight": first, "0.bias": first, "1.weight": {"1.weight"}, "1.bias": {"1.bias"},
        "2.weight": {"2.weight"}, "2.bias": last, "3.weight": last, "3.bias": {"3.bias", "1"},
    }  # fmt: skip


def test_two_layers_under_sign_all_feed_each_other_but_the_last_bias() -> None:
    every = {"0.weight", "0.bias", "1.weight"}
    expected = {"0.weight": every, "0.bias": every, "1.weight": every, "1.bias": {"1.bias", "1"}}
    assert reads(mlp_spec([2, 4, 3], "tanh")) == expected


def test_one_hidden_layer_of_unknown_activation_between_others() -> None:
    """ReLU, GELU, tanh: the middle label carries no character, so means over it may cross to biases and constants."""
    found = reads(mixed([2, 4, 5, 4, 3], ["relu", "gelu", "tanh"]))
    first = {"0.weight", "0.bias"}
    assert found["0.weight"] == first and found["1.weight"] == {"1.weight"}
    assert found["1.bias"] == {"1.bias", "3.bias", "1"} == found["3.bias"]
    assert found["2.weight"] == {"2.weight", "2.bias", "3.weight"} == found["2.bias"] == found["3.weight"]


def mixed(widths: list[int], activations: list[str]) -> WeightSpec:
    """An MLP with an activation of its own after every hidden layer."""
    spec = mlp_spec(widths, "gelu")
    held = {"relu": ("scaling",), "tanh": ("sign",), "identity": ("scaling", "sign")}
    labels, groups = list(spec.labels), list(spec.groups)
    for n, activation in enumerate(activations, start=1):
        labels[n] = dataclasses.replace(labels[n], symmetries=("permutation", *held.get(activation, ())))
        groups[n] = NeuronGroup(groups[n].name, groups[n].label, activation)
    return spec.replace(labels=tuple(labels), groups=tuple(groups))


def without_biases(widths: list[int]) -> WeightSpec:
    """A ReLU network of weights alone."""
    tensors = {f"layers.{n}.weight": (str(n), str(n - 1)) for n in range(1, len(widths))}
    spec = label_specs.labelled(tensors, {str(n): w for n, w in enumerate(widths)}, label_specs.io_of(widths))
    return with_symmetries(spec, {str(n): ("scaling",) for n in range(1, len(widths) - 1)})


def conv_last() -> WeightSpec:
    widths = [2, 4, 5, 3]
    spec = label_specs.cnn(widths, [3, 2, 2], label_specs.io_of(widths))
    return with_symmetries(spec, {"1": ("scaling",), "2": ("sign",)})


SPECS = {
    "relu": mlp_spec([2, 6, 5, 3], "relu"),
    "tanh": mlp_spec([2, 6, 5, 3], "tanh"),
    "linear": mlp_spec([2, 6, 5, 3], "identity"),
    "two": mlp_spec([3, 5, 2], "sine", SINE),
    "two_scaled": mlp_spec([3, 5, 2], "relu"),
    "one": mlp_spec([3, 2], "relu"),
    "single_neuron": mlp_spec([2, 1, 4, 1, 3], "relu"),
    "mixed": mixed([2, 6, 5, 4, 3], ["relu", "tanh", "gelu"]),
    "mixed_linear": mixed([2, 6, 5, 4, 3], ["identity", "tanh", "relu"]),
    "cnn": with_symmetries(label_specs.cnn([1, 4, 5, 3], [3, 3, 1], label_specs.io_of([1, 4, 5, 3])),
                           {"1": ("scaling",), "2": ("scaling",)}),
    "conv_last": conv_last(),
    "no_biases": without_biases([2, 5, 4, 3]),
    "residual": with_symmetries(label_specs.residual(3, 4, 5, 2, {"i": "input", "o": "output"}),
                                {"d": ("scaling",), "m": ("sign",)}),
}  # fmt: skip


def error(layer: MonomialLinear, spec: WeightSpec, symmetry: str, scale: tuple[float, float] = (0.1, 10.0)) -> float:
    """Largest deviation from equivariance after the element is undone, relative to the largest value."""
    values = torch.randn(4, spec.numel, layer.c_in, dtype=torch.float64)
    element = draw(spec, 4, symmetries=(symmetry,), scale=scale, dtype=torch.float64)

    def run(batch: WeightBatch) -> WeightBatch:
        return batch.with_values(layer.layout.unpack(layer(layer.layout.pack(batch.values)), layer.c_out))

    with torch.no_grad():
        before = run(WeightBatch(spec, values))
        after = act(inverse(element), run(act(element, WeightBatch(spec, values))))
    return float((after.values - before.values).abs().max() / before.values.abs().max())


@pytest.mark.parametrize("symmetry", ["permutation", "scaling", "sign"])
@pytest.mark.parametrize("name", SPECS)
def test_equivariant(name: str, symmetry: str) -> None:
    layer = layer_of(SPECS[name], 2, 3).double()
    for bias in layer.bias:
        torch.nn.init.normal_(bias)
    assert error(layer, SPECS[name], symmetry) < 1e-10
    assert error(layer, SPECS[name], symmetry, scale=(1e-4, 1e4)) < 1e-10


def claiming(spec: WeightSpec, symmetry: str) -> WeightSpec:
    """The spec with another symmetry, whether it has it or not."""
    labels = [
        dataclasses.replace(la, symmetries=("permutation", symmetry)) if la.kind == "hidden" else la
        for la in spec.labels
    ]
    return spec.replace(labels=tuple(labels), groups=tuple(NeuronGroup(g.name, g.label) for g in spec.groups))


@pytest.mark.parametrize("name", ["tanh", "two"])
def test_the_layer_for_signs_is_not_equivariant_to_scales(name: str) -> None:
    assert error(layer_of(SPECS[name], 2, 3).double(), claiming(SPECS[name], "scaling"), "scaling") > 1e-3


@pytest.mark.parametrize("name", ["relu", "cnn", "two_scaled"])
def test_the_layer_for_scales_is_also_equivariant_to_signs(name: str) -> None:
    """Its terms are among those that signs allow, so families of ReLU and tanh networks share it."""
    assert error(layer_of(SPECS[name], 2, 3).double(), claiming(SPECS[name], "sign"), "sign") < 1e-10


def test_repeated_labels_are_refused() -> None:
    with pytest.raises(RepeatedLabelError, match=r"recurrent\.weight.*'h' twice"):
        monomial_layout((label_specs.elman(3, 4, 2),))


def test_the_layer_reads_every_layer_of_a_chain_without_biases() -> None:
    assert [layer.bias for layer in chain(SPECS["no_biases"])] == [None] * 3
    layer = layer_of(SPECS["no_biases"], 1, 2)
    assert not len(layer.bias), "nothing is invariant, so no constant is legal"
