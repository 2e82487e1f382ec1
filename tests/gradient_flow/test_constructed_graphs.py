"""Graphs whose diagnosis is known beforehand: each must be found, by name, and a healthy layer must not be accused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from wsl.gradient_flow.conservation import residual
from wsl.gradient_flow.reader import FlowReader, Readings
from wsl.gradient_flow.verdicts import History
from wsl.nn.gatv2_conv import GATv2Conv

NODES, DEGREE = 200, 5


class Stack(nn.Module):
    """Attention layers with an activation between them."""

    def __init__(self, layers: list[GATv2Conv], activation: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.layers, self.activation = nn.ModuleList(layers), activation
        self.conserved_pairs = tuple(
            (f"layers.{n}", f"layers.{n + 1}") for n in range(len(layers) - 1) if activation is torch.relu
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x, edge_index)
            if number < len(self.layers) - 1:
                x = self.activation(x)
        return x


def layer(inputs: int = 6, outputs: int = 4, heads: int = 2, **options: object) -> GATv2Conv:
    return GATv2Conv(inputs, outputs, heads, add_self_loops=False, **options).double()  # type: ignore[arg-type]


def neighbours(degree: int = DEGREE) -> Tensor:
    """``degree`` random sources for each node."""
    target = torch.arange(NODES).repeat_interleave(degree)
    return torch.stack([torch.randint(NODES, (NODES * degree,)), target])


def readings(model: nn.Module, edge_index: Tensor, x: Tensor | None = None, reps: int = 1) -> tuple[Readings, History]:
    """Of the last of ``reps`` equal steps without update, and the history of all."""
    x = torch.randn(NODES, 6, dtype=torch.float64) if x is None else x
    reader, history, found = FlowReader(model), History(), {}
    goal = torch.randn(model(x, edge_index).shape, dtype=torch.float64)
    for step in range(reps):
        model.zero_grad()
        reader.attach()
        loss = (model(x, edge_index) - goal).square().mean()
        found = reader.before_backward(torch.Generator().manual_seed(step), 2)
        loss.backward()
        found |= reader.after_backward()
        reader.detach()
        history.add(step, found)
    return found, history


def symptoms(history: History) -> set[tuple[str, str]]:
    return {(v.symptom, v.place) for v in history.verdicts()}


def test_a_healthy_layer_is_not_accused() -> None:
    model = Stack([layer(outputs=16)])
    model.layers[0].att.data *= 3
    found, history = readings(model, neighbours(), reps=5)
    assert symptoms(history) == set()
    assert 0.2 < found["entropy"]["layers.0"] < 0.95
    assert found["shift"]["layers.0"] < 1e-10
    assert found["low_degree"]["layers.0"] == 0.0


def test_nodes_with_one_edge_have_no_choice_to_make() -> None:
    model = Stack([layer()])
    found, history = readings(model, neighbours(degree=1), reps=3)
    (attention,) = model.layers
    largest = attention.lin_l.weight.grad.abs().max()
    assert (
        attention.att.grad.abs().max() < 1e-14 * largest and attention.lin_r.weight.grad.abs().max() < 1e-14 * largest
    )
    assert found["low_degree"]["layers.0"] == 1.0
    assert all(math.isnan(found[q]["layers.0"]) for q in ("entropy", "path_ratio", "same_sign", "value_contrast"))
    assert ("dead query", "layers.0") in symptoms(history)


def test_same_sign_of_all_scores_leaves_the_query_without_gradient() -> None:
    model = Stack([layer()])
    model.layers[0].lin_r.bias.data += 100.0
    found, history = readings(model, neighbours(), reps=3)
    attention = model.layers[0]
    assert attention.lin_r.weight.grad.abs().max() < 1e-12 < 1e-4 < attention.lin_l.weight.grad.abs().max()
    assert found["same_sign"]["layers.0"] == 1.0
    assert ("dead query", "layers.0") in symptoms(history)
    words = [v for v in history.verdicts() if v.symptom == "dead query"]
    assert any("one sign" in v.words and "softplus" in v.advice for v in words)


def test_softplus_revives_the_query() -> None:
    """What the verdict advises helps: the slope differs from edge to edge although the signs agree."""
    ratios = {}
    for score in ("leaky_relu", "softplus"):
        torch.manual_seed(1)
        model = Stack([layer(score=score)])
        model.layers[0].lin_r.bias.data += 8.0
        ratios[score] = readings(model, neighbours())[0]["query_ratio"]["layers.0"]
    assert ratios["leaky_relu"] < 1e-10 < 1e-6 < ratios["softplus"]


def test_equal_features_are_over_smoothed() -> None:
    model = Stack([layer()])
    x = torch.randn(1, 6, dtype=torch.float64).expand(NODES, -1)
    found, history = readings(model, neighbours(), x, reps=3)
    attention = model.layers[0]
    assert attention.att.grad.abs().max() < 1e-13 and attention.lin_r.weight.grad.abs().max() < 1e-13
    assert found["value_contrast"]["layers.0"] < 1e-20
    assert ("over-smoothed", "layers.0") in symptoms(history)
    assert ("unused attention", "layers.0") in symptoms(history)


def test_entropy_falls_as_the_attention_vector_grows() -> None:
    """×3, ×10, ×100: from a choice among neighbours to a single one."""
    entropy, saturated = [], []
    for scale in (3.0, 10.0, 100.0):
        torch.manual_seed(2)
        model = Stack([layer(outputs=16)])
        model.layers[0].att.data *= scale
        found, history = readings(model, neighbours(), reps=3)
        entropy.append(found["entropy"]["layers.0"])
        saturated.append(found["saturated"]["layers.0"])
    assert entropy[0] > 0.5 > entropy[1] > 0.05 > entropy[2]
    assert saturated[0] < 0.01 < saturated[1] < 0.5 < saturated[2]
    model.layers[0].att.data *= 10
    assert ("saturated attention", "layers.0") in symptoms(readings(model, neighbours(), reps=3)[1])
    assert not {s for s, _ in symptoms(history)} & {"unused attention", "over-smoothed"}


def test_no_scores_is_unused_attention() -> None:
    model = Stack([layer()])
    model.layers[0].att.data.zero_()
    found, history = readings(model, neighbours(), reps=3)
    assert found["entropy"]["layers.0"] == pytest.approx(1.0, abs=1e-12)
    assert found["path_ratio"]["layers.0"] == 0.0
    assert ("unused attention", "layers.0") in symptoms(history)


@pytest.mark.parametrize(("scale", "symptom"), [(25.0, "exploding"), (0.04, "vanishing")])
def test_weights_that_grow_or_shrink_per_layer_explode_or_vanish(scale: float, symptom: str) -> None:
    """Each layer multiplies gradients by its weights (D13); the first layer's share of the last one's tells (D4)."""
    model = Stack([layer(), *[layer(8) for _ in range(3)]])
    for number, attention in enumerate(model.layers):
        attention.lin_l.weight.data *= scale**number
        attention.att.data.zero_()  # the messages' path alone
    _, history = readings(model, neighbours(), reps=3)
    found = {(v.symptom, v.place) for v in history.verdicts() if v.quantity in ("depth_factor", "jacobian_gain")}
    assert found == {(symptom, place) for place in ("layers.0 … layers.3", "layers.1", "layers.2", "layers.3")}


def test_conservation_law_holds_and_elu_is_not_applicable() -> None:
    def stack(activation: Callable[[Tensor], Tensor]) -> Stack:
        torch.manual_seed(3)
        return Stack([layer(), layer(8, share_weights=True), layer(8, concat=False, heads=3)], activation)

    found, _ = readings(stack(torch.relu), neighbours())
    assert set(found["conservation"]) == {"layers.0 → layers.1", "layers.1 → layers.2"}
    assert max(found["conservation"].values()) < 1e-12
    assert all(-1.0 <= level <= 1.0 for level in found["balance"].values())

    model = stack(torch.nn.functional.elu)
    found, _ = readings(model, neighbours())
    assert "conservation" not in found, "the law does not hold, so nothing may be said"
    assert residual(model.layers[0], model.layers[1]) > 1e-3, "it is broken indeed"


def test_a_wrong_gradient_breaks_the_law() -> None:
    model = Stack([layer(), layer(8)])
    readings(model, neighbours())
    model.layers[0].lin_r.weight.grad *= 1.5
    assert residual(model.layers[0], model.layers[1]) > 1e-3
