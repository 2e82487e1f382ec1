"""Paths: products written out by hand, invariance of each neuron's features, and what they are sensitive to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wsl.batch import WeightBatch
from wsl.nn.monomial.characters import monomial_layout
from wsl.nn.monomial.telescope import PathGates, Telescope
from wsl.spec import WeightSpec, mlp_spec
from wsl.symmetry import act, draw, inverse

CHANNELS, PATHS = 2, 3


def built(spec: WeightSpec) -> tuple[Telescope, WeightBatch]:
    values = torch.randn(4, spec.numel, CHANNELS, dtype=torch.float64)
    return Telescope(monomial_layout((spec,)), CHANNELS, PATHS).double(), WeightBatch(spec, values)


def folded(batch: WeightBatch, name: str, axes: str) -> Tensor:
    """A weight as ``[B, out, in, C]`` with the axis named first or last in ``axes`` folded into channels."""
    x = batch[name]
    return x.flatten(2) if axes == "in" else x.transpose(1, 2).flatten(2) if axes == "out" else x


def test_products_are_those_written_out() -> None:
    spec = mlp_spec([2, 4, 5, 3], "relu")
    telescope, batch = built(spec)
    found = telescope(telescope.layout.pack(batch.values))
    maps, shifts = telescope.weight, telescope.bias
    first, last = folded(batch, "seq.0.weight", "in") @ maps[0], folded(batch, "seq.2.weight", "out") @ maps[2]
    middle = batch["seq.1.weight"] @ maps[1]
    b1, b2 = batch["seq.0.bias"] @ shifts[0], batch["seq.1.bias"] @ shifts[1]
    for part, f in ((slice(PATHS), lambda x: x), (slice(PATHS, None), torch.square)):
        from_inputs = f(first) + f(b1)
        at_two = (f(middle) * from_inputs.unsqueeze(1)).sum(2) / 4**0.5 + f(b2)
        from_outputs = (f(middle) * f(last).unsqueeze(2)).sum(1) / 5**0.5
        torch.testing.assert_close(found["hidden1"][..., part], torch.asinh(from_inputs * from_outputs))
        torch.testing.assert_close(found["hidden2"][..., part], torch.asinh(at_two * f(last)))


@pytest.mark.parametrize(("activation", "symmetry"), [("relu", "scaling"), ("tanh", "sign"), ("identity", "sign")])
@pytest.mark.parametrize("widths", [[2, 4, 5, 3], [3, 4, 2], [2, 5, 4, 6, 3]])
def test_every_neurons_features_are_invariant_and_gates_move_nothing(
    widths: list[int], activation: str, symmetry: str
) -> None:
    spec = mlp_spec(widths, activation)
    telescope, batch = built(spec)
    element = draw(spec, len(batch), symmetries=(symmetry,), scale=(1e-4, 1e4), dtype=torch.float64)
    before = telescope(telescope.layout.pack(batch.values))
    after = telescope(telescope.layout.pack(act(element, batch).values))
    for label in before:
        torch.testing.assert_close(after[label], before[label], rtol=1e-10, atol=1e-10)
    gates = PathGates(telescope.layout, CHANNELS, PATHS).double()

    def gated(batch: WeightBatch) -> WeightBatch:
        return batch.with_values(telescope.layout.unpack(gates(telescope.layout.pack(batch.values)), CHANNELS))

    back = act(inverse(element), gated(act(element, batch))).values
    torch.testing.assert_close(back, gated(batch).values, rtol=1e-10, atol=1e-10)


def test_features_of_a_neuron_depend_on_every_layer() -> None:
    spec = mlp_spec([2, 4, 5, 3], "relu")
    telescope, batch = built(spec)
    before = telescope(telescope.layout.pack(batch.values))
    for name in ("seq.0.weight", "seq.1.weight", "seq.2.weight", "seq.0.bias"):
        values = batch.values.clone()
        values[:, torch.from_numpy(spec.tensor[name].index().ravel())] += 0.5
        after = telescope(telescope.layout.pack(values))
        assert all((after[label] - before[label]).abs().max() > 1e-3 for label in before), name
