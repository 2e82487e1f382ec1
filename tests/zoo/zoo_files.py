"""Small zoos, and ways to plant faults in them, shared by the tests of the zoo file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t
from specs import gru_spec

from wsl.batch import WeightBatch
from wsl.spec import mlp_spec
from wsl.zoo import ZooWriter
from wsl.zoo.render import render

SIREN = mlp_spec((2, 6, 5, 1), "sine", {"omega": 30.0}, output_offset=0.5)
ROWS, SIDE = 60, 4


def rows_of(spec: Any, rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.3, (rows, spec.numel)).astype(np.float32)


def write_inr_zoo(path: Path, values: np.ndarray | None = None, block: int = 60, **options: Any) -> Path:
    """30 random images, each row the INR whose render, rounded to pixels, is its image; two equal views per image."""
    import torch

    values = rows_of(SIREN, ROWS) if values is None else values
    with torch.no_grad():
        shown = render(WeightBatch(SIREN, torch.from_numpy(values).unsqueeze(-1)), SIDE, SIDE).squeeze(-1).numpy()
    image_index = np.arange(ROWS) // 2
    images = np.clip(np.round(shown[::2] * 255), 0, 255).astype(np.uint8)
    mse = ((shown - images[image_index] / 255.0) ** 2).mean(1)
    recipe = {"seed": 3, "classes": 10, "render": {"height": SIDE, "width": SIDE, "channels": 1}}
    with ZooWriter(path, (SIREN,), ROWS, recipe, **options) as writer:
        for start in reversed(range(0, ROWS, block)):
            writer.write(start, values[start : start + block])
        writer.set_columns({"label": np.arange(ROWS) % 10, "image_index": image_index, "view": np.arange(ROWS) % 2})
        writer.set_columns({"fit_mse": mse.astype(np.float32), "psnr": (-10 * np.log10(mse)).astype(np.float32)})
        writer.set_columns({"test_accuracy": np.linspace(0, 1, ROWS), "name": [f"größe-{i}" for i in range(ROWS)]})
        writer.set_run_ids(image_index + 100)
        writer.set_splits({"train": np.arange(40), "val": np.arange(40, 50), "test": np.arange(50, 60)})
        writer.set_images(images)
    return path


def write_mixed_zoo(path: Path, rows: int = 30) -> tuple[Path, list[np.ndarray], np.ndarray]:
    """Rows of three architectures, a GRU with strided tensors among them."""
    specs = (SIREN, gru_spec(), mlp_spec((3, 4, 2), "relu"))
    spec_ids = np.random.default_rng(1).permutation(np.arange(rows) % 3)
    networks = [rows_of(specs[spec], 1, seed=row)[0] for row, spec in enumerate(spec_ids)]
    with ZooWriter(path, specs, rows, {}, spec_ids=spec_ids) as writer:
        half = rows // 2
        writer.write(half, np.concatenate(networks[half:]), [len(v) for v in networks[half:]])
        writer.write(0, np.concatenate(networks[:half]))
        writer.set_columns({"label": np.arange(rows) % 2})
        writer.set_splits({"train": np.arange(20), "test": np.arange(20, rows)})
    return path, networks, spec_ids


def create(
    file: h5py.File, name: str, values: np.ndarray, prepare: Callable[[Any], None] | None = None, kind: Any = None
) -> None:
    """A dataset like those of a zoo, replacing the one of this name, after ``prepare(creation properties)``."""
    properties = h5p.create(h5p.DATASET_CREATE)
    if prepare is None:
        properties.set_chunk(values.shape)
        properties.set_fletcher32()
    else:
        prepare(properties)
    if name in file:
        del file[name]
    kind = h5t.py_create(values.dtype, logical=True) if kind is None else kind
    parent, _, leaf = name.rpartition("/")
    identifier = h5d.create(
        file[parent or "/"].id, leaf.encode(), kind, h5s.create_simple(values.shape), dcpl=properties
    )
    if properties.get_layout() != h5d.VIRTUAL and not properties.get_external_count():
        h5py.Dataset(identifier)[...] = values
    identifier.close()


def chunk_offset(path: Path, name: str, chunk: int = 0) -> int:
    """Position in the file of the first byte of a chunk."""
    with h5py.File(path, "r") as file:
        return int(file[name].id.get_chunk_info(chunk).byte_offset)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 0x10]))
