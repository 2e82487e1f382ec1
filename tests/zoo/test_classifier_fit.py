"""Training many small classifiers at once: the kernels against plain PyTorch, dropout, and what they refuse."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_classifiers import ARCHITECTURES, DIGITS, ODD, images, plain_network, plain_training, trainings

from wsl.zoo.build import classifier_native
from wsl.zoo.build.classifier_fit import Architecture, Kernel, train
from wsl.zoo.build.classifier_torch import _Networks


@pytest.fixture(params=["native", "torch"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    if request.param == "native" and not classifier_native.available():
        pytest.skip("no C compiler")
    return request.param


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
