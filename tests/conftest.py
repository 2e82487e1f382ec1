"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

import numpy as np
import pytest
import torch
from specs import cnn_spec

from wsl.batch import WeightBatch
from wsl.spec import WeightSpec, mlp_spec
from wsl.zoo import ZooWriter
from wsl.zoo.render import render

torch.set_num_threads(1)  # two test processes share two cores


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real images and graphs; tests that need it skip where it is absent.

    ``WSL_DATA`` names it; the default is ``../shared/data`` beside the checkout.
    """
    folder = Path(os.environ.get("WSL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} with image and graph data (set WSL_DATA)")
    return folder


@pytest.fixture(scope="session")
def small_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of 96 random SIRENs 2-6-5-1 in two classes, told apart by the size of their weights; two views each.

    The images are drawn by the first view of each; the second one shows something else.
    """
    spec = mlp_spec((2, 6, 5, 1), "sine", {"omega": 30.0}, output_offset=0.5)
    rng = np.random.default_rng(0)
    rows = 96
    label = np.arange(rows) // 2 % 2
    values = rng.normal(0, 0.3, (rows, spec.numel)).astype(np.float32)
    values *= 1 + label[:, None]
    runs = np.arange(rows) // 2
    path = tmp_path_factory.mktemp("zoo") / "small.h5"
    recipe = {"render": {"height": 8, "width": 8, "channels": 1}}
    with ZooWriter(path, [spec], rows, recipe) as zoo:
        zoo.write(0, values)
        zoo.set_columns({"label": label.astype(np.int64), "view": (np.arange(rows) % 2).astype(np.int64)})
        zoo.set_columns({"image_index": runs.astype(np.int64)})
        shown = render(WeightBatch(spec, torch.from_numpy(values[::2]).unsqueeze(-1)), 8, 8).squeeze(-1).numpy()
        zoo.set_images(np.clip(np.rint(shown * 255), 0, 255).astype(np.uint8))
        zoo.set_run_ids(runs.astype(np.int64))
        zoo.set_splits({"train": np.arange(0, 64), "val": np.arange(64, 80), "test": np.arange(80, 96)})
    return path


@pytest.fixture(scope="session")
def cnn_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of 120 random CNNs of ReLU and of tanh, two of each run, whose test accuracy grows with their weights."""
    return write_cnn_zoo(tmp_path_factory.mktemp("zoo") / "cnn.h5", (cnn_spec("relu"), cnn_spec("tanh")))


@pytest.fixture(scope="session")
def varied_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with CNNs of four architectures, which differ in depth and width."""
    sizes = ((1, 4, 3), (1, 3, 3), (1, 4, 3, 5), (1, 2, 4, 4, 2))
    specs = tuple(cnn_spec("relu" if i % 2 else "tanh", channels) for i, channels in enumerate(sizes))
    return write_cnn_zoo(tmp_path_factory.mktemp("zoo") / "varied.h5", specs)


def write_cnn_zoo(path: Path, specs: tuple[WeightSpec, ...], rows: int = 120) -> Path:
    """Random networks of the specs in turn; columns test_accuracy, activation and epoch."""
    rng = np.random.default_rng(0)
    runs = np.arange(rows) // 2
    spec_ids = runs % len(specs)
    accuracy = rng.uniform(0.1, 1, rows).round(2).astype(np.float32)  # rounded, so that some are equal
    values = [rng.normal(0, 0.1 + accuracy[r], specs[s].numel).astype(np.float32) for r, s in enumerate(spec_ids)]
    with ZooWriter(path, specs, rows, {}, spec_ids=spec_ids) as zoo:
        zoo.write(0, np.concatenate(values))
        activations = [spec.group["h0"].activation for spec in specs]
        zoo.set_columns({"test_accuracy": accuracy, "activation": [activations[s] for s in spec_ids]})
        zoo.set_columns({"epoch": (np.arange(rows) % 2).astype(np.int64)})
        zoo.set_run_ids(runs)
        zoo.set_splits({"train": np.arange(80), "val": np.arange(80, 100), "test": np.arange(100, rows)})
    return path
