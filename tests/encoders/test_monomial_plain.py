"""The whole published model against the same function with one einsum per term, in float64."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from wsl.batch import WeightBatch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from benchmarks import monomial


def test_the_model_is_its_einsums() -> None:
    spec, made = monomial.models()
    batch = WeightBatch(spec, torch.randn(3, spec.numel, 1, dtype=torch.float64) * 0.3)
    ours, plain = (made[name].double()(batch) for name in (monomial.OURS, monomial.PLAIN))
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)
    assert (ours - ours.mean(0)).abs().max() > 1e-3
    ours.sum().backward()
    plain.sum().backward()
    for one, other in zip(made[monomial.OURS].head.parameters(), made[monomial.PLAIN].head.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-10)
