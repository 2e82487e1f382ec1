"""Gaussian Fourier features."""

from __future__ import annotations

import math

import pytest
import torch

from wsl.nn.fourier import FourierFeatures


@pytest.mark.parametrize("size", [1, 3])
def test_equals_the_formula(size: int) -> None:
    waves = FourierFeatures(size, 16, 3.0).double()
    v = torch.randn(5, 7, size, dtype=torch.float64) * 4
    phase = 2 * math.pi * v @ waves.frequencies.T
    expected = torch.cat([phase.cos(), phase.sin()], dim=-1)
    assert torch.allclose(waves(v), expected, atol=1e-12)
    assert waves(v).shape == (5, 7, waves.out_features)


def test_gradient_of_the_input() -> None:
    waves = FourierFeatures(2, 5, 0.5).double()
    assert torch.autograd.gradcheck(waves, torch.randn(4, 2, dtype=torch.float64, requires_grad=True))


def test_large_inputs_keep_single_precision() -> None:
    waves = FourierFeatures(1, 64, 3.0)
    v = torch.randn(1000, 1) * 5
    exact = waves.double()(v.double())
    turns = (v.double() @ waves.frequencies.T).abs().max()
    assert turns > 40, "inputs are not large: the test would prove nothing"
    assert (waves.float()(v) - exact).abs().max() < 2 * math.pi * turns * 2**-23


def test_frequencies_are_drawn_with_the_deviation_and_do_not_learn() -> None:
    waves = FourierFeatures(1, 20_000, 3.0)
    assert waves.frequencies.std() == pytest.approx(3.0, rel=0.03)
    assert not list(waves.parameters()) and "frequencies" in waves.state_dict()
