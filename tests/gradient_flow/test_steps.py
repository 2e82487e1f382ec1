"""Diagnostics of any model against closed forms; verdicts from hand-made readings."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from wsl.gradient_flow import steps
from wsl.gradient_flow.layers import layers_of, places_of
from wsl.gradient_flow.reader import FlowReader
from wsl.gradient_flow.verdicts import RULES, History


def test_norms_and_ratios() -> None:
    gradient, parameter = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 10.0])
    assert steps.gradient_rms(gradient) == pytest.approx(5 / math.sqrt(2))
    assert steps.relative_gradient(gradient, parameter) == pytest.approx(0.5)
    assert math.isnan(steps.relative_gradient(gradient, torch.zeros(2)))
    assert steps.relative_update(parameter, parameter * 1.01) == pytest.approx(0.01, rel=1e-4)
    assert math.isnan(steps.relative_update(torch.zeros(2), parameter))


def test_depth_factor_is_the_growth_per_layer() -> None:
    assert steps.depth_factor([8.0, 4.0, 2.0, 1.0]) == pytest.approx(2.0)
    assert steps.depth_factor([0.0, 1.0]) == 0.0
    assert math.isnan(steps.depth_factor([1.0])) and math.isnan(steps.depth_factor([1.0, 0.0]))


def test_jacobian_gain_of_a_linear_map_is_its_frobenius_norm() -> None:
    """E ‖W^T v‖² = ‖W‖² for random signs v, and ‖v‖² is the number of outputs."""
    weight = torch.randn(4, 7, dtype=torch.float64)
    source = torch.randn(1, 7, dtype=torch.float64, requires_grad=True)
    gain = steps.jacobian_gain(source @ weight.T, source, torch.Generator().manual_seed(0), samples=4000)
    assert gain == pytest.approx(float(weight.norm()) / 2, rel=0.05)
    assert math.isnan(steps.jacobian_gain(weight, source, torch.Generator()))


def test_direction() -> None:
    a, b = [torch.tensor([1.0, 0.0]), torch.tensor([0.0])], [torch.tensor([0.0, 0.0]), torch.tensor([2.0])]
    assert steps.direction(a, a) == pytest.approx(1.0)
    assert steps.direction(a, [-x for x in a]) == pytest.approx(-1.0)
    assert steps.direction(a, b) == 0.0
    assert math.isnan(steps.direction(a, [torch.zeros(2), torch.zeros(1)]))


def test_layers_are_the_outermost_longest_list_or_the_linear_maps() -> None:
    model = nn.Module()
    model.head = nn.ModuleList([nn.Linear(2, 2)])
    model.inner = nn.Module()
    model.inner.deep = nn.ModuleList(nn.Linear(2, 2) for _ in range(9))
    model.blocks = nn.ModuleList([nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)])
    assert list(layers_of(model)) == ["blocks.0", "blocks.2"]
    assert places_of(model)["blocks.2"] == ["blocks.2.weight", "blocks.2.bias"]
    assert set(places_of(model)) == {"head", "inner", "blocks.0", "blocks.2"}
    plain = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    assert list(layers_of(plain)) == ["0", "2"]


def test_any_model_can_be_read_and_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    reader, x = FlowReader(model), torch.randn(5, 3)
    reader.attach()
    loss = model(x).square().mean()
    found = reader.before_backward(torch.Generator(), 2)
    loss.backward()
    found |= reader.after_backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    found |= reader.after_step()
    reader.detach()
    assert found["gradient_rms"]["2.weight"] == steps.gradient_rms(model[2].weight.grad)
    assert found["relative_update"]["0.weight"] > 0.0
    assert "0.bias" in found["gradient_rms"] and "0.bias" not in found["relative_update"]
    assert math.isnan(found["jacobian_gain"]["0"]), "inputs need no gradient"
    assert found["jacobian_gain"]["4"] > 0.0
    assert set(found["depth_factor"]) == {"0 … 4"} and "entropy" not in found
    assert not any(module._forward_hooks for module in model.modules())
    assert not reader.stepping


# -- verdicts ---------------------------------------------------------------------------------------------------------


def history(quantity: str, values: list[float]) -> History:
    made = History()
    for step, value in enumerate(values):
        made.add(step, {quantity: {"layers.3": value}})
    return made


@pytest.mark.parametrize(
    ("flags", "judged"), [("11", 0), ("111", 1), ("10101", 1), ("11000", 0), ("1110000", 0), ("0000111", 1)]
)
def test_three_of_the_last_five_readings_are_needed(flags: str, judged: int) -> None:
    found = history("entropy", [0.9999 if flag == "1" else 0.5 for flag in flags]).verdicts()
    assert len(found) == judged
    assert all(v.symptom == "unused attention" and v.count >= 3 for v in found)


SICK = {
    "gradient_rms": ([1e-9] * 3, "vanishing"),
    "relative_gradient": ([1e-7] * 3, "vanishing"),
    "relative_update": ([0.5] * 3, "learning rate too high"),
    "depth_factor": ([0.05] * 3, "vanishing"),
    "depth_ratio": ([1e4] * 3, "exploding"),
    "jacobian_gain": ([20.0] * 3, "exploding"),
    "same_sign": ([0.97] * 3, "dead query"),
    "low_degree": ([1.0] * 3, "dead query"),
    "query_ratio": ([1e-6] * 3, "dead query"),
    "entropy": ([0.01] * 3, "saturated attention"),
    "path_ratio": ([1e-6] * 3, "unused attention"),
    "saturated": ([0.95] * 3, "saturated attention"),
    "value_contrast": ([1e-5] * 3, "over-smoothed"),
    "balance": ([-0.99] * 3, "unbalanced"),
    "direction": ([-0.95] * 3, "learning rate too high"),
    "conservation": ([0.1] * 3, "wrong gradients"),
    "shift": ([0.1] * 3, "wrong gradients"),
}
HEALTHY = {
    "gradient_rms": 1e-3, "relative_gradient": 1e-2, "relative_update": 1e-3, "depth_factor": 1.0, "depth_ratio": 1.0,
    "jacobian_gain": 1.0, "same_sign": 0.5, "low_degree": 0.1, "query_ratio": 0.2, "entropy": 0.7, "path_ratio": 0.1,
    "saturated": 0.1, "value_contrast": 0.3, "balance": 0.1, "direction": 0.4, "conservation": 1e-7, "shift": 1e-7,
}  # fmt: skip


def test_every_rule_is_tested() -> None:
    assert {rule.quantity for rule in RULES} == set(SICK) == set(HEALTHY)


@pytest.mark.parametrize("quantity", SICK)
def test_sick_readings_are_named_and_healthy_ones_are_not(quantity: str) -> None:
    values, symptom = SICK[quantity]
    (verdict,) = history(quantity, values).verdicts()
    assert verdict.symptom == symptom and verdict.place == "layers.3"
    assert "Try: " in str(verdict) and "{" not in str(verdict)
    assert history(quantity, [HEALTHY[quantity]] * 5).verdicts() == []


def test_gradients_are_compared_with_their_own_past() -> None:
    steady = [1.0, 1.1, 0.9, 1.0]
    assert [v.symptom for v in history("gradient_rms", [*steady, 1e-4, 1e-4, 1e-4]).verdicts()] == ["vanishing"]
    assert [v.symptom for v in history("gradient_rms", [*steady, 500.0, 900.0, math.inf]).verdicts()] == ["exploding"]
    assert history("gradient_rms", [*steady, 5.0, 5.0, 5.0]).verdicts() == []


def test_what_is_not_applicable_is_not_kept() -> None:
    assert history("entropy", [math.nan] * 5).verdicts() == []
    assert not history("entropy", [math.nan] * 5).readings["entropy"]["layers.3"]
