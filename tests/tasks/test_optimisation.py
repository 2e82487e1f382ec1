"""Schedules by value."""

from __future__ import annotations

import pytest
import torch

from wsl.tasks.optimisation import (
    MakeOptimizer,
    adam,
    adamw,
    constant,
    cosine,
    cosine_factor,
    sgd,
    warm_up,
    warm_up_factor,
)


def test_warm_up_is_linear_and_then_constant() -> None:
    assert [warm_up_factor(step, 4) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert warm_up_factor(0, 0) == 1.0


def test_cosine_goes_down_to_its_final_value() -> None:
    assert cosine_factor(0, 0, 10, 0.1) == pytest.approx(1.0)
    assert cosine_factor(5, 0, 10, 0.1) == pytest.approx(0.55)
    assert cosine_factor(10, 0, 10, 0.1) == cosine_factor(99, 0, 10, 0.1) == pytest.approx(0.1)
    assert cosine_factor(1, 3, 10, 0.0) == warm_up_factor(1, 3)
    assert cosine_factor(3, 3, 10, 0.0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [(constant(), [1, 1, 1]), (warm_up(steps=1), [0.5, 1, 1]), (cosine(), [1, 0.75, 0.25])],
)
def test_schedules_scale_the_optimisers_rate(schedule: object, expected: list[float]) -> None:
    optimizer = sgd(lr=2.0)([torch.nn.Parameter(torch.zeros(1))])
    entry = schedule(optimizer, 3, "val/x", "max")
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        entry["scheduler"].step()
    assert rates == pytest.approx(expected)


def test_optimisers_take_their_options() -> None:
    group = adamw(lr=0.1, weight_decay=0.2, betas=(0.8, 0.9))([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"], group["amsgrad"]) == (0.1, 0.2, (0.8, 0.9), True)


@pytest.mark.parametrize("make", [adam(weight_decay=0.1), adamw(), sgd(momentum=0.9, weight_decay=0.1)])
def test_fused_optimisers_are_the_same_ones(make: MakeOptimizer) -> None:
    ends = []
    for fused in (False, True):
        generator = torch.Generator().manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(33, 7, generator=generator, dtype=torch.float64))
        optimizer = make([parameter], fused)
        for _ in range(5):
            parameter.grad = torch.randn(33, 7, generator=generator, dtype=torch.float64)
            optimizer.step()
        ends.append(parameter.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=0)
    assert not torch.equal(ends[1], torch.zeros_like(ends[1]))
