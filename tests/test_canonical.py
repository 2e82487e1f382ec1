"""Canonical weights: the same function, one representative per orbit, defined at zero rows and ties."""

from __future__ import annotations

import math

import pytest
import torch

from wsl.batch import WeightBatch
from wsl.canonical import canonicalise
from wsl.execute import execute
from wsl.spec import WeightSpec, mlp_spec
from wsl.symmetry import act, draw, inverse

SPECS = {
    "relu": mlp_spec([3, 7, 5, 2]),
    "tanh": mlp_spec([3, 7, 5, 2], "tanh"),
    "sine": mlp_spec([2, 6, 6, 1], "sine", {"omega": 30.0}, output_offset=0.5),
    "identity": mlp_spec([3, 4, 2], "identity"),
}
CONTINUOUS = ("scaling", "sign", "phase")


def random_batch(spec: WeightSpec, size: int = 5) -> WeightBatch:
    return WeightBatch(spec, torch.randn(size, spec.numel, 1, dtype=torch.float64) * 0.5)


@pytest.mark.parametrize("name", list(SPECS))
def test_the_function_is_the_same(name: str) -> None:
    batch = random_batch(SPECS[name])
    inputs = torch.randn(11, SPECS[name].labels[0].size, dtype=torch.float64)
    canonical, element = canonicalise(batch)
    assert not torch.allclose(canonical.values, batch.values)
    torch.testing.assert_close(execute(canonical, inputs), execute(batch, inputs), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(act(element, batch).values, canonical.values)
    torch.testing.assert_close(act(inverse(element), canonical).values, batch.values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(SPECS))
@pytest.mark.parametrize("scale", [(0.1, 10.0), (1e-4, 1e4)])
def test_one_representative_per_orbit(name: str, scale: tuple[float, float]) -> None:
    batch = random_batch(SPECS[name])
    moved = act(draw(batch.spec, len(batch), None, CONTINUOUS, scale, dtype=torch.float64), batch)
    assert not torch.allclose(moved.values, batch.values)
    torch.testing.assert_close(canonicalise(moved)[0].values, canonicalise(batch)[0].values, rtol=1e-10, atol=1e-12)
    other = random_batch(batch.spec)
    assert not torch.allclose(canonicalise(other)[0].values, canonicalise(batch)[0].values)


@pytest.mark.parametrize("name", list(SPECS))
def test_commutes_with_permutations_and_is_idempotent(name: str) -> None:
    batch = random_batch(SPECS[name])
    element = draw(batch.spec, len(batch), dtype=torch.float64)
    canonical = canonicalise(batch)[0]
    torch.testing.assert_close(canonicalise(act(element, batch))[0].values, act(element, canonical).values)
    torch.testing.assert_close(canonicalise(canonical)[0].values, canonical.values)


def test_rows_have_norm_one_and_columns_take_the_norm() -> None:
    spec = mlp_spec([2, 1, 1])  # row: w w | b | v | c
    batch = WeightBatch(spec, torch.tensor([2.0, 3, 6, 5, 9]).reshape(1, 5, 1))
    canonical, element = canonicalise(batch)
    torch.testing.assert_close(canonical.values.flatten(), torch.tensor([2 / 7, 3 / 7, 6 / 7, 35, 9]))
    assert element.factor["hidden1"].item() == pytest.approx(1 / 7)


def test_signs_make_row_sums_positive() -> None:
    spec = mlp_spec([2, 1, 1], "tanh")
    batch = WeightBatch(spec, torch.tensor([2.0, -4, 1, 5, 9]).reshape(1, 5, 1))
    assert canonicalise(batch)[0].values.flatten().tolist() == [-2, 4, -1, -5, 9]


@pytest.mark.parametrize("omega", [1.0, 30.0])
def test_biases_are_folded_by_multiples_of_the_half_period(omega: float) -> None:
    """(w, b) := (−1)^k (w, b − kπ/ω), up to the sign of the pair that ``sign`` settles."""
    spec = mlp_spec([2, 4, 1], "sine", {"omega": omega})
    batch = random_batch(spec)
    batch = batch.with_values(batch.values * 4)
    canonical, element = canonicalise(batch)
    w, b, v = ("seq.0.weight", "seq.0.bias", "seq.1.weight")
    k = (omega * batch[b] / math.pi - 0.5).ceil()
    assert (k.abs() >= 1).any()
    assert ((omega * canonical[b] > -math.pi / 2 - 1e-9) & (omega * canonical[b] <= math.pi / 2 + 1e-9)).all()
    own = (-1.0) ** k
    settled = torch.where((own.unsqueeze(2) * batch[w]).sum(2) < 0, -1.0, 1.0)
    torch.testing.assert_close(canonical[w], (settled * own).unsqueeze(2) * batch[w])
    torch.testing.assert_close(canonical[b], settled * own * (batch[b] - k * math.pi / omega), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(canonical[v], settled.unsqueeze(1) * batch[v])
    assert element.half_turns["hidden1"].abs().max() >= 1


def _dead_and_tied(spec: WeightSpec) -> WeightBatch:
    batch = random_batch(spec)
    values = batch.values.clone()
    moved = WeightBatch(spec, values)
    for layer in ("seq.0", "seq.1"):
        moved[f"{layer}.weight"][:, 0] = 0  # a zero row with a live column
        moved[f"{layer}.bias"][:, 0] = 0
    moved["seq.0.weight"][:, 1] = torch.tensor(
        [1.0, -1.0] + [0.0] * (spec.labels[0].size - 2), dtype=torch.float64
    ).unsqueeze(-1)
    moved["seq.0.bias"][:, 1] = 0  # sums to zero, so do its cubes; the order of the inputs decides
    moved["seq.1.weight"][:, 1] = 0
    moved["seq.1.weight"][:, 1, 2:4] = torch.tensor([1.0, -1.0], dtype=torch.float64).unsqueeze(-1)
    moved["seq.1.bias"][:, 1] = 0  # sums to zero and its inputs have no order
    moved["seq.1.weight"][:, :, 3] = 0  # a zero column
    return moved


@pytest.mark.parametrize("name", ["relu", "tanh", "sine"])
def test_zero_rows_and_ties_are_decided_by_columns(name: str) -> None:
    batch = _dead_and_tied(SPECS[name])
    canonical, _ = canonicalise(batch)
    assert canonical.values.isfinite().all()
    moved = act(draw(batch.spec, len(batch), None, CONTINUOUS, (1e-3, 1e3), dtype=torch.float64), batch)
    torch.testing.assert_close(canonicalise(moved)[0].values, canonical.values, rtol=1e-9, atol=1e-12)


def test_all_zero_weights_stay() -> None:
    for spec in SPECS.values():
        batch = WeightBatch(spec, torch.zeros(2, spec.numel, 1))
        assert torch.equal(canonicalise(batch)[0].values, batch.values)


def test_fields_are_mapped_back() -> None:
    """An equivariant map through the canonical frame commutes with the group, sine phase included."""
    for name in SPECS:
        batch = random_batch(SPECS[name])

        def edit(weights: WeightBatch) -> WeightBatch:
            canonical, element = canonicalise(weights)
            field = canonical.with_values(torch.tanh(canonical.values) * 0.1 + 0.01)
            return weights.with_values(weights.values + act(inverse(element), field, shift=False).values)

        element = draw(batch.spec, len(batch), None, ("permutation", *CONTINUOUS), dtype=torch.float64)
        torch.testing.assert_close(
            edit(act(element, batch)).values, act(element, edit(batch)).values, rtol=1e-9, atol=1e-10
        )


def test_gradients_flow_through_the_scale() -> None:
    spec = mlp_spec([2, 3, 1])
    values = torch.randn(2, spec.numel, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: canonicalise(WeightBatch(spec, v))[0].values, values)


def test_only_what_is_asked_for() -> None:
    batch = random_batch(SPECS["tanh"])
    assert torch.equal(canonicalise(batch, ("scaling",))[0].values, batch.values)
    batch = random_batch(SPECS["sine"])
    folded, element = canonicalise(batch, ("phase",))
    assert not element.factor["hidden1"].ne(1).any()
    turned = act(draw(batch.spec, len(batch), None, ("phase",), dtype=torch.float64), batch)
    torch.testing.assert_close(canonicalise(turned, ("phase",))[0].values, folded.values, rtol=1e-9, atol=1e-12)


def test_refusals() -> None:
    spec = SPECS["relu"]
    with pytest.raises(ValueError, match=r"cannot canonicalise.*permutation"):
        canonicalise(random_batch(spec), ("permutation",))
    with pytest.raises(ValueError, match=r"one channel.*has 2"):
        canonicalise(WeightBatch(spec, torch.zeros(1, spec.numel, 2)))
    values = torch.zeros(2, spec.numel, 1)
    values[1, 4] = float("nan")
    with pytest.raises(ValueError, match="network 1 has the value nan at position 4"):
        canonicalise(WeightBatch(spec, values))
