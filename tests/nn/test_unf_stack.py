"""Deep stacks, pooling and position encodings."""

from __future__ import annotations

import pytest
import torch
from label_specs import cnn, elman, gru_seq2seq, io_of, labelled, mlp, residual, transformer
from torch import Tensor

from wsl.batch import WeightBatch
from wsl.nn.unf.layout import Layout
from wsl.nn.unf.pooling import InvariantPool
from wsl.nn.unf.positions import AxisEmbedding, positions_along, sinusoidal_positions
from wsl.nn.unf.stack import ChannelNorm, UNFStack
from wsl.spec import WeightSpec
from wsl.symmetry import act, draw

DEEP = {
    "mlp": mlp([2, 32, 32, 1], io_of([2, 32, 32, 1])),
    "cnn": cnn([1, 8, 8, 10], [3, 3, 1], io_of([1, 8, 8, 10])),
    "rnn": elman(16, 32, 10),
    "gru": gru_seq2seq(16, 12),
    "residual": residual(8, 16, 24, 10),
    "transformer": transformer(1, {"v": 10, "d": 12, "k": 12, "u": 12, "m": 16}),
}


def scales(spec: WeightSpec, seeds: int = 3, **options: object) -> Tensor:
    """Root mean square of features, and of their differences between networks, after each of ten layers: ``[10, 2]``.

    Geometric mean over random initialisations: any one deep stack of few channels wanders about its expected scale.
    """
    layout, logs = Layout(spec), torch.zeros(10, 2)
    for _ in range(seeds):
        stack = UNFStack(layout, (1, *(16,) * 10), **options)
        features = layout.pack(torch.randn(4, spec.numel, 1))
        with torch.no_grad():
            for number in range(10):
                features = stack.step(number, features)
                y = layout.unpack(features, 16)
                logs[number] += torch.stack([y.square().mean(), (y - y.mean(0)).square().mean()]).log() / (2 * seeds)
    return logs.exp()


@pytest.mark.parametrize("name", DEEP)
def test_ten_layers_keep_their_scale(name: str) -> None:
    rms, apart = scales(DEEP[name]).T
    assert rms.min() > 0.25 and rms.max() < 2
    assert apart.min() > 0.02


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", DEEP)
def test_ten_residual_layers_keep_their_scale_and_tell_networks_apart(name: str, norm: bool) -> None:
    rms, apart = scales(DEEP[name], seeds=1, residual=True, norm=norm).T
    assert rms.min() > 0.5 and rms.max() < 2.5 and apart.min() > 0.5


def test_equal_coefficients_let_networks_fade() -> None:
    """Why the balanced initialisation exists: with coefficients of one variance the means drown the entry itself."""
    flat, balanced = scales(DEEP["rnn"], init="flat")[-1], scales(DEEP["rnn"])[-1]
    assert flat[0] < 0.7 * balanced[0] and flat[1] < 0.5 * balanced[1]


@pytest.mark.parametrize("kwargs", [{}, {"residual": True}, {"norm": True}, {"residual": True, "norm": True}])
def test_stack_and_pool_are_symmetric(kwargs: dict[str, bool]) -> None:
    spec = elman(3, 5, 2)
    layout = Layout(spec)
    stack = UNFStack(layout, (1, 4, 4, 4), **kwargs).double()
    pool = InvariantPool(layout)
    batch = WeightBatch(spec, torch.randn(3, spec.numel, 1, dtype=torch.float64))
    element = draw(spec, 3, dtype=torch.float64)
    moved = act(element, batch)
    before, after = stack(layout.pack(batch.values)), stack(layout.pack(moved.values))
    expected = act(element, batch.with_values(layout.unpack(before, 4))).values
    torch.testing.assert_close(layout.unpack(after, 4), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(pool(after), pool(before), rtol=1e-10, atol=1e-10)


def test_residual_layers_keep_their_channels() -> None:
    with pytest.raises(ValueError, match=r"got \(4, 8\)"):
        UNFStack(Layout(elman(3, 5, 2)), (1, 4, 8), residual=True)


def test_channel_norm_normalises_every_entry() -> None:
    x = ChannelNorm(8)([torch.randn(3, 4, 5, 2 * 8) * 7 + 2])[0].unflatten(-1, (2, 8))
    torch.testing.assert_close(x.mean(-1), torch.zeros(3, 4, 5, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.var(-1, correction=0), torch.ones(3, 4, 5, 2), rtol=1e-3, atol=0)


def test_pool_values_and_numbers() -> None:
    spec = elman(3, 5, 2)
    layout = Layout(spec)
    values = torch.randn(4, spec.numel, 1)
    recurrent = WeightBatch(spec, values)["recurrent.weight"].squeeze(-1)
    complete, reduced = InvariantPool(layout, True), InvariantPool(layout, False)
    assert (complete.outputs, reduced.outputs) == (6, 5)
    pooled = complete(layout.pack(values))
    for expected in (recurrent.mean((1, 2)), recurrent.diagonal(dim1=1, dim2=2).mean(1)):
        assert (pooled - expected.unsqueeze(1)).abs().amin(1).max() < 1e-6
    widths = [1, 16, 16, 16, 10]
    assert InvariantPool(Layout(cnn(widths, [3, 3, 3, 1], io_of(widths))), False).outputs == 50
    assert InvariantPool(layout, False, "sum")(layout.pack(torch.ones(1, spec.numel, 1))).sum() == spec.numel


def test_pool_on_a_short_axis_drops_what_follows_from_the_rest() -> None:
    """On two neurons the 5 · 2 means of axes (a, a, a, b, b) satisfy 2 relations: 8 are left, of rank 8."""
    spec = labelled({"w": "a a a b b"}, {"a": 2, "b": 3})
    layout = Layout(spec)
    pool = InvariantPool(layout)
    assert pool.outputs == 8
    values = torch.eye(spec.numel, dtype=torch.float64).unsqueeze(-1)
    assert torch.linalg.matrix_rank(pool(layout.pack(values))) == 8


def at(spec: WeightSpec, rows: Tensor, name: str) -> Tensor:
    return WeightBatch(spec, rows.unsqueeze(0).float())[name][0]


def test_positions_along_axes() -> None:
    spec = cnn([3, 4, 2], [3, 1], io_of([3, 4, 2]))
    rows = positions_along(spec, ["0", "x1", "2"])
    first = at(spec, rows, "layers.1.weight")
    assert torch.equal(first[1, :, 2, 0, 0], torch.arange(3.0)) and torch.equal(first[3, 1, 0, :, 1], torch.arange(3.0))
    assert (first[..., 2] == -1).all() and (at(spec, rows, "layers.1.bias") == -1).all()
    assert torch.equal(at(spec, rows, "layers.2.bias")[:, 2], torch.arange(2.0))


def test_sinusoidal_positions_distinguish_what_they_encode_and_nothing_else() -> None:
    spec = cnn([3, 4, 2], [3, 1], io_of([3, 4, 2]))
    encoding = sinusoidal_positions(spec, ["0", "2", "y1", "x1"], 3, 10.0)
    assert encoding.shape == (spec.numel, 4 * 7)
    first = at(spec, encoding, "layers.1.weight")
    assert (first == first[:1]).all(), "hidden neurons must not be told apart"
    assert len(first[0].flatten(0, 2).unique(dim=0)) == 27
    assert (at(spec, encoding, "layers.1.bias") == 0).all()
    assert len(at(spec, encoding, "layers.2.bias").unique(dim=0)) == 2


def test_axis_embedding_adds_the_vector_of_each_neuron() -> None:
    spec = mlp([3, 4, 2])
    layout = Layout(spec)
    module = AxisEmbedding(layout, ("0", "2"), 5)
    y = layout.unpack(module(layout.pack(torch.zeros(1, spec.numel, 5))), 5)[0].detach()
    first, last = at_values(spec, y, "layers.1.weight"), at_values(spec, y, "layers.2.weight")
    assert torch.equal(first, module.vectors[:3].detach().expand(4, 3, 5))
    assert torch.equal(last, module.vectors[3:].detach().unsqueeze(1).expand(2, 4, 5))
    assert (at_values(spec, y, "layers.1.bias") == 0).all()


def at_values(spec: WeightSpec, rows: Tensor, name: str) -> Tensor:
    return WeightBatch(spec, rows.unsqueeze(0))[name][0]


def test_layout_round_trip_with_transposed_and_fixed_axes() -> None:
    spec = labelled({"w": "b a k", "u": "a b", "s": (), "k": "k"}, {"a": 3, "b": 4, "k": 2}, {"k": "fixed"})
    layout = Layout(spec)
    assert sorted(bundle.labels for bundle in layout.bundles) == [(), ("a", "b")]
    values = torch.randn(2, spec.numel, 3)
    assert torch.equal(layout.unpack(layout.pack(values), 3), values)
    with pytest.raises(ValueError, match="unknown labels"):
        Layout(spec, ["c"])
