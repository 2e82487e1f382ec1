"""Zoos of varied CNNs: networks trained together against each trained alone, and what the built file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from wild_networks import WildModule

from wsl.batch import WeightBatch
from wsl.config import ConfigError, validated
from wsl.execute import execute
from wsl.zoo import Zoo, ZooError
from wsl.zoo.build.adamw import AdamW
from wsl.zoo.build.image_task import image_task, split_of_runs
from wsl.zoo.build.kinds import build_zoo
from wsl.zoo.build.wild_fit import WildNetworks, losses
from wsl.zoo.build.wild_recipe import DrawnNetwork, WildParkRecipe, draw_network
from wsl.zoo.verify import verify_zoo

DIGITS = {"train": "digits", "test": None, "greyscale": False}


def recipe(**changes: Any) -> WildParkRecipe:
    small: dict[str, Any] = {"images": DIGITS, "test_images": 360, "learning_rate": [1e-3, 1e-2], "batch_size": 64}
    return WildParkRecipe.model_validate(small | changes)


def varied(count: int) -> list[DrawnNetwork]:
    """Networks that are small and have all that can vary: kernels, widths, activations, skips of every kind."""
    drawn = recipe(widths=[2, 3, 5], kernels=[1, 3, 5], weight_decay=[0.0, 0.1], learning_rate=[1e-3, 3e-2])
    networks = [draw_network(drawn, number, 1, 10) for number in range(count)]
    assert {n.cnn.depth for n in networks} == {2, 3, 4, 5} and len({n.cnn for n in networks}) == count
    assert {a for n in networks for a in n.cnn.activations} == set(drawn.activations)
    skips = [(n.cnn.widths[e], n.cnn.widths[i]) for n in networks for i, e in enumerate(n.cnn.skips) if e >= 0]
    assert {np.sign(a - b) for a, b in skips} == {-1, 0, 1}
    return networks


def alone(network: DrawnNetwork, batches: list[tuple[Tensor, Tensor]], dtype: torch.dtype) -> Tensor:
    """A network trained as one would with nn.Module and torch.optim.AdamW: its weights after the batches."""
    module = WildModule(network.cnn).to(dtype)
    nn.utils.vector_to_parameters(torch.from_numpy(network.start).to(dtype), module.parameters())
    optimizer = torch.optim.AdamW(module.parameters(), lr=network.learning_rate, weight_decay=network.weight_decay)
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(module.parameters()).detach()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_training_together_equals_training_each_alone(dtype: torch.dtype, tolerance: float) -> None:
    drawn = varied(40)
    batches = [(torch.randn(9, 1, 6, 6, dtype=dtype), torch.randint(10, (9,))) for _ in range(6)]
    start = torch.from_numpy(np.concatenate([n.start for n in drawn])).to(dtype)
    networks = WildNetworks([n.cnn for n in drawn], start)
    assert torch.equal(networks.rows, start)
    rates, decays = (
        torch.tensor([getattr(n, name) for n in drawn], dtype=dtype)[networks.owner]
        for name in ("learning_rate", "weight_decay")
    )
    optimizer = AdamW(networks.parameters, rates, decays)
    for x, y in batches:
        losses(networks.logits(x), y).sum().backward()
        optimizer.step()
    expected = torch.cat([alone(network, batches, dtype) for network in drawn])
    assert (expected - start).abs().max() > 0.1  # they did move
    torch.testing.assert_close(networks.rows, expected, rtol=0, atol=tolerance)


# -- drawing ----------------------------------------------------------------------------------------------------------


def test_network_is_a_function_of_seed_and_number() -> None:
    one, again, other = (draw_network(recipe(seed=seed, runs=5), 3, 1, 10) for seed in (0, 0, 1))
    assert one.cnn == again.cnn and one.learning_rate == again.learning_rate and np.array_equal(one.start, again.start)
    assert not np.array_equal(one.start[:8], other.start[:8])
    assert not np.array_equal(one.start[:8], draw_network(recipe(seed=0), 4, 1, 10).start[:8])


def test_all_that_is_drawn_spreads_over_its_range() -> None:
    drawn = [draw_network(recipe(weight_decay=[0.0, 0.1]), number, 1, 10) for number in range(200)]
    for values, allowed in (
        ([n.cnn.depth for n in drawn], (2, 3, 4, 5)),
        ([w for n in drawn for w in n.cnn.widths], (4, 8, 16, 32)),
        ([k for n in drawn for k in n.cnn.kernels], (3, 5, 7)),
        ([n.weight_decay for n in drawn], (0.0, 0.1)),
    ):
        counts = [values.count(value) for value in allowed]  # type: ignore[attr-defined]
        assert sum(counts) == len(values) and min(counts) > 0.7 * len(values) / len(allowed)
    into_last = [n.cnn.skips[4] for n in drawn if n.cnn.depth == 5]
    assert set(into_last) == {-1, 0, 1, 2} and all(n.cnn.skips[:2] == (-1, -1) for n in drawn)
    rates = np.log([n.learning_rate for n in drawn])
    assert abs(rates.mean() - np.log([1e-3, 1e-2]).mean()) < 0.15 and np.exp(rates).max() <= 1e-2
    assert all(
        n.cnn.skips == (-1,) * n.cnn.depth for n in (draw_network(recipe(skips=False), k, 1, 10) for k in range(9))
    )


def test_start_is_that_of_pytorch() -> None:
    network = next(n for n in (draw_network(recipe(), k, 1, 10) for k in range(50)) if n.cnn.widths[:2] == (16, 32))
    layer = WildModule(network.cnn).layers[1]
    bound = 1 / np.sqrt(layer.weight[0].numel())
    start = network.start[network.cnn.shapes["layers.0.weight"][-1] ** 2 * 16 + 16 :][: layer.weight.numel()]
    for values in (start, layer.weight.detach().numpy()):
        assert np.abs(values).max() <= bound and abs(values.std() / (bound / np.sqrt(3)) - 1) < 0.03


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernels": [3, 4]}, "kernels should be odd"),
        ({"checkpoints": [5, 2]}, "should rise"),
        ({"learning_rate": [1e-2, 1e-3]}, "lower bound should come first"),
        ({"activations": ["relu", "softplus"]}, "softplus"),
        ({"widths": [0]}, "widths"),
    ],
)
def test_wrong_recipes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validated(WildParkRecipe, recipe().model_dump(mode="json") | changes)


# -- the file ---------------------------------------------------------------------------------------------------------

QUICK: dict[str, Any] = {
    "runs": 24,
    "depths": [2, 3],
    "widths": [4, 8],
    "kernels": [3],
    "learning_rate": [3e-3, 3e-2],
    "checkpoints": [1, 5],
    "block": 9,
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_zoo(recipe(**QUICK), tmp_path_factory.mktemp("built") / "zoo.h5", progress=False)


def test_the_file_holds_what_the_recipe_says(built: Path) -> None:
    with Zoo(built) as zoo:
        columns = {name: zoo.column(name) for name in zoo.columns}
        assert len(zoo) == 48 and zoo.run_ids.tolist() == np.repeat(np.arange(24), 2).tolist()
        assert {name: len(set(zoo.run_ids[rows])) for name, rows in zoo.splits.items()} == {
            "train": 17,
            "val": 2,
            "test": 5,
        }
        assert columns["epoch"].tolist() == [1, 5] * 24
        assert all(spec.verified for spec in zoo.specs) and len(zoo.specs) > 15
        for row in range(0, 48, 7):
            expected = draw_network(recipe(**QUICK), row // 2, 1, 10)
            depth = expected.cnn.depth
            layers = {name: tuple(columns[f"{name}_{i}"][row] for i in range(depth)) for name in ("width", "kernel")}
            assert (layers["width"], layers["kernel"]) == (expected.cnn.widths, expected.cnn.kernels)
            assert tuple(columns[f"activation_{i}"][row] for i in range(depth)) == expected.cnn.activations
            assert tuple(columns[f"skip_{i}"][row] for i in range(depth)) == expected.cnn.skips
            assert columns["learning_rate"][row] == expected.learning_rate
            assert zoo.specs[zoo.spec_ids[row]].to_dict() == expected.cnn.spec().replace(verified=True).to_dict()
            assert columns["parameters"][row] == zoo.specs[zoo.spec_ids[row]].numel


def test_labels_vary(built: Path) -> None:
    accuracy = Zoo(built).column("test_accuracy")
    counts, _ = np.histogram(accuracy, np.linspace(0, 1, 11))
    assert (counts > 0).sum() >= 5 and counts.max() < 0.6 * len(accuracy) and len(np.unique(accuracy)) >= 20
    assert accuracy.max() > 0.6


def test_stored_accuracy_is_that_of_the_stored_weights(built: Path) -> None:
    task = image_task(recipe().images, 360, None, 0)
    with Zoo(built) as zoo:
        accuracy, loss = zoo.column("test_accuracy"), zoo.column("train_loss")
        for row in range(0, 48, 5):
            values, _, _ = zoo.read_mixed(row, row + 1)
            batch = WeightBatch(zoo.specs[zoo.spec_ids[row]], torch.from_numpy(values).reshape(1, -1, 1))
            right = execute(batch, task.test)[0].argmax(1) == task.test_labels
            assert abs(right.double().mean().item() - accuracy[row]) < 1.5 / 360
            found = F.cross_entropy(execute(batch, task.train)[0], task.train_labels).item()
            assert abs(found - loss[row]) < 1e-4 * max(1, loss[row])
    checks = verify_zoo(built)
    assert [check.failures for check in checks if check.failures] == []


def test_a_wrong_label_is_found(built: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.h5"
    wrong.write_bytes(built.read_bytes())
    with h5py.File(wrong, "r+") as file:
        file["columns/test_accuracy"][0] = 0.97
    scores = next(check for check in verify_zoo(wrong) if check.name.startswith("scores"))
    assert any("row 0: test_accuracy is stored as 0.97" in failure for failure in scores.failures)


# -- images -----------------------------------------------------------------------------------------------------------


def test_images_are_standardised_and_held_out_by_label() -> None:
    task = image_task(recipe().images, 360, None, 0)
    assert task.input_shape == [1, 8, 8] and task.classes == 10 and (len(task.train), len(task.test)) == (1437, 360)
    assert abs(task.train.mean()) < 1e-5 and abs(task.train.std() - 1) < 1e-3
    assert np.bincount(task.test_labels).min() >= 34
    few = image_task(recipe().images, 360, 100, 0)
    assert len(few.train) == 100 and np.bincount(few.train_labels).min() >= 8
    torch.testing.assert_close(few.test_labels, task.test_labels)


def test_runs_are_split_by_share() -> None:
    splits = split_of_runs(50, 0.1, 0.2, 0)
    assert {name: len(runs) for name, runs in splits.items()} == {"train": 35, "val": 5, "test": 10}
    assert sorted(np.concatenate(list(splits.values()))) == list(range(50))
    with pytest.raises(ZooError, match="leave none of 4 runs to train on"):
        split_of_runs(4, 0.5, 0.5, 0)
