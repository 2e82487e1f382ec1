"""Group elements: they preserve functions, invert, compose, and touch nothing that they should not."""

from __future__ import annotations

import math

import pytest
import torch
from specs import attention_spec, gru_spec

from wsl.batch import WeightBatch
from wsl.execute import execute
from wsl.spec import Label, SpecError, WeightSpec, mlp_spec
from wsl.symmetry import GroupElement, act, compose, draw, inverse

SPECS = {
    "relu": mlp_spec([3, 7, 5, 2]),
    "leaky_relu": mlp_spec([3, 7, 5, 2], "leaky_relu", {"slope": 0.2}),
    "tanh": mlp_spec([3, 7, 5, 2], "tanh"),
    "sine": mlp_spec([2, 6, 6, 1], "sine", {"omega": 3.0}, output_offset=0.5),
    "identity": mlp_spec([3, 4, 2], "identity"),
    "gru": gru_spec(),
}
CLAIMS = [
    (name, s)
    for name, spec in SPECS.items()
    for s in ("permutation", "scaling", "sign", "phase")
    if spec.labels_with(s)
]


def random_batch(spec: WeightSpec, size: int = 4, channels: int = 1) -> WeightBatch:
    return WeightBatch(spec, torch.randn(size, spec.numel, channels, dtype=torch.float64) * 0.5)


def random_inputs(spec: WeightSpec, count: int = 9) -> torch.Tensor:
    (source,) = spec.groups_of_kind("input")
    steps = (4,) if any(c.kind == "gru" for c in spec.connections) else ()
    return torch.randn(count, *steps, spec.size_of(source.name), dtype=torch.float64)


def change(spec: WeightSpec, element: GroupElement, batch: WeightBatch) -> float:
    inputs = random_inputs(spec)
    before, after = execute(batch, inputs), execute(act(element, batch), inputs)
    return float((after - before).abs().max() / before.abs().max())


@pytest.mark.parametrize(("name", "symmetry"), CLAIMS)
def test_functions_are_unchanged(name: str, symmetry: str) -> None:
    spec = SPECS[name]
    batch = random_batch(spec)
    element = draw(spec, len(batch), symmetries=(symmetry,), dtype=torch.float64)
    moved = act(element, batch)
    assert not torch.allclose(moved.values, batch.values)
    assert change(spec, element, batch) < 1e-12


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("tanh", "scaling"), ("relu", "sign"), ("tanh", "phase"), ("gru", "scaling"), ("sine", "scaling")],
)
def test_a_symmetry_that_does_not_hold_changes_the_function(name: str, wrong: str) -> None:
    spec = SPECS[name]
    batch = random_batch(spec)
    label = next(label for label in spec.labels if label.kind == "hidden")
    factor = {"scaling": 2.0, "sign": -1.0, "phase": 1.0}[wrong] * torch.ones(len(batch), label.size).double()
    if wrong != "phase":
        assert change(spec, GroupElement(factor={label.name: factor}), batch) > 1e-2
        return
    bias = next(t for t in spec.tensors if t.role == "bias" and t.axes == (label.name,))
    values = batch.values.clone()
    values[:, bias.offset : bias.offset + bias.numel] += math.pi
    inputs = random_inputs(spec)
    assert (execute(batch.with_values(values), inputs) - execute(batch, inputs)).abs().max() > 1e-2


@pytest.mark.parametrize("name", [*SPECS, "attention"])
def test_inverse_undoes(name: str) -> None:
    spec = SPECS.get(name) or attention_spec(6, 4, 5)
    batch = random_batch(spec)
    for symmetries in (("permutation",), ("permutation", "scaling", "sign", "phase")):
        element = draw(spec, len(batch), symmetries=symmetries, dtype=torch.float64)
        back = act(inverse(element), act(element, batch))
        torch.testing.assert_close(back.values, batch.values, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(act(element, batch).values, batch.values)


@pytest.mark.parametrize("name", list(SPECS))
def test_compose_acts_in_order(name: str) -> None:
    spec = SPECS[name]
    batch = random_batch(spec)
    every = ("permutation", "scaling", "sign", "phase")
    first, second = (draw(spec, len(batch), symmetries=every, dtype=torch.float64) for _ in range(2))
    together = act(compose(second, first), batch)
    torch.testing.assert_close(together.values, act(second, act(first, batch)).values, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(together.values, act(first, act(second, batch)).values)
    empty = GroupElement()
    for element in (compose(empty, first), compose(first, empty)):
        torch.testing.assert_close(act(element, batch).values, act(first, batch).values)


def test_differences_of_weights_move_without_the_shift() -> None:
    spec = SPECS["sine"]
    one, two = random_batch(spec), random_batch(spec)
    element = draw(spec, len(one), symmetries=("permutation", "sign", "phase"), dtype=torch.float64)
    difference = act(element, one).values - act(element, two).values
    moved = act(element, one.with_values(one.values - two.values), shift=False)
    torch.testing.assert_close(moved.values, difference)
    assert not torch.allclose(act(element, one.with_values(one.values - two.values)).values, difference)


def test_a_batch_moves_as_its_networks_do_alone() -> None:
    spec = SPECS["sine"]
    batch = random_batch(spec, size=3, channels=2)
    element = draw(spec, 3, symmetries=("permutation", "sign", "phase"), dtype=torch.float64)
    together = act(element, batch).values
    for row in range(3):
        alone = GroupElement(
            *(
                {n: t[row : row + 1] for n, t in part.items()}
                for part in (element.permutation, element.factor, element.half_turns)
            )
        )
        torch.testing.assert_close(
            act(alone, WeightBatch(spec, batch.values[row : row + 1])).values, together[row : row + 1]
        )


def test_permutation_of_a_layer_by_hand() -> None:
    spec = mlp_spec([1, 2, 1])  # row: w1 w2 | b1 b2 | v1 v2 | c
    batch = WeightBatch(spec, torch.tensor([1.0, 2, 3, 4, 5, 6, 7]).reshape(1, 7, 1))
    swap = GroupElement(permutation={"hidden1": torch.tensor([[1, 0]])})
    assert act(swap, batch).values.flatten().tolist() == [2, 1, 4, 3, 6, 5, 7]
    scale = GroupElement(factor={"hidden1": torch.tensor([[2.0, 4.0]])})
    assert act(scale, batch).values.flatten().tolist() == [2, 8, 6, 16, 2.5, 1.5, 7]


def test_gates_of_a_gru_move_together() -> None:
    spec = gru_spec(hidden=2, inputs=1)
    batch = WeightBatch(spec, torch.arange(spec.numel).float().reshape(1, -1, 1))
    moved = act(GroupElement(permutation={"h": torch.tensor([[1, 0]])}), batch).state_dict(0)
    assert moved["gru.weight_ih_l0"].flatten().tolist() == [1, 0, 3, 2, 5, 4]
    start = 6
    expected = torch.arange(12.0).reshape(3, 2, 2).flip(1, 2).reshape(6, 2) + start
    assert torch.equal(moved["gru.weight_hh_l0"], expected)


def test_inputs_and_outputs_move_only_where_asked() -> None:
    spec = mlp_spec([3, 4, 2])
    labels = [Label(x.name, x.size, x.kind, ("permutation",)) for x in spec.labels]
    relaxed = spec.replace(labels=labels)
    assert set(draw(relaxed, 1).permutation) == {"input", "hidden1", "output"}
    assert set(draw(relaxed, 1, kinds=("hidden",)).permutation) == {"hidden1"}
    batch = random_batch(relaxed)
    element = draw(relaxed, 4, dtype=torch.float64)
    inputs = random_inputs(relaxed).expand(4, -1, -1)
    outputs = execute(batch, inputs)
    order, out = element.permutation["input"], element.permutation["output"]
    moved = execute(act(element, batch), inputs.gather(2, order.unsqueeze(1).expand_as(inputs)))
    torch.testing.assert_close(moved, outputs.gather(2, out.unsqueeze(1).expand_as(outputs)))


def test_factors_are_differentiable() -> None:
    spec = mlp_spec([2, 3, 1])
    batch = random_batch(spec, size=2)
    factor = torch.rand(2, 3, dtype=torch.float64).add(0.5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda d, v: act(GroupElement(factor={"hidden1": d}), batch.with_values(v)).values,
        (factor, batch.values.requires_grad_()),
    )


def test_refusals() -> None:
    spec = SPECS["sine"]
    with pytest.raises(ValueError, match=r"unknown symmetries.*rotation"):
        draw(spec, 1, symmetries=("rotation",))
    with pytest.raises(ValueError, match=r"unknown kinds.*everything"):
        draw(spec, 1, kinds=("everything",))
    both = GroupElement(factor={"hidden1": torch.full((1, 6), 2.0)}, half_turns={"hidden1": torch.ones(1, 6)})
    with pytest.raises(ValueError, match=r"hidden1.*turns and scales"):
        inverse(both)
    connections = [c for c in spec.connections if c.target != "hidden1"]
    no_bias = spec.replace(connections=connections)
    with pytest.raises(SpecError, match="no bias to shift"):
        act(GroupElement(half_turns={"hidden1": torch.ones(1, 6)}), random_batch(no_bias, 1))
