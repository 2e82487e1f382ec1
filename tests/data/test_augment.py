"""Augmentation: a row's is its own in any batch, functions and images are kept as promised, noise is noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from specs import cnn_spec
from zoo_rows import network

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.config import ConfigError
from wsl.data.augment import Augment
from wsl.data.coordinates import NoCoordinatesError, move_coordinates, plane_map
from wsl.data.counter import RowRandom
from wsl.data.mixup import Mixup
from wsl.data.rows import Batch, RowDataset
from wsl.data.sampler import BatchSampler
from wsl.data.zoo_data import AugmentConfig, ZooData
from wsl.execute import execute
from wsl.spec import WeightSpec, mlp_spec
from wsl.zoo.coordinates import grid
from wsl.zoo.render import render

INR = mlp_spec((2, 7, 5, 1), "sine", {"omega": 6.0}, output_offset=0.5)
DEEPER = mlp_spec((2, 4, 4, 3, 3), "sine", {"omega": 5.0})
CNNS = (cnn_spec("relu"), cnn_spec("tanh"), cnn_spec("relu", (1, 3, 2, 4)))
EVERY = ("permutation", "scaling", "sign", "phase")


def single(spec: WeightSpec = INR, rows: int = 8, first: int = 0) -> WeightBatch:
    values = torch.randn(rows, spec.numel, 1, dtype=torch.float64) * 0.4
    return WeightBatch(spec, values, torch.arange(rows) % 3, torch.arange(first, first + rows) * 7)


def mixed(specs: tuple[WeightSpec, ...] = (INR, DEEPER)) -> MixedWeightBatch:
    parts = [single(spec, 4, 100 * number) for number, spec in enumerate(specs)]
    return MixedWeightBatch.collate(parts).select(torch.tensor([3, 0, 6, 1, 5, 2, 4, 7]))


OPTIONS: dict[str, dict[str, Any]] = {
    "images": {"rotation": 45.0, "translation": 0.2, "zoom": 0.1},
    "noise": {"noise": 0.1},
    "dropout": {"dropout": 0.3},
    "symmetries": {"symmetries": EVERY, "scale": (1.0, 10.0)},
    "mixup": {"mixup": 0.5},
    "all": {"rotation": 9.0, "noise": 0.1, "dropout": 0.1, "mixup": 1.0, "symmetries": EVERY, "views": 2},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("make", [single, mixed])
def test_a_row_gets_the_same_augmentation_in_any_batch(make: Callable[[], Batch], options: dict[str, Any]) -> None:
    batch, augment = make(), Augment(**options)
    partners = Mixup(RowDataset(batch), 3, augment.mixup, seed=5) if augment.mixup else None
    whole = augment.train(batch, 5, 2, partners)
    assert type(whole) is type(batch) and len(whole) == len(batch) * augment.views
    for chosen in ([6], [2, 7, 0]):
        part = augment.train(batch.select(torch.tensor(chosen)), 5, 2, partners)
        for view in range(augment.views):
            for place, row in enumerate(chosen):
                here, there = place + view * len(chosen), row + view * len(batch)
                assert torch.equal(network(part, here), network(whole, there))
                assert part.target is not None and whole.target is not None
                assert torch.equal(part.target[here], whole.target[there])
    assert not torch.equal(whole.values[: len(batch.values)], batch.values)
    for seed, epoch in ((6, 2), (5, 3)):
        assert not torch.equal(augment.train(batch, seed, epoch, partners).values, whole.values)
    if augment.views == 2:
        assert not torch.equal(whole.values[: len(batch.values)], whole.values[len(batch.values) :])


@pytest.mark.parametrize("options", [OPTIONS["images"], OPTIONS["noise"], OPTIONS["dropout"], OPTIONS["symmetries"]])
def test_one_architecture_is_augmented_as_it_is_among_others(options: dict[str, Any]) -> None:
    batch, augment = single(), Augment(**options)
    together = MixedWeightBatch.collate([single(DEEPER, 3, 50), batch])
    alone, among = augment.train(batch, 0, 0), augment.train(together, 0, 0)
    for place in range(len(batch)):
        assert torch.equal(network(alone, place), network(among, place + 3))


@pytest.mark.parametrize("zoo", ["cnn_zoo", "varied_zoo"])
def test_ranks_and_batch_sizes_change_nothing(zoo: str, request: pytest.FixtureRequest) -> None:
    """An epoch of one process in batches of 16, and of three in batches of 5: row for row the same networks."""
    options = AugmentConfig(noise=0.1, dropout=0.1, mixup=0.5, symmetries=EVERY)
    data = ZooData(path=str(request.getfixturevalue(zoo)), target="test_accuracy", augment=options, seed=4)
    dataset = data.dataset("train")

    def epoch(batch_size: int, ranks: int) -> dict[int, bytes]:
        seen = {}
        for rank in range(ranks):
            for positions in BatchSampler(range(len(dataset)), batch_size, 4, rank, ranks):
                batch = data.augmented(dataset[positions], "train", 3)
                assert batch.row_ids is not None and batch.target is not None
                for place, row in enumerate(batch.row_ids.tolist()):
                    seen[row] = network(batch, place).numpy().tobytes() + batch.target[place].numpy().tobytes()
        return seen

    one, three = epoch(16, 1), epoch(5, 3)
    assert len(one) == 80 and len(three) == 75 and all(one[row] == three[row] for row in three)


def test_nothing_is_the_default() -> None:
    batch = single()
    assert Augment().train(batch, 0, 0) is batch and not Augment().trains


# -- what keeps the function -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetry", EVERY)
@pytest.mark.parametrize("law", ["uniform", "log_uniform"])
def test_symmetries_keep_the_function(symmetry: Any, law: Any) -> None:
    for batch, inputs in ((mixed(), torch.randn(5, 2)), (mixed(CNNS), torch.randn(5, 1, 6, 6))):
        augment = Augment(symmetries=(symmetry,), scale=(1.0, 50.0), scale_law=law)
        moved = augment.train(batch, 0, 0)
        assert isinstance(moved, MixedWeightBatch)
        for (_, before), (_, after) in zip(batch.split(), moved.split(), strict=True):
            if before.spec.labels_with(symmetry):
                assert not torch.allclose(before.values, after.values)
            torch.testing.assert_close(
                execute(after, inputs.double()), execute(before, inputs.double()), rtol=1e-9, atol=1e-10
            )
    noisy = Augment(noise=0.05).train(batch, 0, 0)  # the control
    assert isinstance(noisy, MixedWeightBatch)
    (_, before), (_, after) = batch.split()[0], noisy.split()[0]
    assert not torch.allclose(execute(after, inputs.double()), execute(before, inputs.double()), rtol=1e-3)


@pytest.mark.parametrize("law", ["uniform", "log_uniform"])
def test_factors_of_scaling_lie_in_their_interval(law: Any) -> None:
    spec = mlp_spec((1, 50, 1), "relu")
    batch = WeightBatch(spec, torch.ones(200, spec.numel, 1, dtype=torch.float64), None, torch.arange(200))
    moved = Augment(symmetries=("scaling",), scale=(1.0, 100.0), scale_law=law).train(batch, 0, 0)
    assert isinstance(moved, WeightBatch)
    factors = moved["seq.0.bias"].flatten()
    assert 1 <= factors.min() < 1.1 and 90 < factors.max() <= 100
    middle = 50.5 if law == "uniform" else 10.0
    assert float((factors < middle).double().mean()) == pytest.approx(0.5, abs=0.03)


# -- what moves the image ----------------------------------------------------------------------------------------------


def image(batch: Batch, side: int = 9) -> np.ndarray:
    assert isinstance(batch, WeightBatch)
    return render(batch, side, side).reshape(len(batch), side, side).numpy()


def moved(batch: WeightBatch, angle: float = 0.0, zoom: float = 1.0, shift: tuple[float, ...] = (0, 0)) -> WeightBatch:
    rows = len(batch)
    matrix = plane_map(*torch.tensor([[angle], [zoom]], dtype=torch.float64).expand(2, rows))
    flat = move_coordinates(batch.flat(), matrix, torch.tensor([shift]).double().expand(rows, -1))
    return batch.with_values(flat.stacked())


def test_a_quarter_turn_turns_the_image() -> None:
    batch = single()
    found, before = image(moved(batch, angle=90.0)), image(batch)
    turned = np.rot90(before, 1, axes=(1, 2))
    np.testing.assert_allclose(found, turned, atol=1e-6)  # the grid is float32
    assert np.abs(found - before).max() > 0.01


def test_a_shift_by_pixels_shifts_the_image() -> None:
    """x runs along the columns: f(x + 2 pixels, y − 1 pixel) shows what lay two columns right and one row up."""
    batch, pixel = single(), 2 / 8
    found, before = image(moved(batch, shift=(2 * pixel, -pixel))), image(batch)
    np.testing.assert_allclose(found[:, 1:, :-2], before[:, :-1, 2:], atol=1e-6)
    assert np.abs(found - before).max() > 0.01


def test_the_whole_map_shows_the_image_at_the_mapped_points() -> None:
    batch = single(DEEPER)
    points = torch.from_numpy(grid(6, 6)).double()
    angle, zoom, shift = np.deg2rad(30), 1.2, np.array([0.1, -0.3])
    matrix = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    elsewhere = torch.from_numpy(points.numpy() @ matrix.T + shift)
    found = execute(moved(batch, 30.0, zoom, tuple(shift)), points)
    torch.testing.assert_close(found, execute(batch, elsewhere), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(found, execute(batch, points))


def test_maps_stay_within_their_bounds() -> None:
    augment = Augment(rotation=45.0, translation=0.25, zoom=0.2)
    matrix, shift = augment._plane(RowRandom.of(torch.arange(2000), 0, 0))
    size = matrix.det().sqrt()
    angle = torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0]).rad2deg()
    for found, low, high in ((size, 0.8, 1.2), (angle, -45.0, 45.0), (shift, -0.25, 0.25)):
        assert low <= found.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < found.max() <= high
        assert float(found.mean()) == pytest.approx((low + high) / 2, abs=0.04 * (high - low))


def test_only_images_can_be_moved(cnn_zoo: Path) -> None:
    with pytest.raises(NoCoordinatesError, match=r"not for WeightSpec.*read by 'conv'"):
        ZooData(path=str(cnn_zoo), target="test_accuracy", augment=AugmentConfig(rotation=10.0))
    with pytest.raises(NoCoordinatesError, match=r"\[3\] numbers, not a point in the plane"):
        Augment(zoom=0.1).check([mlp_spec((3, 4, 1), "sine")])


# -- noise and dropout -------------------------------------------------------------------------------------------------


def test_noise_is_normal_and_as_large_as_asked_for() -> None:
    spec = mlp_spec((40, 60, 1), "relu")
    values = torch.randn(50, spec.numel, 1, dtype=torch.float64)
    weight = torch.from_numpy(spec.tensor["seq.0.weight"].index().ravel())
    values[:, weight] *= 10
    batch = WeightBatch(spec, values, None, torch.arange(50))
    noisy = Augment(noise=0.1).train(batch, 0, 0)
    assert isinstance(noisy, WeightBatch)
    for name in ("seq.0.weight", "seq.0.bias", "seq.1.weight"):
        before = batch[name].flatten(1)
        share = (noisy[name].flatten(1) - before) / before.std(1, correction=0, keepdim=True)
        assert float(share.std()) == pytest.approx(0.1, rel=0.05)
        assert abs(float(share.mean())) < 4 * 0.1 / share.numel() ** 0.5
        assert float((share.abs() > 0.196).double().mean()) == pytest.approx(0.05, abs=0.015)  # two-sided 5 % point
    assert torch.equal(noisy["seq.1.bias"], batch["seq.1.bias"]), "one entry has no deviation"


def test_dropout_keeps_the_mean() -> None:
    spec = mlp_spec((30, 30, 2), "relu")
    batch = WeightBatch(spec, torch.ones(60, spec.numel, 1), None, torch.arange(60))
    dropped = Augment(dropout=0.2).train(batch, 0, 0).values
    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    assert float((dropped == 0).double().mean()) == pytest.approx(0.2, abs=0.01)


def test_buffers_are_left_alone() -> None:
    spec = cnn_spec("relu")
    tensors = tuple(
        type(t)(
            t.name, "buffer" if t.name == "layers.0.bias" else t.role, t.offset, t.shape, t.strides, t.axes, t.scaling
        )
        for t in spec.tensors
    )
    batch = single(spec.replace(tensors=tensors))
    changed = Augment(noise=0.5, dropout=0.5).train(batch, 0, 0)
    assert isinstance(changed, WeightBatch)
    assert torch.equal(changed["layers.0.bias"], batch["layers.0.bias"])
    assert not torch.equal(changed["layers.1.bias"], batch["layers.1.bias"])


# -- mixup -------------------------------------------------------------------------------------------------------------


def test_mixup_mixes_weights_and_targets_alike() -> None:
    batch = single(rows=40)
    mix = Mixup(RowDataset(batch), 3, alpha=1.0, seed=0)
    found = Augment(mixup=1.0).train(batch, 0, 4, mix)
    partner = mix.partner_of(4, 0)
    assert sorted(partner.tolist()) == list(range(40)) and not (partner == torch.arange(40)).any()
    other = batch.values[partner]
    share = ((found.values - other) / (batch.values - other)).mean(1).squeeze(-1)
    assert 0 <= share.min() < 0.1 and 0.9 < share.max() <= 1 and len(share.unique()) == 40
    torch.testing.assert_close(found.values, share[:, None, None] * batch.values + (1 - share)[:, None, None] * other)
    one_hot = torch.eye(3).double()
    expected = share[:, None] * one_hot[batch.target] + (1 - share)[:, None] * one_hot[batch.target[partner]]
    torch.testing.assert_close(found.target.double(), expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(mix.partner_of(5, 0), partner) and not torch.equal(mix.partner_of(4, 1), partner)


def test_mixup_stays_within_an_architecture() -> None:
    batch = mixed(CNNS).select(torch.tensor([0, 1, 2, 3, 4, 5, 6, 7]))
    partner = Mixup(RowDataset(batch), 0, alpha=0.2, seed=0).partner_of(0, 0)
    assert torch.equal(batch.spec_ids[partner], batch.spec_ids) and sorted(partner.tolist()) == list(range(8))
    lonely = batch.select(torch.tensor([0, 1]))
    assert Mixup(RowDataset(lonely), 0, 0.2, 0).partner_of(0, 0).tolist() in ([0, 1], [1, 0])


# -- twins -------------------------------------------------------------------------------------------------------------


def test_twins_follow_their_rows_and_never_change(cnn_zoo: Path) -> None:
    options = AugmentConfig(twins=("val",), twin_symmetries=("permutation", "scaling", "sign"), scale=(1.0, 100.0))
    data = ZooData(path=str(cnn_zoo), target="test_accuracy", augment=options)
    batch = data.dataset("val")[[4, 2, 9]]
    found = data.augmented(batch, "val", epoch=0)
    assert isinstance(found, MixedWeightBatch) and len(found) == 6 and batch.row_ids is not None
    assert torch.equal(found.values[: len(batch.values)], batch.values)
    assert found.row_ids.tolist() == [*batch.row_ids.tolist(), *(batch.row_ids + 120).tolist()]
    assert torch.equal(found.target[3:], batch.target)
    assert torch.equal(data.augmented(batch, "val", epoch=9).values, found.values)
    assert torch.equal(network(data.augmented(data.dataset("val")[[2]], "val", 0), 1), network(found, 4))
    for place in range(3):
        assert not torch.allclose(network(found, place), network(found, place + 3))
    inputs = torch.randn(4, 1, 6, 6)
    for _, group in found.split():
        outputs = execute(group.with_values(group.values.double()), inputs.double())
        torch.testing.assert_close(outputs[len(group) // 2 :], outputs[: len(group) // 2], rtol=1e-3, atol=1e-4)
    for split in ("train", "test"):
        assert data.augmented(batch, split, 0) is batch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (10.0, 1.0)}, r"data\.augment\.scale=\[10\.0, 1\.0\]"),
        ({"twins": ("test",)}, "twins needs data.augment.twin_symmetries"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Augment(**options)


def test_symmetries_that_no_network_has_are_refused(small_zoo: Path, cnn_zoo: Path) -> None:
    """Otherwise nothing would be moved, and nobody be told; a list of which some hold is taken."""
    for key, options in (
        ("symmetries", AugmentConfig(symmetries=("scaling",))),
        ("twin_symmetries", AugmentConfig(twins=("test",), twin_symmetries=("scaling",))),
    ):
        with pytest.raises(
            ConfigError, match=rf"data\.augment\.{key}=\[scaling\] moves .*permutation, sign, phase; nam"
        ):
            ZooData(path=str(small_zoo), augment=options)
    ZooData(path=str(small_zoo), augment=AugmentConfig(symmetries=("permutation", "scaling")))
    ZooData(path=str(small_zoo), augment=AugmentConfig(twin_symmetries=("scaling",)))  # there are no twins
    ZooData(path=str(cnn_zoo), target="test_accuracy", augment=AugmentConfig(symmetries=("scaling",)))
    bare = mlp_spec((2, 3))
    with pytest.raises(ConfigError, match=r"have no symmetries; set data\.augment\.symmetries=\[\]"):
        Augment(symmetries=("permutation",)).check([bare])
    with pytest.raises(ConfigError, match=r"have no symmetries; set data\.augment\.twins=\[\]"):
        Augment(twins=("test",), twin_symmetries=("permutation",)).check([bare])
    Augment(symmetries=("scaling",)).check([INR, mlp_spec((2, 3, 1), "relu")])  # one of them has it
