"""Standardised values have mean 0 and deviation 1 in each tensor, or in each part that tensors of a family play."""

from __future__ import annotations

import pytest
import torch
from specs import cnn_spec, gru_spec

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.nn.places import slot_names
from wsl.nn.standardize import Standardize
from wsl.spec import WeightSpec
from wsl.spec.family import SpecFamily

ALIKE = (cnn_spec("relu"), cnn_spec("tanh"))
VARIED = (cnn_spec("relu"), cnn_spec("tanh", (1, 3, 5, 2)), cnn_spec("relu", (1, 2, 3, 4, 5)))


def rows(spec: WeightSpec, count: int = 30) -> WeightBatch:
    """Networks whose tensors differ in mean and size."""
    values = torch.randn(count, spec.numel, 1, dtype=torch.float64)
    for number, tensor in enumerate(spec.tensors):
        index = torch.from_numpy(tensor.index().ravel())
        values[:, index] = values[:, index] * (1 + number) + number
    return WeightBatch(spec, values)


@pytest.mark.parametrize("spec", [cnn_spec("relu"), gru_spec()])
@pytest.mark.parametrize("center", [True, False])
def test_each_tensor_has_its_own_statistics(spec: WeightSpec, center: bool) -> None:
    batch = rows(spec)
    standardize = Standardize(spec, center).double()
    assert torch.equal(standardize(batch.values), batch.values)
    standardize.fit(batch)
    found = batch.with_values(standardize(batch.values))
    for tensor in spec.tensors:
        values = found[tensor.name]
        assert float(values.square().mean()) == pytest.approx(1, rel=1e-9)
        assert (abs(float(values.mean())) < 1e-9) == center or tensor.name == spec.tensors[0].name


@pytest.mark.parametrize("specs", [ALIKE, VARIED])
def test_a_family_has_statistics_for_each_part(specs: tuple[WeightSpec, ...]) -> None:
    parts = [rows(spec) for spec in specs]
    batch = MixedWeightBatch.collate(parts).select(torch.randperm(90)[: 30 * len(specs)] % (30 * len(specs)))
    standardize = Standardize(SpecFamily(specs)).double()
    assert len(standardize.slots) == 6
    standardize.fit(batch)
    found = batch.with_values(standardize.flat(batch))
    of_slot: dict[str, list[torch.Tensor]] = {name: [] for name in standardize.slots}
    for _, part in found.split():
        names = slot_names(part.spec, by_name=specs is ALIKE)
        for tensor, name in zip(part.spec.tensors, names, strict=True):
            of_slot[name].append(part[tensor.name].flatten())
    for values in (torch.cat(held) for held in of_slot.values()):
        assert abs(float(values.mean())) < 1e-9 and float(values.std(correction=0)) == pytest.approx(1, rel=1e-9)


def test_one_architecture_of_a_family_is_standardised_as_alone() -> None:
    batch = rows(ALIKE[0])
    alone, family = Standardize(ALIKE[0]).double(), Standardize(SpecFamily(ALIKE)).double()
    alone.fit(batch)
    family.fit(batch)
    torch.testing.assert_close(family.flat(batch.flat()), alone(batch.values).flatten(0, 1), rtol=1e-12, atol=1e-12)


def test_bad_values_are_named_and_absent_tensors_are_left() -> None:
    batch = rows(VARIED[0])
    standardize = Standardize(SpecFamily(VARIED)).double()
    shallow = rows(cnn_spec("relu", (1, 2)))
    seen = Standardize(SpecFamily((*VARIED, shallow.spec)))
    seen.fit(shallow)
    assert [name for name, std in zip(seen.slots, seen.std.tolist(), strict=True) if std == 1] == [
        "hidden weight", "hidden bias",
    ]  # fmt: skip
    values = batch.values.clone()
    values[3, VARIED[0].tensor["layers.1.bias"].offset] = torch.nan
    with pytest.raises(ValueError, match="tensor 'hidden bias' holds values that are not finite"):
        standardize.fit(batch.with_values(values))
    with pytest.raises(ValueError, match="empty batch"):
        standardize.fit(batch.with_values(values[:0]))
