"""Build a zoo of INRs: fit a SIREN to every view of every image, in blocks that survive a crash."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch

import wsl
from wsl.spec import WeightSpec, mlp_spec
from wsl.verify import verify
from wsl.zoo.build.inr_recipe import INRRecipe, Plan, plan
from wsl.zoo.build.progress import Progress
from wsl.zoo.build.siren_fit import Kernel, Schedule, Siren, default_kernel, fit, initial_values
from wsl.zoo.build.work_folder import WorkFolder, differences
from wsl.zoo.coordinates import grid
from wsl.zoo.images import load_images
from wsl.zoo.layout import ZooError
from wsl.zoo.reader import Zoo
from wsl.zoo.writer import ZooWriter

__all__ = ["INRRecipe", "build_inr_zoo"]

CONVENTION = (
    "h = sin(omega (W x + b)) in hidden layers, output W x + b + output_offset; coordinates (x, y) in [-1, 1]^2, "
    "x along columns, row-major; pixels uint8 / 255; weights start uniform within sqrt(6 / fan_in) / omega, the first "
    "layer's too, biases at zero"
)


def build_inr_zoo(recipe: INRRecipe, out: Path, progress: bool = True, threads: int | None = None) -> Path:
    """Build the zoo file ``out``, or go on building it; return its path.

    Finished blocks lie in ``OUT.partial/`` until the file is written. The file depends on the recipe alone, byte for
    byte: neither on the number of threads nor on how often building was interrupted. A file that is there and has this
    recipe is left as it is.

    Args:
        progress: show a progress bar (plain lines when not on a terminal).
        threads: networks fitted at the same time; None: one for each core that this process may use.

    Raises:
        ZooError: if images cannot be read, the target or its work folder belongs to another recipe, another process
            builds the same file, a network diverges, or the disk is full.
    """
    out = Path(out)
    if out.exists():
        _check_same(recipe, out)
        return out
    train = load_images(recipe.images.train)
    test = None if recipe.images.test is None else load_images(recipe.images.test)
    if recipe.images.greyscale:
        train, test = train.greyscale(), test and test.greyscale()
    rows = plan(recipe, train, test)
    kernel = default_kernel()
    height, width, channels = train.size
    description = {
        "config": recipe.model_dump(mode="json"),
        "convention": CONVENTION,
        "kernel": kernel,
        "render": {"height": height, "width": width, "channels": channels},
        "source_sha256": rows.digests,
        "torch": torch.__version__,
        "wsl": wsl.__version__,
    }
    siren = recipe.siren(channels)
    with WorkFolder(out, description) as folder:
        if out.exists():  # another builder finished while this one read the images
            _check_same(recipe, out)
        else:
            _fit_all(recipe, siren, rows, folder, kernel, threads or _cores(), progress)
            _assemble(recipe, siren, rows, folder, out, description)
        folder.remove()
    return out


def _cores() -> int:
    """Processors that this process may use (all of them where the system cannot say)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_same(recipe: INRRecipe, out: Path) -> None:
    with Zoo(out) as zoo:
        found = zoo.recipe.get("config", {})
    if different := differences(recipe.model_dump(mode="json"), found):
        raise ZooError(
            f"{out}: exists and has another recipe: {'; '.join(different)}. Choose another out=FILE, or delete it"
        )


# -- fitting ----------------------------------------------------------------------------------------------------------


def _blocks(recipe: INRRecipe, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    for number, start in enumerate(range(0, rows, recipe.block)):
        yield number, np.arange(start, min(start + recipe.block, rows))


def _fit_all(
    recipe: INRRecipe, siren: Siren, rows: Plan, folder: WorkFolder, kernel: Kernel, threads: int, progress: bool
) -> None:
    """Fit the blocks that are not there yet, ``threads`` at a time. The kernels run without Python's lock."""
    with Progress(len(rows), enabled=progress) as shown, ThreadPoolExecutor(threads) as pool:
        single = torch.get_num_threads()
        torch.set_num_threads(1)  # threads share the blocks, not the operations within one
        running: dict[Future[dict[str, np.ndarray]], int] = {}
        try:
            for number, block in _blocks(recipe, len(rows)):
                if (kept := folder.load(number)) is not None and _complete(kept, siren, block):
                    shown.advance(kept["mse"], fitted=False)
                    continue
                running[pool.submit(_fit_block, recipe, siren, rows, block, kernel)] = number
                if len(running) > threads:
                    _keep(running, folder, shown)
            while running:
                _keep(running, folder, shown)
        finally:
            torch.set_num_threads(single)
            pool.shutdown(cancel_futures=True)


def _keep(running: dict[Future[dict[str, np.ndarray]], int], folder: WorkFolder, shown: Progress) -> None:
    """Wait until a block is finished, and keep what is."""
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        number, arrays = running.pop(future), future.result()
        folder.save(number, arrays)
        shown.advance(arrays["mse"])


def _complete(arrays: dict[str, np.ndarray], siren: Siren, block: np.ndarray) -> bool:
    expected = {"values": (len(block), siren.numel), "mse": block.shape, "steps": block.shape}
    return {name: array.shape for name, array in arrays.items()} == expected


def _fit_block(recipe: INRRecipe, siren: Siren, rows: Plan, block: np.ndarray, kernel: Kernel) -> dict[str, np.ndarray]:
    pixels = rows.pixels[rows.image[block]]
    targets = pixels.reshape(len(block), -1, pixels.shape[3]).astype(np.float32) / np.float32(255)
    start = initial_values(siren, rows.seeds(recipe, block))
    schedule = Schedule(recipe.learning_rate, recipe.steps, recipe.stop_mse)
    fitted = fit(siren, start, grid(*pixels.shape[1:3]), targets, schedule, kernel)
    finite = np.isfinite(fitted.values).all(1) & np.isfinite(fitted.mse)
    if not finite.all():
        row = int(block[~finite][0])
        raise ZooError(
            f"row {row} (image {rows.image[row]}, view {rows.view[row]}) diverged; lower "
            f"zoo.learning_rate={recipe.learning_rate}"
        )
    return fitted._asdict()


# -- the file ---------------------------------------------------------------------------------------------------------


def _spec(recipe: INRRecipe, siren: Siren) -> WeightSpec:
    return verify(mlp_spec(siren.widths, "sine", {"omega": recipe.omega}, output_offset=recipe.output_offset))


def _assemble(
    recipe: INRRecipe, siren: Siren, rows: Plan, folder: WorkFolder, out: Path, description: dict[str, Any]
) -> None:
    mse, steps = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)
    with ZooWriter(out, _spec(recipe, siren), len(rows), description) as writer:
        for number, block in _blocks(recipe, len(rows)):
            kept = folder.load(number)
            if kept is None or not _complete(kept, siren, block):
                raise ZooError(f"{folder.path}: block {number} has been removed or damaged; run the same command again")
            writer.write(int(block[0]), kept["values"])
            mse[block], steps[block] = kept["mse"], kept["steps"]
        writer.set_columns(
            {
                "label": rows.labels[rows.image],
                "image_index": rows.image,
                "view": rows.view,
                "psnr": psnr(mse).astype(np.float32),
                "fit_mse": mse.astype(np.float32),
                "steps": steps,
                "source": rows.source[rows.image],
                "source_index": rows.source_index[rows.image],
            }
        )
        writer.set_run_ids(rows.image)
        writer.set_splits(rows.splits)
        writer.set_images(rows.pixels.reshape(len(rows.pixels), -1))


def psnr(mse: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of pixels in [0, 1]; an error of zero counts as one of 10⁻¹²."""
    return -10 * np.log10(np.maximum(mse, 1e-12))
