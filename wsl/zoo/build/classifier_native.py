"""The compiled training kernel of small classifiers: ``classifier.c``, see :mod:`wsl.native`."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wsl import native

if TYPE_CHECKING:
    from wsl.zoo.build.classifier_fit import Architecture, LabelledImages, Training

SOURCES = ("classifier.c", "conv_layer.h", "activation.h", "../../vector.h")
ACTIVATIONS, OPTIMIZERS = ("relu", "tanh", "gelu"), ("sgd", "adam", "rmsprop")  # the order of the C enumerations
POINTER, LONG = ctypes.c_void_p, ctypes.c_int64
SIGNATURE: list[Any] = [*[POINTER] * 6, LONG, POINTER, LONG, *[POINTER] * 3, LONG, *[POINTER] * 3]
FAILURES = {1: MemoryError("no memory for one network"), 2: ValueError("a classifier here has 1 to 15 convolutions")}


def available() -> bool:
    """Whether the kernel can be used: a C compiler is there and what it builds loads."""
    return _library(np.dtype(np.float32)) is not None


def train_row(
    architecture: Architecture,
    training: Training,
    images: LabelledImages,
    test: LabelledImages,
    checkpoints: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Train one network; see :func:`wsl.zoo.build.classifier_fit.train`. The type is that of ``training.start``."""
    dtype = training.start.dtype
    library = _library(dtype)
    if library is None:
        raise RuntimeError("the compiled kernel is not available; use kernel='torch'")
    epochs, steps, batch = checkpoints[-1], *training.order.shape[1:]
    network = (len(architecture.channels) - 1, batch, architecture.kernel, architecture.stride)
    how = (ACTIVATIONS.index(training.activation), OPTIMIZERS.index(training.optimizer), epochs)
    sizes = (*network, architecture.height, architecture.width, *how, training.key, training.threshold)
    kept = np.isin(np.arange(epochs + 1), checkpoints).astype(np.uint8)
    rows = np.full((len(checkpoints), architecture.numel), np.nan, dtype=dtype)
    measured = np.full((len(checkpoints), 4), np.nan)

    def real(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values, dtype=dtype)

    def whole(values: Any) -> np.ndarray:
        return np.ascontiguousarray(values, dtype=np.int32)

    shape = np.array(sizes, dtype=np.int64).astype(np.uint32)
    arrays = (shape, whole(architecture.channels), real(training.start), real(images.pixels), whole(images.labels))
    used, order, settings = whole(training.used), whole(training.order), np.array([training.learning_rate, training.l2])
    tests = (real(test.pixels), whole(test.labels))
    failure = library.classifier_train(
        *(a.ctypes.data for a in arrays), used.ctypes.data, len(used), order.ctypes.data, steps, kept.ctypes.data,
        *(a.ctypes.data for a in tests), len(test.labels), settings.ctypes.data, rows.ctypes.data,
        measured.ctypes.data,
    )  # fmt: skip
    if failure:
        raise FAILURES[failure]
    return rows, measured


@functools.cache
def _library(dtype: np.dtype) -> ctypes.CDLL | None:
    library = native.library(__file__, SOURCES, dtype, "classifiers are trained")
    if library is not None:
        library.classifier_train.argtypes, library.classifier_train.restype = SIGNATURE, ctypes.c_int
    return library
