"""Building zoos of small classifiers: what is drawn, and the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from small_classifiers import DIGITS, MODULES, ODD, images, plain_network, trainings

from wsl.batch import WeightBatch
from wsl.config import ConfigError, validated
from wsl.execute import execute
from wsl.zoo import Zoo, ZooError
from wsl.zoo.build import classifier_fit, classifier_native
from wsl.zoo.build.classifier import classifier_job, labelled_images, spec_of, training_of
from wsl.zoo.build.classifier_recipe import CNNRecipe, MLPRecipe, draw, generator, initial_row
from wsl.zoo.build.kinds import KINDS, build_zoo
from wsl.zoo.verify import verify_zoo

ROOT = Path(__file__).parents[2]
# -- what is drawn ----------------------------------------------------------------------------------------------------


def cnn(**changes: Any) -> CNNRecipe:
    small: dict[str, Any] = {
        "images": {"train": "digits", "test": None},
        "test_images": 360,
        "stride": 1,
        "batch_size": 32,
        "runs": 24,
        "checkpoints": (0, 2, 8),
        "block": 5,
    }
    return CNNRecipe.model_validate(small | changes)


def mlp(**changes: Any) -> MLPRecipe:
    values = cnn().model_dump(exclude={"kind", "channels", "kernel", "stride", "activations"})
    return MLPRecipe.model_validate(values | changes)


def test_hyper_parameters_are_drawn_from_the_ranges_of_the_recipe() -> None:
    draws = [draw(cnn(), run) for run in range(4000)]
    for name in ("activation", "optimizer", "initializer", "train_fraction"):
        values, counts = np.unique([getattr(drawn, name) for drawn in draws], return_counts=True)
        assert len(values) == {"activation": 2, "optimizer": 3, "initializer": 5, "train_fraction": 4}[name]
        assert np.abs(counts / 4000 - 1 / len(values)).max() < 0.03
    for name, low, high in (("learning_rate", 5e-4, 5e-2), ("l2", 1e-8, 1e-2), ("init_std", 1e-2, 0.5)):
        values = np.array([getattr(drawn, name) for drawn in draws])
        assert low <= values.min() and values.max() <= high
        assert np.median(values) == pytest.approx(np.sqrt(low * high), rel=0.25)
    dropout = np.array([drawn.dropout for drawn in draws])
    assert dropout.min() >= 0 and dropout.max() <= 0.7 and dropout.mean() == pytest.approx(0.35, abs=0.02)
    assert draw(cnn(runs=3), 2) == draws[2] != draw(cnn(seed=1), 2)


@pytest.mark.parametrize(
    ("initializer", "deviations"),
    [
        ("glorot_normal", [np.sqrt(2 / (17 * 9)), np.sqrt(2 / (32 * 9)), np.sqrt(2 / 26)]),
        ("he_normal", [np.sqrt(2 / 9), np.sqrt(2 / 144), np.sqrt(2 / 16)]),
        ("orthogonal", [1 / 4, 1 / 12, 1 / 4]),
        ("normal", [0.2] * 3),
        ("truncated_normal", [0.2 * 0.8796] * 3),
    ],
)
def test_networks_start_as_their_initializer_says(initializer: Any, deviations: list[float]) -> None:
    drawn = draw(cnn(), 0)._replace(initializer=initializer, init_std=0.2)
    rows = np.stack([initial_row(DIGITS, drawn, generator(cnn(), run, 1)) for run in range(100)])
    parts = np.split(rows, np.cumsum([np.prod(s) for s in DIGITS.shapes])[:-1], axis=1)
    for place, deviation in zip((0, 2, 6), deviations, strict=True):
        assert parts[place].std() == pytest.approx(deviation, rel=0.05)
        assert not parts[place + 1].any()
        if initializer not in ("normal", "orthogonal"):
            assert np.abs(parts[place]).max() <= deviation * 2 / 0.8796 * 1.001
    if initializer == "orthogonal":
        matrix = parts[2][0].reshape(16, 144)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(16), atol=1e-6)


def test_a_run_sees_its_share_of_the_training_images_and_every_epoch_another_order() -> None:
    recipe = cnn()
    drawn = draw(recipe, 0)._replace(train_fraction=0.25)
    training = training_of(recipe, DIGITS, 0, drawn, 1437)
    assert len(training.used) == 359 and training.order.shape == (8, 11, 32)
    for epoch in training.order:
        assert len(np.unique(epoch)) == 352 and set(epoch.ravel()) <= set(training.used)
    assert not np.array_equal(training.order[0], training.order[1])
    other = training_of(recipe, DIGITS, 1, drawn, 1437)
    assert training.key != other.key and not np.array_equal(training.used, other.used)


def test_rows_are_checkpoints_and_splits_are_by_run() -> None:
    job = classifier_job(cnn(runs=40))
    assert len(job) == 120 and job.columns["epoch"].tolist() == [0, 2, 8] * 40
    runs = {name: job.run_ids[rows] for name, rows in job.splits.items()}
    assert {name: len(np.unique(ids)) for name, ids in runs.items()} == {"train": 28, "val": 4, "test": 8}
    assert sorted(np.concatenate(list(job.splits.values())).tolist()) == list(range(120))
    assert not np.intersect1d(runs["train"], runs["test"]).size
    for run in range(40):
        assert len(np.unique(job.spec_ids[job.run_ids == run])) == 1


def test_test_images_are_held_out_with_the_labels_of_the_file() -> None:
    training, test, digests = labelled_images(cnn())
    assert (len(training.labels), len(test.labels)) == (1437, 360) and set(digests) == {"train"}
    assert np.bincount(test.labels).min() >= 34
    assert training.pixels.min() == -1 and training.pixels.max() == 1
    as_bytes = {row.tobytes() for row in training.pixels}
    assert sum(row.tobytes() in as_bytes for row in test.pixels) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 3}, r"8 × 8 shrink to \(0, 0\) in 3 convolutions; lower zoo\.stride"),
        ({"batch_size": 256}, r"leave 143 of 1437 training images; lower zoo\.batch_size=256"),
        ({"test_images": 0}, r"no test file; zoo\.test_images=0 should be above 0"),
        ({"images": {"train": "nowhere.npz", "test": None}}, r"nowhere\.npz: no such file"),
    ],
)
def test_impossible_plans_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        classifier_job(cnn(**changes))


# -- building ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_zoo(cnn(), tmp_path_factory.mktemp("built") / "cnn.h5", progress=False)


def scores(zoo: Zoo, recipe: CNNRecipe | MLPRecipe) -> np.ndarray:
    """Test accuracies from the file's specs and weights alone."""
    _, test, _ = labelled_images(recipe)
    x = torch.from_numpy(test.pixels)
    x = x.flatten(1) if recipe.kind == "mlp" else x.movedim(-1, 1)
    found = np.zeros(len(zoo))
    for number, spec in enumerate(zoo.specs):
        rows = np.flatnonzero(zoo.spec_ids == number)
        values = torch.from_numpy(zoo.read_mixed_rows(rows)[0]).reshape(len(rows), -1, 1)
        right = execute(WeightBatch(spec, values), x).argmax(2) == torch.from_numpy(test.labels)
        found[rows] = right.double().mean(1).numpy()
    return found


def test_the_file_holds_what_the_recipe_says(built: Path) -> None:
    with Zoo(built) as zoo:
        assert [spec.numel for spec in zoo.specs] == [4970, 4970] and all(spec.verified for spec in zoo.specs)
        relu, tanh = zoo.specs
        assert any("scaling" in label.symmetries for label in relu.labels)
        assert any("sign" in label.symmetries for label in tanh.labels)
        assert zoo.column("activation").tolist() == [("relu", "tanh")[number] for number in zoo.spec_ids]
        assert zoo.recipe["config"] == cnn().model_dump(mode="json")
        stored = zoo.column("test_accuracy")
        np.testing.assert_allclose(scores(zoo, cnn()), stored, atol=1.5 / 360)
        assert np.abs(scores(zoo, cnn()) - np.roll(stored, 1)).mean() > 0.1


def test_labels_vary(built: Path) -> None:
    """Neither all at chance nor all at the ceiling, and training is what makes the difference."""
    with Zoo(built) as zoo:
        accuracy, epoch = zoo.column("test_accuracy"), zoo.column("epoch")
    last = accuracy[epoch == 8]
    assert len(np.unique(last)) >= 15 and last.std() > 0.2
    assert (last < 0.2).mean() < 0.5 and (last > 0.95).mean() < 0.5
    counts, _ = np.histogram(last, 5, (0, 1))
    assert (counts > 0).sum() >= 4
    assert accuracy[epoch == 0].max() < 0.3 < last.mean()


def test_verifying_measures_the_accuracy_again(built: Path, tmp_path: Path) -> None:
    assert [check.failures for check in verify_zoo(built, 16) if check.failures] == []
    (check,) = [check for check in verify_zoo(built, 16) if check.name.startswith("scores")]
    assert check.status == "ok"
    wrong = tmp_path / "wrong.h5"
    wrong.write_bytes(built.read_bytes())
    with h5py.File(wrong, "r+") as file:
        file["columns/test_accuracy"][-1] = 0.5
    (check,) = [check for check in verify_zoo(wrong, 16) if check.name.startswith("scores")]
    assert check.status == "FAILED" and "row 71: test_accuracy is stored as 0.5, measured again" in check.failures[0]


def test_threads_blocks_and_interruption_do_not_matter(built: Path, tmp_path: Path) -> None:
    again = build_zoo(cnn(), tmp_path / "again.h5", progress=False, threads=1)
    assert again.read_bytes() == built.read_bytes()
    with Zoo(build_zoo(cnn(block=2, runs=6), tmp_path / "few.h5", progress=False)) as zoo, Zoo(built) as other:
        np.testing.assert_array_equal(zoo.read_mixed(0, 18)[0], other.read_mixed(0, 18)[0])


def test_without_a_compiler_the_torch_kernel_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few: dict[str, Any] = {"runs": 4, "checkpoints": (0, 1), "train_fractions": (0.1,), "val_share": 0.0}
    native = Zoo(build_zoo(cnn(**few), tmp_path / "native.h5", progress=False))
    monkeypatch.setattr("wsl.zoo.build.classifier.default_kernel", lambda: "torch")
    slow = Zoo(build_zoo(cnn(**few), tmp_path / "torch.h5", progress=False))
    assert (native.recipe["kernel"], slow.recipe["kernel"]) in (("native", "torch"), ("torch", "torch"))
    np.testing.assert_allclose(slow.read_mixed(0, 8)[0], native.read_mixed(0, 8)[0], atol=2e-3)


def test_runs_that_diverge_are_left_out(tmp_path: Path) -> None:
    if not classifier_native.available():
        pytest.skip("no C compiler")
    wild = cnn(runs=6, learning_rate=(1e20, 1e30), optimizers=("sgd",), train_fractions=(0.1,), checkpoints=(0, 1, 2))
    with Zoo(build_zoo(wild, tmp_path / "zoo.h5", progress=False)) as zoo:
        assert zoo.column("epoch").tolist() == [0] * 6 and len(zoo.recipe["left_out"]) == 12
        assert np.isfinite(zoo.column("train_loss")).all()


def test_a_zoo_of_perceptrons_has_a_spec_for_each_activation(tmp_path: Path) -> None:
    recipe = mlp(runs=30)
    with Zoo(build_zoo(recipe, tmp_path / "mlp.h5", progress=False)) as zoo:
        assert [spec.group["hidden1"].activation for spec in zoo.specs] == ["relu", "tanh", "gelu"]
        assert [spec.numel for spec in zoo.specs] == [64 * 32 + 32 + 32 * 33 + 330] * 3
        accuracy = zoo.column("test_accuracy")
        np.testing.assert_allclose(scores(zoo, recipe), accuracy, atol=1.5 / 360)
        last = accuracy[zoo.column("epoch") == 8]
        assert last.std() > 0.15 and last.mean() > 0.4
    assert [check.failures for check in verify_zoo(tmp_path / "mlp.h5", 12) if check.failures] == []


@pytest.mark.parametrize(("name", "sides"), [("fashion_mnist", (28, 13, 6, 2)), ("cifar10", (32, 15, 7, 3))])
def test_other_images_as_in_the_original(name: str, sides: tuple[int, ...], shared_data: Path, tmp_path: Path) -> None:
    files = {part: str(shared_data / f"{name}_{part}.npz") for part in ("train", "test")}
    recipe = cnn(
        images=files | {"greyscale": name == "cifar10"}, test_images=0, stride=2, batch_size=512, runs=2,
        checkpoints=(0, 1), train_fractions=(0.1,), learning_rate=(1e-3, 2e-3), optimizers=("adam",), val_share=0.0,
    )  # fmt: skip
    assert tuple(side for side, _ in recipe.architecture((sides[0], sides[0], 1), 10).sides) == sides
    with Zoo(build_zoo(recipe, tmp_path / "zoo.h5", progress=False)) as zoo:
        assert zoo.recipe["input_shape"] == [1, sides[0], sides[0]] and set(np.diff(zoo.row_ptr)) == {4970}
    assert [check.failures for check in verify_zoo(tmp_path / "zoo.h5", 4) if check.failures] == []


# -- the recipes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cnn_digits", "cnn_fashion_mnist", "cnn_cifar10_grey", "mlp_digits"])
def test_recipes_of_the_config_folder_are_valid(name: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        values: Any = OmegaConf.to_container(compose("build_zoo", [f"zoo={name}"]).zoo)
    schema = KINDS[values["kind"]].recipe
    recipe = validated(schema, values)
    assert set(values) == set(schema.model_fields)
    assert recipe.checkpoints[0] == 0 and len(recipe.checkpoints) == 9  # type: ignore[attr-defined]
    for change, words in (
        ({"l2": [1e-2, 1e-8]}, "l2=.*rising"),
        ({"learning_rate": [0.0, 1.0]}, "learning_rate=.*above 0"),
        ({"checkpoints": [3, 1]}, "should rise"),
        ({"val_share": 0.5, "test_share": 0.5}, "leaves no run"),
        ({"dropout": [0.0, 1.0]}, "dropout"),
        ({"optimizers": ["lion"]}, "optimizers"),
    ):
        with pytest.raises(ConfigError, match=words):
            validated(schema, values | change)


def test_spec_runs_the_network_of_the_kernel() -> None:
    row = trainings(ODD, np.float64)[0].start
    x = torch.from_numpy(images(ODD, 5, np.float64).pixels).movedim(-1, 1)
    for activation in MODULES:
        spec = spec_of(ODD, "cnn", activation)
        assert spec.verified and [s.shape for s in spec.stored] == ODD.shapes
        found = execute(WeightBatch(spec, torch.from_numpy(row)[None, :, None]), x)[0]
        np.testing.assert_allclose(found, plain_network(ODD, activation, row)(x).detach(), atol=1e-12)


def test_default_kernel_is_torch_where_nothing_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier_native, "available", lambda: False)
    assert classifier_fit.default_kernel() == "torch"
