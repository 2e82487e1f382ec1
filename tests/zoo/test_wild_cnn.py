"""Specs of varied CNNs against tracing the same network as a module."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from wild_networks import WildModule

from wsl.execute import execute
from wsl.trace import trace
from wsl.verify import own_weights, verify
from wsl.zoo.build.wild_cnn import WildCNN
from wsl.zoo.build.wild_recipe import ACTIVATIONS

CASES = {
    "plain": WildCNN(1, (4, 8), (3, 5), ("relu", "tanh"), (-1, -1)),
    "one_layer": WildCNN(3, (5,), (3,), ("gelu",), (-1,), classes=4),
    "same_width": WildCNN(1, (4, 6, 4), (3, 5, 3), ("relu", "tanh", "leaky_relu"), (-1, -1, 0)),
    "wider": WildCNN(2, (4, 6, 5), (5, 3, 3), ("identity", "sigmoid", "relu"), (-1, -1, 0)),
    "narrower": WildCNN(1, (5, 6, 4), (5, 3, 7), ("tanh", "gelu", "identity"), (-1, -1, 0)),
    "chain": WildCNN(1, (3, 6, 7, 6, 5), (3,) * 5, ("relu",) * 5, (-1, -1, 0, -1, 2)),
    "crossing": WildCNN(
        1, (8, 4, 6, 8, 3), (3,) * 5, ("relu", "tanh", "identity") + ("leaky_relu",) * 2, (-1, -1, 0, 1, 0)
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_spec_is_that_of_the_traced_module(case: str) -> None:
    module = WildModule(CASES[case])
    traced = trace(module, torch.randn(2, CASES[case].inputs, 8, 8))
    assert (
        verify(CASES[case].spec(), inputs=torch.randn(2, CASES[case].inputs, 8, 8).double()).to_dict()
        == traced.to_dict()
    )


def test_drawn_architectures_are_described_and_executed_as_the_module_runs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(25):
        depth = int(rng.integers(2, 6))
        cnn = WildCNN(
            1,
            tuple(rng.choice([2, 3, 5, 7], depth).tolist()),
            tuple(rng.choice([1, 3, 5], depth).tolist()),
            tuple(rng.choice(list(ACTIVATIONS), depth).tolist()),
            tuple(int(rng.integers(-1, max(layer - 1, 0))) for layer in range(depth)),
        )
        module, images = WildModule(cnn).double(), torch.randn(3, 1, 6, 6, dtype=torch.float64)
        spec = verify(cnn.spec(), inputs=images)
        outputs = execute(own_weights(spec, module), images)[0]
        torch.testing.assert_close(outputs, module(images), rtol=1e-10, atol=1e-12)


def test_impossible_architectures_are_refused() -> None:
    for wrong in (
        {"kernels": (2, 3, 3)},
        {"skips": (-1, -1, 1)},
        {"skips": (-1, 0, -1)},
        {"activations": ("relu", "relu")},
    ):
        good = {"widths": (2, 2, 2), "kernels": (3, 3, 3), "activations": ("relu",) * 3, "skips": (-1, -1, 0)}
        with pytest.raises(ValueError, match=r"even kernel|skip starts|differ in length"):
            WildCNN(1, **(good | wrong))  # type: ignore[arg-type]
