"""The UNF layer against a plain loop over terms, and its equivariance on every side."""

from __future__ import annotations

import itertools

import pytest
import torch
from label_specs import cnn, elman, gru_seq2seq, io_of, labelled, mlp, residual, transformer
from torch import Tensor
from unf_reference import reference, terms

from wsl.batch import WeightBatch
from wsl.nn.unf.basis import BasisOptions, BasisTooLargeError, count_table
from wsl.nn.unf.layout import Layout
from wsl.nn.unf.linear import UNFLinear
from wsl.nn.unf.partitions import valid_partitions
from wsl.spec import SpecError, WeightSpec
from wsl.symmetry import GroupElement, act, draw

SMALL = {"v": 3, "d": 4, "k": 3, "u": 5, "m": 6}
SPECS = {
    "mlp": mlp([3, 5, 4, 2]),
    "mlp with fixed ends": mlp([3, 5, 4, 2], io_of([3, 5, 4, 2])),
    "cnn": cnn([2, 5, 4, 3], [3, 4, 1], io_of([2, 5, 4, 3])),
    "rnn": elman(3, 5, 2),
    "rnn on short axes": elman(1, 2, 3),
    "gru": gru_seq2seq(4, 3),
    "residual": residual(3, 5, 4, 2),
    "transformer": transformer(2, SMALL),
    "three equal axes": labelled({"w": "a a a", "u": "b a", "s": ()}, {"a": 4, "b": 3}),
}
OPTIONS = {
    "full": BasisOptions(),
    "redundant": BasisOptions(drop_redundant=False, bias="reduced"),
    "sum": BasisOptions(aggregation="sum"),
    "no diagonal writes": BasisOptions(diagonal_writes=False),
    "role_shared": BasisOptions(theta="role_shared"),
    "low_rank": BasisOptions(theta="low_rank", rank=3),
}


def build(spec: WeightSpec, options: BasisOptions, c_in: int = 2, c_out: int = 3) -> UNFLinear:
    layer = UNFLinear(Layout(spec, freeze_single=options.drops), c_in, c_out, options).double()
    if layer.coefficients.bias is not None:
        torch.nn.init.normal_(layer.coefficients.bias)
    return layer


def draw_batch(spec: WeightSpec, size: int = 3, channels: int = 2) -> WeightBatch:
    return WeightBatch(spec, torch.randn(size, spec.numel, channels, dtype=torch.float64))


def apply(layer: UNFLinear, values: Tensor) -> Tensor:
    return layer.layout.unpack(layer(layer.layout.pack(values)), layer.c_out)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("option", OPTIONS)
def test_agrees_with_the_loop_over_terms(name: str, option: str) -> None:
    layer = build(SPECS[name], OPTIONS[option])
    torch.nn.init.zeros_(layer.coefficients.bias)
    batch = draw_batch(SPECS[name])
    expected = reference(layer, batch)
    for bundle, y in zip(layer.layout.bundles, layer(layer.layout.pack(batch.values)), strict=True):
        for member in bundle.members:
            part = y.unflatten(-1, (bundle.slots, 3))[..., member.slots, :].flatten(-2)
            torch.testing.assert_close(part, expected[member.tensor.name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "rnn", "residual", "transformer", "three equal axes"])
def test_terms_of_a_pair_are_its_valid_partitions(name: str) -> None:
    spec = SPECS[name]
    layer = build(spec, OPTIONS["redundant"])
    found: dict[tuple[str, str], list] = {}
    for term in terms(layer):
        n_out = len(spec.tensor[term.output].axes)
        blocks = sorted(tuple(sorted((*o, *(n_out + a for a in i)))) for o, i in term.blocks)
        found.setdefault((term.output, term.input), []).append(tuple(blocks))
    for output, input in itertools.product(spec.tensor, repeat=2):
        expected = valid_partitions(spec.tensor[output].axes + spec.tensor[input].axes)
        assert sorted(found[output, input]) == sorted(tuple(sorted(blocks)) for blocks in expected)


def moved(element: GroupElement, spec: WeightSpec, values: Tensor) -> Tensor:
    return act(element, WeightBatch(spec, values)).values


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("option", OPTIONS)
def test_equivariant(name: str, option: str) -> None:
    spec = SPECS[name]
    layer, batch = build(spec, OPTIONS[option]), draw_batch(spec)
    element = draw(spec, len(batch), dtype=torch.float64)
    before, after = apply(layer, batch.values), apply(layer, moved(element, spec, batch.values))
    torch.testing.assert_close(after, moved(element, spec, before), rtol=1e-10, atol=1e-10)


def sides(spec: WeightSpec) -> list[tuple[str, int]]:
    """(tensor, axis) of every axis whose label occurs on other axes as well, or is fixed."""
    uses = [axis for tensor in spec.tensors for axis in tensor.axes]
    return [
        (tensor.name, k)
        for tensor in spec.tensors
        for k, axis in enumerate(tensor.axes)
        if tensor.shape[k] > 1 and (uses.count(axis) > 1 or not spec.label[axis].symmetries)
    ]


def permute_one_axis(spec: WeightSpec, values: Tensor, name: str, axis: int) -> Tensor:
    """Values with the entries of one axis of one tensor rotated by one, all else in place."""
    index = torch.arange(spec.numel)
    positions = torch.from_numpy(spec.tensor[name].index())
    index[positions.flatten()] = positions.roll(1, dims=axis).flatten()
    return values[:, index]


@pytest.mark.parametrize("kernel", range(3, 9))
def test_cnn_kernels(kernel: int) -> None:
    widths = [2, 5, 4, 3]
    check_every_side(cnn(widths, [kernel, kernel, 1], io_of(widths)), BasisOptions())


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("option", ["full", "role_shared"])
def test_not_equivariant_on_any_side_alone(name: str, option: str) -> None:
    check_every_side(SPECS[name], OPTIONS[option])


def check_every_side(spec: WeightSpec, options: BasisOptions) -> None:
    """Breaking the coupling of any one axis to the other axes of its label breaks equivariance."""
    layer, batch = build(spec, options), draw_batch(spec, size=1)
    before = apply(layer, batch.values)
    assert sides(spec)
    for name, axis in sides(spec):
        after = apply(layer, permute_one_axis(spec, batch.values, name, axis))
        change = (after - permute_one_axis(spec, before, name, axis)).abs().max()
        assert change > 1e-3, f"axis {axis} of {name} is free"


@pytest.mark.parametrize("name", SPECS)
def test_one_network_alone_gives_what_it_gives_in_a_batch(name: str) -> None:
    layer, batch = build(SPECS[name], OPTIONS["full"]), draw_batch(SPECS[name], size=4)
    together = apply(layer, batch.values)
    alone = torch.cat([apply(layer, batch.values[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("n", "rank"), [(5, 15), (4, 15), (3, 14), (2, 8), (1, 1)])
def test_rank_on_short_axes(n: int, rank: int) -> None:
    """Redundant terms add nothing: both bases span maps of the rank that the pruned one counts."""
    spec = labelled({"w": "a a"}, {"a": n})
    for options in (BasisOptions(drop_redundant=False), BasisOptions()):
        layer = UNFLinear(Layout(spec, freeze_single=options.drops), 1, 1, options).double()
        maps = []
        identity = torch.eye(n * n, dtype=torch.float64).unsqueeze(-1)
        parameters = [p for key, p in layer.named_parameters() if "bias" not in key]
        for parameter in parameters:
            for other in parameters:
                torch.nn.init.zeros_(other)
            for k in range(parameter.numel()):
                with torch.no_grad():
                    parameter.flatten()[k] = 1.0
                    maps.append(apply(layer, identity).flatten())
                    parameter.flatten()[k] = 0.0
        assert len(maps) == (15 if not options.drop_redundant else rank)
        assert torch.linalg.matrix_rank(torch.stack(maps)) == rank


def test_complete_bias_has_one_unit_per_output_partition() -> None:
    spec = elman(3, 5, 2)
    units = {bias: len(build(spec, BasisOptions(bias=bias)).coefficients.bias) for bias in ("complete", "reduced")}
    assert units == {"complete": 6, "reduced": 5}
    assert build(spec, BasisOptions(bias="none")).coefficients.bias is None
    layer = build(spec, BasisOptions())
    y = layer.layout.unpack(layer(layer.layout.pack(torch.zeros(1, spec.numel, 2, dtype=torch.float64))), 3)
    recurrent = WeightBatch(spec, y.detach())["recurrent.weight"][0]
    diagonal = recurrent.diagonal().T
    assert (diagonal == diagonal[0]).all() and not torch.equal(diagonal[0], recurrent[0, 1])
    assert torch.equal(recurrent[0, 1], recurrent[3, 2])


def test_role_sharing_generalises_over_depth() -> None:
    """Parameters of a layer for two blocks fit one for five, and all of them are used."""
    layers = [build(transformer(n, SMALL), BasisOptions(theta="role_shared")) for n in (2, 5)]
    assert [p.shape for p in layers[0].parameters()] == [p.shape for p in layers[1].parameters()]
    layers[1].load_state_dict(layers[0].state_dict())
    full = build(transformer(2, SMALL), BasisOptions())
    assert sum(p.numel() for p in layers[0].parameters()) < 0.75 * sum(p.numel() for p in full.parameters())


def test_neighbours_only() -> None:
    """The same function as the full basis without the terms between strangers; the count grows linearly with depth."""
    options = BasisOptions(neighbours_only=True)
    spec = SPECS["transformer"]
    layer, batch = build(spec, options), draw_batch(spec)
    torch.nn.init.zeros_(layer.coefficients.bias)
    expected = reference(layer, batch)
    y = layer(layer.layout.pack(batch.values))
    for bundle, value in zip(layer.layout.bundles, y, strict=True):
        for member in bundle.members:
            part = value.unflatten(-1, (bundle.slots, 3))[..., member.slots, :].flatten(-2)
            torch.testing.assert_close(part, expected[member.tensor.name], rtol=1e-12, atol=1e-12)
    element = draw(spec, len(batch), dtype=torch.float64)
    after = apply(layer, moved(element, spec, batch.values))
    torch.testing.assert_close(after, moved(element, spec, layer.layout.unpack(y, 3)), rtol=1e-10, atol=1e-10)
    counts = [count_table(Layout(transformer(n, SMALL)), options) for n in (2, 3, 4)]
    totals = [int(table.sum()) for table in counts]
    assert totals[2] - totals[1] == totals[1] - totals[0]
    names = list(spec.tensor)
    near, far = names.index("blocks.0.up.bias"), names.index("blocks.1.up.weight")
    assert counts[0][near, near] == 2 and counts[0][near, far] == 0
    assert sum(1 for _ in terms(layer)) == totals[0]


def test_neighbours_need_connections() -> None:
    with pytest.raises(SpecError, match="on no connection"):
        build(SPECS["gru"], BasisOptions(neighbours_only=True))


def test_refuses_a_basis_over_budget() -> None:
    spec = mlp([784, 16, 10], io_of([784, 16, 10]))
    with pytest.raises(
        BasisTooLargeError, match=r"'layers.1.weight' ← 'layers.1.weight': 2 terms, .* theta='low_rank'"
    ):
        UNFLinear(Layout(spec), 64, 64, BasisOptions(budget_gib=0.5))
    assert isinstance(build(spec, BasisOptions(theta="low_rank", rank=4, budget_gib=0.5), 4, 4), UNFLinear)


def test_gradients() -> None:
    layer = build(elman(2, 3, 2), BasisOptions())
    values = torch.randn(1, layer.layout.spec.numel, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: apply(layer, v), (values,), fast_mode=True)
