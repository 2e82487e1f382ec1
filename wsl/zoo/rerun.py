"""Run a sample of a zoo's networks again: do they work as their spec says, show their images, score as stated?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsl.batch import WeightBatch
from wsl.config import ConfigError, validated
from wsl.execute import execute, input_groups, layout_of
from wsl.spec import SYMMETRIES, SpecError, WeightSpec
from wsl.symmetry import act, draw
from wsl.zoo.build.kinds import KINDS
from wsl.zoo.layout import ZooError
from wsl.zoo.reader import Zoo
from wsl.zoo.render import render

Array = npt.NDArray[Any]
Outcome = tuple[tuple[str, ...], str]  # failures, reason for skipping

TOLERANCE = 1e-4  # of fit_mse, absolute
SYMMETRY_TOLERANCE = 1e-6  # relative, in float64
ACCURACY_TOLERANCE = 0.005  # absolute, in columns that end in "accuracy": a few images may lie on the border
MEASURE_TOLERANCE = 1e-3  # relative, of other measures
NETWORKS_AT_ONCE = 16


def sampled_rows(rows: Array, size: int) -> Array:
    """At most ``size`` of the row numbers, evenly spaced."""
    if not len(rows):
        return rows
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(size, len(rows))).round().astype(np.int64))]


def _batches(zoo: Zoo, rows: Array, dtype: torch.dtype) -> Iterator[tuple[Array, WeightBatch]]:
    """The networks of these rows, grouped by spec."""
    for number, spec in enumerate(zoo.specs):
        mine = rows[zoo.spec_ids[rows] == number]
        for start in range(0, len(mine), NETWORKS_AT_ONCE):
            part = mine[start : start + NETWORKS_AT_ONCE]
            values, _, _ = zoo.read_mixed_rows(part)
            yield part, WeightBatch(spec, torch.from_numpy(values).reshape(len(part), spec.numel, 1).to(dtype))


@torch.no_grad()
def check_execution(zoo: Zoo, rows: Array) -> Outcome:
    """Outputs on random inputs are finite, and unchanged by a random element of the symmetries that the spec claims.

    Images are as large as the recipe's ``input_shape`` ([channels, height, width]) says, else 16 pixels a side.
    """
    generator = torch.Generator().manual_seed(0)
    failures, skipped = [], "" if len(rows) else "the sample is empty"
    for part, batch in _batches(zoo, rows, torch.float64):
        spec = batch.spec
        try:
            inputs = _random_inputs(spec, zoo.recipe.get("input_shape"), generator)
            before = execute(batch, inputs).flatten(1)
            element = draw(spec, len(batch), generator, SYMMETRIES, (0.5, 2.0), torch.float64)
            after = execute(act(element, batch), inputs).flatten(1)
        except SpecError as error:
            skipped = f"row {part[0]} cannot be executed: {error}"
            continue
        change = (after - before).abs().amax(1) / before.abs().amax(1).clamp_min(1e-30)
        for row, finite, size in zip(part.tolist(), before.isfinite().all(1).tolist(), change.tolist(), strict=True):
            if not finite:
                failures.append(f"row {row}: outputs are not finite")
            elif not size <= SYMMETRY_TOLERANCE:
                failures.append(f"row {row}: outputs change by {size:.1e} under a symmetry that its spec claims")
    return tuple(failures), skipped


def _random_inputs(spec: WeightSpec, shape: Any, generator: torch.Generator) -> dict[str, Tensor]:
    """Inputs for each input group, laid out as the network reads them."""
    inputs = {}
    for group in input_groups(spec):
        size, layout = spec.size_of(group), layout_of(spec, group)
        sides = [16] * layout.rank
        if isinstance(shape, list) and len(shape) == 1 + layout.rank and all(isinstance(n, int) for n in shape):
            sides = shape[1:]
        if layout.kind == "tokens":
            inputs[group] = torch.randint(size, (4, 8), generator=generator)
            continue
        length = {"image": (4, size, *sides), "sequence": (4, 4, size)}.get(layout.kind, (32, size))
        inputs[group] = torch.randn(*length, generator=generator, dtype=torch.float64)
    return inputs


@torch.no_grad()
def check_fit(zoo: Zoo, rows: Array, columns: Mapping[str, Array], images: Array | None) -> Outcome:
    """Columns ``fit_mse`` and ``psnr`` against the error of the render, mean over pixels and channels."""
    if not len(rows):
        return (), "the sample is empty"
    wanted = [name for name in ("fit_mse", "psnr") if name in columns]
    if not wanted:
        return (), "no column fit_mse or psnr"
    if images is None or "image_index" not in columns:
        return (), "the images, or the column image_index, are not in the file"
    try:
        size = zoo.recipe["render"]
        height, width, channels = (int(size[side]) for side in ("height", "width", "channels"))
        black, white = (float(value) for value in size.get("range", (0, 1)))
    except (KeyError, TypeError, ValueError):
        return ("recipe has no render: {height, width, channels}; build the zoo again",), ""
    if height * width * channels != images.shape[1]:
        return (f"recipe renders {height}×{width}×{channels}, the images have {images.shape[1]} values",), ""
    rows = rows[(columns["image_index"][rows] >= 0) & (columns["image_index"][rows] < len(images))]
    failures = []
    for part, batch in _batches(zoo, rows, torch.float32):
        try:
            rendered = render(batch, height, width, black, white).flatten(1)
        except (ValueError, RuntimeError) as error:
            failures.append(f"row {part[0]} cannot be rendered: {error}")
            continue
        if rendered.shape[1] != images.shape[1]:
            failures.append(f"row {part[0]} renders {rendered.shape[1]} values, its image has {images.shape[1]}")
            continue
        target = torch.from_numpy(images[columns["image_index"][part]].astype(np.float32) / 255)
        found = (rendered - target).square().mean(1).double().numpy()
        for name in wanted:
            stored = columns[name][part].astype(np.float64)
            mse = stored if name == "fit_mse" else 10 ** (-stored / 10)
            for row, given, expected, distance in zip(part, stored, found, np.abs(mse - found), strict=True):
                if not distance <= TOLERANCE:
                    shown = expected if name == "fit_mse" else -10 * np.log10(expected)
                    failures.append(f"row {row}: {name} is stored as {given:.6g}, rendered again {shown:.6g}")
    return tuple(failures), ""


def check_measures(zoo: Zoo, rows: Array, columns: Mapping[str, Array]) -> Outcome | None:
    """Columns that the recipe's kind can measure again from the weights, such as accuracies; None: it has none."""
    config = zoo.recipe.get("config")
    kind = KINDS.get(config.get("kind", "")) if isinstance(config, dict) else None
    if kind is None or kind.measure is None:
        return None
    if not len(rows):
        return (), "the sample is empty"
    failures = []
    try:
        recipe = validated(kind.recipe, config)  # type: ignore[arg-type]
        for part, batch in _batches(zoo, rows, torch.float32):
            for name, found in kind.measure(recipe, batch, zoo.run_ids[part]).items():
                for row, stored, value in zip(part.tolist(), columns[name][part].tolist(), found.tolist(), strict=True):
                    bound = ACCURACY_TOLERANCE if name.endswith("accuracy") else MEASURE_TOLERANCE * max(1, abs(value))
                    if not abs(stored - value) <= bound:
                        failures.append(f"row {row}: {name} is stored as {stored:.6g}, measured again {value:.6g}")
    except (ConfigError, ZooError) as error:
        return (), f"cannot be measured here: {error}"
    except KeyError as error:
        return (f"column {error} is missing",), ""
    return tuple(failures), ""
