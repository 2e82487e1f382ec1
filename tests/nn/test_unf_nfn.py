"""The UNF layer of an MLP is the NFN layer, function for function."""

from __future__ import annotations

import torch
from label_specs import cnn, io_of, mlp
from nfn_reference import Coefficient, hnp_layer, np_layer
from torch import Tensor
from unf_reference import terms

from wsl.batch import WeightBatch
from wsl.nn.unf.basis import BasisOptions
from wsl.nn.unf.layout import Layout
from wsl.nn.unf.linear import UNFLinear

WIDTHS = [4, 6, 5, 7, 3]
AXES = ("row", "col")


def layer_of(spec_kinds: dict[str, str]) -> tuple[UNFLinear, WeightBatch]:
    spec = mlp(WIDTHS, spec_kinds)
    layer = UNFLinear(Layout(spec), 2, 3, BasisOptions(bias="none")).double()
    return layer, WeightBatch(spec, torch.randn(5, spec.numel, 2, dtype=torch.float64))


def coefficients(layer: UNFLinear) -> tuple[Coefficient, set]:
    """Look-up of the layer's matrices by tensors and matched axes, and the set of those not asked for yet."""
    short = {f"layers.{i}.{kind}": f"{kind[0]}{i}" for i in range(1, 9) for kind in ("weight", "bias")}
    table = {}
    for term in terms(layer):
        matched = frozenset((AXES[o[0]], AXES[i[0]]) for o, i in term.blocks if o and i)
        table[short[term.output], short[term.input], matched] = term.theta
    unused = set(table)

    def theta(*key: object) -> Tensor:
        unused.discard(key)
        return table[key]

    return theta, unused


def test_np_layer_is_the_unf_layer_of_an_mlp() -> None:
    layer, batch = layer_of({})
    theta, unused = coefficients(layer)
    w = {i: batch[f"layers.{i}.weight"] for i in range(1, 5)}
    b = {i: batch[f"layers.{i}.bias"] for i in range(1, 5)}
    new_w, new_b = np_layer(w, b, theta)
    assert not unused
    y = WeightBatch(batch.spec, layer.layout.unpack(layer(layer.layout.pack(batch.values)), 3))
    for i in w:
        torch.testing.assert_close(y[f"layers.{i}.weight"], new_w[i], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(y[f"layers.{i}.bias"], new_b[i], rtol=1e-12, atol=1e-12)


def test_hnp_layer_is_the_unf_layer_with_fixed_inputs_and_outputs() -> None:
    layer, batch = layer_of(io_of(WIDTHS))
    theta, unused = coefficients(layer)
    w = {i: batch[f"layers.{i}.weight"] for i in range(1, 5)}
    w[1] = w[1].flatten(2)
    w[4] = w[4].transpose(1, 2).flatten(2)
    b = {i: batch[f"layers.{i}.bias"] for i in range(1, 5)}
    b[4] = b[4].flatten(1)
    new_w, new_b = hnp_layer(w, b, theta)
    assert not unused
    y = WeightBatch(batch.spec, layer.layout.unpack(layer(layer.layout.pack(batch.values)), 3))
    new_w[1] = new_w[1].unflatten(2, (WIDTHS[0], 3))
    new_w[4] = new_w[4].unflatten(2, (WIDTHS[4], 3)).transpose(1, 2)
    new_b[4] = new_b[4].unflatten(1, (WIDTHS[4], 3))
    for i in w:
        torch.testing.assert_close(y[f"layers.{i}.weight"], new_w[i], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(y[f"layers.{i}.bias"], new_b[i], rtol=1e-12, atol=1e-12)


def test_published_parameter_count_of_nfn_np() -> None:
    """On the Small CNN Zoo with 16, 16, 5 channels the published features have 777,432 parameters.

    Its layers have a bias for each of their summands (four for a weight, two for a bias), which add up to one; the
    coefficients without biases are those of the UNF layer.
    """
    layout = Layout(cnn([1, 16, 16, 16, 10], [3, 3, 3, 1]), freeze_single=False)
    options = BasisOptions(drop_redundant=False, bias="none")
    layers = [UNFLinear(layout, i, o, options) for i, o in ((1, 16), (16, 16), (16, 5))]
    biases = sum(c * (4 * (9 + 9 + 9 + 1) + 2 * 4) for c in (16, 16, 5))
    assert sum(p.numel() for layer in layers for p in layer.parameters()) + biases == 777_432
