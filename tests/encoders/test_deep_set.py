"""Deep Sets: equivariant to permutations of entries, and blind to neurons."""

from __future__ import annotations

import pytest
import torch
from label_specs import elman, mlp

from wsl.batch import WeightBatch
from wsl.encoders.deep_set import DeepSet
from wsl.nn.deep_set import DeepSetLinear

SPEC = elman(3, 5, 2)


def shuffled(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Entries of the recurrent weight in another order, and that order of the row."""
    order = torch.arange(SPEC.numel)
    positions = torch.from_numpy(SPEC.tensor["recurrent.weight"].index().ravel())
    order[positions] = positions[torch.randperm(len(positions))]
    return values[:, order], order


@pytest.mark.parametrize("reduced", [False, True])
def test_layer_is_its_formula(reduced: bool) -> None:
    layer = DeepSetLinear(SPEC, 2, 4, reduced).double()
    x = torch.randn(3, SPEC.numel, 2, dtype=torch.float64)
    y = layer(x)
    for tensor in SPEC.tensors:
        at = torch.from_numpy(tensor.index().ravel())
        mean = x[:, at].mean(1, keepdim=True)
        expected = layer.entry(x[:, at] - mean) if reduced else layer.entry(x[:, at]) + layer.pooled(mean)
        torch.testing.assert_close(y[:, at], expected)


@pytest.mark.parametrize("equivariant", [False, True])
def test_symmetric_to_any_order_of_entries_but_not_across_tensors(equivariant: bool) -> None:
    encoder = DeepSet(SPEC, 3, channels=4, head=(8,), equivariant=equivariant).double()
    values = torch.randn(4, SPEC.numel, 1, dtype=torch.float64)
    before = encoder(WeightBatch(SPEC, values))
    moved, order = shuffled(values)
    after = encoder(WeightBatch(SPEC, moved))
    torch.testing.assert_close(after, before[:, order] if equivariant else before, rtol=1e-12, atol=1e-12)
    across = values.roll(1, dims=1)
    expected = before.roll(1, dims=1) if equivariant else before
    assert (encoder(WeightBatch(SPEC, across)) - expected).abs().max() > 1e-4


def test_published_parameter_count() -> None:
    """Learned optimizer of the paper: 19 → 32 → 32 → 32 → 1, and three scalars."""
    spec = mlp([64, 32, 10])
    layers = [DeepSetLinear(spec, i, o, reduced=True) for i, o in ((19, 32), (32, 32), (32, 32), (32, 1))]
    assert sum(p.numel() for layer in layers for p in layer.parameters()) + 3 == 2788
