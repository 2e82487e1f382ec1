"""Building zoos of small classifiers: the training kernels against plain PyTorch, what is drawn, and the files."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from wsl.batch import WeightBatch
from wsl.config import ConfigError, validated
from wsl.execute import execute
from wsl.zoo import Zoo, ZooError
from wsl.zoo.build import classifier_fit, classifier_native
from wsl.zoo.build.classifier import classifier_job, labelled_images, spec_of, training_of
from wsl.zoo.build.classifier_fit import Architecture, Kernel, LabelledImages, Training, train
from wsl.zoo.build.classifier_recipe import CNNRecipe, MLPRecipe, draw, generator, initial_row
from wsl.zoo.build.classifier_torch import _Networks
from wsl.zoo.build.kinds import KINDS, build_zoo
from wsl.zoo.verify import verify_zoo

ROOT = Path(__file__).parents[2]
DIGITS = Architecture(8, 8, (1, 16, 16, 16, 10))
ODD = Architecture(9, 7, (3, 5, 20, 4), kernel=2, stride=2)
MLP = Architecture(1, 1, (13, 24, 9, 5), kernel=1)
ARCHITECTURES = pytest.mark.parametrize("architecture", [DIGITS, ODD, MLP], ids=["digits", "odd", "mlp"])
MODULES = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


@pytest.fixture(params=["native", "torch"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    if request.param == "native" and not classifier_native.available():
        pytest.skip("no C compiler")
    return request.param


# -- training ---------------------------------------------------------------------------------------------------------


def images(architecture: Architecture, count: int, dtype: type, seed: int = 0) -> LabelledImages:
    random = np.random.default_rng(seed)
    shape = (count, architecture.height, architecture.width, architecture.channels[0])
    labels = random.integers(0, architecture.channels[-1], count).astype(np.int32)
    return LabelledImages(random.normal(size=shape).astype(dtype), labels)


def trainings(architecture: Architecture, dtype: type, dropout: float = 0.0, epochs: int = 3) -> list[Training]:
    """One for each activation and optimiser; three to five steps of six of 30 of 40 images in an epoch."""
    found = []
    for number, activation in enumerate(MODULES):
        for optimizer, rate in (("sgd", 0.1), ("adam", 1e-2), ("rmsprop", 1e-2)):
            random = np.random.default_rng([number, len(optimizer)])
            used = random.permutation(40)[:30].astype(np.int32)
            order = used[random.integers(0, 30, (epochs, 3 + number, 6))]
            start = (random.normal(size=architecture.numel) * 0.3).astype(dtype)
            found.append(
                Training(start, order, used, activation, optimizer, rate, 1e-3, dropout, key=77 * len(found) + 1)  # type: ignore[arg-type]
            )
    return found


def plain_network(architecture: Architecture, activation: str, row: np.ndarray) -> nn.Sequential:
    """The network as one would write it."""
    layers: list[nn.Module] = []
    *convolutions, last, classes = architecture.channels
    for n_in, n_out in pairwise([*convolutions, last]):
        layers += [nn.Conv2d(n_in, n_out, architecture.kernel, architecture.stride), MODULES[activation]()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes))
    network = network.to(torch.from_numpy(row).dtype)
    nn.utils.vector_to_parameters(torch.from_numpy(row.copy()), network.parameters())
    return network


def plain_training(architecture: Architecture, training: Training, given: LabelledImages, epochs: int) -> np.ndarray:
    """One network, by autograd and torch.optim."""
    network = plain_network(architecture, training.activation, training.start)
    x, y = torch.from_numpy(given.pixels).movedim(-1, 1), torch.from_numpy(given.labels).long()
    optimizer: torch.optim.Optimizer
    match training.optimizer:
        case "sgd":
            optimizer = torch.optim.SGD(network.parameters(), lr=training.learning_rate)
        case "adam":
            optimizer = torch.optim.Adam(network.parameters(), lr=training.learning_rate, eps=1e-7)
        case "rmsprop":
            optimizer = torch.optim.RMSprop(network.parameters(), lr=training.learning_rate, alpha=0.9, eps=1e-7)
    weights = [p for name, p in network.named_parameters() if name.endswith("weight")]
    for batch in torch.from_numpy(training.order[:epochs]).flatten(0, 1).long():
        optimizer.zero_grad()
        penalty = sum((w.square().sum() for w in weights), torch.zeros(()))
        (F.cross_entropy(network(x[batch]), y[batch]) + training.l2 * penalty).backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(network.parameters()).detach().numpy()


@ARCHITECTURES
def test_training_together_equals_plain_pytorch_alone(kernel: Kernel, architecture: Architecture) -> None:
    given, test = images(architecture, 40, np.float64), images(architecture, 15, np.float64, 1)
    each = trainings(architecture, np.float64)
    found = train(architecture, each, given, test, (0, 1, 3), kernel)
    for training, trained in zip(each, found, strict=True):
        np.testing.assert_array_equal(trained.rows[0], training.start)
        for place, epochs in ((1, 1), (2, 3)):
            plain = plain_training(architecture, training, given, epochs)
            assert np.abs(plain - training.start).max() > 1e-2  # it did move
            np.testing.assert_allclose(trained.rows[place], plain, rtol=0, atol=1e-9)


@ARCHITECTURES
def test_measures_are_those_of_the_rows(kernel: Kernel, architecture: Architecture) -> None:
    given, test = images(architecture, 40, np.float64), images(architecture, 15, np.float64, 1)
    each = trainings(architecture, np.float64, dropout=0.4)
    for training, trained in zip(each, train(architecture, each, given, test, (0, 2), kernel), strict=True):
        for row, measured in zip(trained.rows, trained.measured, strict=True):
            network = plain_network(architecture, training.activation, row)
            expected = []
            for part, index in ((given, training.used), (test, np.arange(15))):
                logits = network(torch.from_numpy(part.pixels[index]).movedim(-1, 1)).detach()
                label = torch.from_numpy(part.labels[index]).long()
                expected += [(logits.argmax(1) == label).double().mean(), F.cross_entropy(logits, label)]
            np.testing.assert_allclose(measured, expected, rtol=1e-10)


@ARCHITECTURES
def test_kernels_agree_with_dropout(architecture: Architecture) -> None:
    if not classifier_native.available():
        pytest.skip("no C compiler")
    for dtype, tolerance in ((np.float64, 1e-9), (np.float32, 1e-3)):
        given, test = images(architecture, 40, dtype), images(architecture, 15, dtype, 1)
        with_dropout, without = trainings(architecture, dtype, 0.4), trainings(architecture, dtype)
        native, slow = (train(architecture, with_dropout, given, test, (0, 3), k) for k in ("native", "torch"))
        plain = train(architecture, without, given, test, (0, 3), "native")
        for a, b, c in zip(native, slow, plain, strict=True):
            np.testing.assert_allclose(a.rows, b.rows, rtol=0, atol=tolerance)
            assert np.abs(a.rows[-1] - c.rows[-1]).max() > 3e-3


def test_dropout_sets_its_share_to_zero_anew_in_every_step_layer_and_network() -> None:
    some = trainings(DIGITS, np.float64)[:3]
    each = [dataclasses.replace(t, dropout=share) for t, share in zip(some, (0.0, 0.25, 0.6), strict=True)]
    networks = _Networks(DIGITS, each, "cpu")
    h = torch.ones(200, 3, 16, 4, 4, dtype=torch.float64)
    factors = networks._dropout(5, 1, h)
    for b, share in enumerate((0.0, 0.25, 0.6)):
        dropped = factors[:, b] == 0
        assert dropped.double().mean().item() == pytest.approx(share, abs=0.01)
        assert factors[:, b][~dropped].unique().numpy() == pytest.approx([1 / (1 - share)], rel=1e-6)
    for other in (networks._dropout(6, 1, h), networks._dropout(5, 2, h)):
        same = ((other[:, 2] == 0) & (factors[:, 2] == 0)).double().mean().item()
        assert same == pytest.approx(0.36, abs=0.01)  # independent


def test_compiled_kernel_gives_the_same_bits_in_any_company() -> None:
    if not classifier_native.available():
        pytest.skip("no C compiler")
    given, test = images(DIGITS, 40, np.float32), images(DIGITS, 15, np.float32, 1)
    each = trainings(DIGITS, np.float32, dropout=0.3)
    together = train(DIGITS, each, given, test, (0, 1, 3), "native")
    for number in (4, 0, 7):
        (alone,) = train(DIGITS, [each[number]], given, test, (0, 1, 3), "native")
        np.testing.assert_array_equal(alone.rows, together[number].rows)
        np.testing.assert_array_equal(alone.measured, together[number].measured)


def test_torch_kernel_trains_a_network_as_it_does_alone() -> None:
    given, test = images(ODD, 40, np.float64), images(ODD, 15, np.float64, 1)
    each = trainings(ODD, np.float64, dropout=0.3)
    together = train(ODD, each, given, test, (0, 3), "torch")
    for number in (4, 0, 7):  # of 4, 3 and 5 steps in an epoch
        (alone,) = train(ODD, [each[number]], given, test, (0, 3), "torch")
        np.testing.assert_allclose(alone.rows, together[number].rows, rtol=0, atol=1e-12)


def test_a_network_that_diverges_is_nan_from_there_on() -> None:
    if not classifier_native.available():
        pytest.skip("no C compiler")
    given, test = images(DIGITS, 40, np.float32), images(DIGITS, 15, np.float32, 1)
    wild = dataclasses.replace(trainings(DIGITS, np.float32)[3], optimizer="sgd", learning_rate=1e30)
    (found,) = train(DIGITS, [wild], given, test, (0, 1, 2, 3), "native")
    assert np.isfinite(found.rows[0]).all() and np.isfinite(found.measured[0]).all()
    assert not (np.isfinite(found.rows[1:]).all(1) & np.isfinite(found.measured[1:]).all(1)).any()
    assert np.isnan(found.rows[3]).all() and np.isnan(found.measured[3]).all()


def test_what_does_not_fit_is_refused() -> None:
    given, test = images(DIGITS, 40, np.float32), images(DIGITS, 15, np.float32)
    (training, *_) = trainings(DIGITS, np.float32)
    with pytest.raises(ValueError, match="fit Architecture"):
        train(DIGITS, [dataclasses.replace(training, start=training.start[1:])], given, test, (0, 1))
    with pytest.raises(ValueError, match="3 epochs of order"):
        train(DIGITS, [training], given, test, (0, 4))
    with pytest.raises(ValueError, match="must be positive"):
        train(dataclasses.replace(DIGITS, stride=3), [training], given, test, (0, 1))
    deep = Architecture(1, 1, (2,) * 18, kernel=1)
    row = dataclasses.replace(training, start=np.zeros(deep.numel, np.float32))
    if classifier_native.available():
        with pytest.raises(ValueError, match="1 to 15 convolutions"):
            train(deep, [row], images(deep, 40, np.float32), images(deep, 15, np.float32), (0, 1), "native")


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
