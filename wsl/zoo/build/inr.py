"""Zoos of INRs: a SIREN fitted to every view of every image."""

from __future__ import annotations

import numpy as np
import torch

import wsl
from wsl.spec import WeightSpec, mlp_spec
from wsl.verify import verify
from wsl.zoo.build.inr_recipe import INRRecipe, Plan, plan
from wsl.zoo.build.job import Arrays, Job, Shown
from wsl.zoo.build.shared_start import shared_starts
from wsl.zoo.build.siren_fit import Convention, Kernel, Schedule, Siren, default_kernel, fit, initial_values
from wsl.zoo.coordinates import grid
from wsl.zoo.images import load_images
from wsl.zoo.layout import ZooError

__all__ = ["INRRecipe", "inr_job"]

FUNCTION = (
    "h = sin(omega (W x + b)) in hidden layers, output W x + b + output_offset; coordinates (x, y) in [-1, 1]^2, "
    "x along columns, row-major; "
)
CONVENTIONS: dict[Convention, str] = {
    "dwsnets": FUNCTION + "pixels uint8 / 255; weights start uniform within sqrt(6 / fan_in) / omega, the first "
    "layer's too, biases at zero",
    "nfn": FUNCTION + "pixels uint8 / 127.5 - 1; weights of the first layer start uniform within 1 / fan_in, others "
    "within sqrt(6 / fan_in) / omega, biases within 1 / sqrt(fan_in)",
}


def inr_job(recipe: INRRecipe) -> Job:
    """The networks of a recipe, row by row.

    Raises:
        ZooError: if images cannot be read, or the splits leave nothing to train on.
    """
    train = load_images(recipe.images.train)
    test = None if recipe.images.test is None else load_images(recipe.images.test)
    if recipe.images.greyscale:
        train, test = train.greyscale(), test and test.greyscale()
    rows = plan(recipe, train, test)
    kernel = default_kernel()
    height, width, channels = train.size
    siren = recipe.siren(channels)
    starts = shared_starts(recipe, siren, rows, kernel)
    return Job(
        description={
            "config": recipe.model_dump(mode="json"),
            "convention": CONVENTIONS[recipe.convention],
            "kernel": kernel,
            "render": {"height": height, "width": width, "channels": channels, "range": list(recipe.pixel_range)},
            "source_sha256": rows.digests,
            "torch": torch.__version__,
            "wsl": wsl.__version__,
        },
        specs=(_spec(recipe, siren),),
        spec_ids=np.zeros(len(rows), dtype=np.int64),
        blocks=[range(start, min(start + recipe.block, len(rows))) for start in range(0, len(rows), recipe.block)],
        fit=lambda block: _fit_block(recipe, siren, rows, np.asarray(block), starts, kernel),
        measured=("psnr", "fit_mse", "steps"),
        columns={
            "label": rows.labels[rows.image],
            "image_index": rows.image,
            "view": rows.view,
            "source": rows.source[rows.image],
            "source_index": rows.source_index[rows.image],
        },
        run_ids=rows.image,
        splits=rows.splits,
        shown=Shown("psnr", "mean PSNR {:.1f} dB"),
        images=rows.pixels.reshape(len(rows.pixels), -1),
    )


def _spec(recipe: INRRecipe, siren: Siren) -> WeightSpec:
    return verify(mlp_spec(siren.widths, "sine", {"omega": recipe.omega}, output_offset=recipe.output_offset))


def _fit_block(
    recipe: INRRecipe, siren: Siren, rows: Plan, block: np.ndarray, starts: np.ndarray | None, kernel: Kernel
) -> Arrays:
    pixels = rows.pixels[rows.image[block]]
    if starts is None:
        start = initial_values(siren, rows.seeds(recipe, block), recipe.convention)
    else:
        start = starts[rows.view[block]]
    low, high = recipe.pixel_range
    unit = (high - low) ** 2  # errors are told, and networks stop, in units of white minus black
    schedule = Schedule(recipe.learning_rate, recipe.steps, recipe.stop_mse * unit)
    fitted = fit(siren, start, grid(*pixels.shape[1:3]), recipe.targets(pixels), schedule, kernel)
    fitted = fitted._replace(mse=fitted.mse / unit)
    finite = np.isfinite(fitted.values).all(1) & np.isfinite(fitted.mse)
    if not finite.all():
        row = int(block[~finite][0])
        raise ZooError(
            f"row {row} (image {rows.image[row]}, view {rows.view[row]}) diverged; lower "
            f"zoo.learning_rate={recipe.learning_rate}"
        )
    return {
        "values": fitted.values,
        "psnr": psnr(fitted.mse).astype(np.float32),
        "fit_mse": fitted.mse.astype(np.float32),
        "steps": fitted.steps.astype(np.int64),
    }


def psnr(mse: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of pixels in [0, 1]; an error of zero counts as one of 10⁻¹²."""
    return -10 * np.log10(np.maximum(mse, 1e-12))
