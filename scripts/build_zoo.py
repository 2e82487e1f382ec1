"""Fit a zoo of networks to images: ``python scripts/build_zoo.py zoo=mnist_inr [KEY=VALUE …]``, ``--help``.

The recipe is a file of conf/zoo; ``out`` is the zoo file. Killed and started again, building goes on where it was.
"""

from __future__ import annotations

import time
from pathlib import Path

import hydra
import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from wsl.command_line import plain_errors, refuse_unknown_keys
from wsl.config import Strict, validated
from wsl.ranges import PositiveInt
from wsl.zoo import Zoo
from wsl.zoo.build.inr import INRRecipe, build_inr_zoo


class BuildConfig(Strict):
    """What the script takes."""

    zoo: INRRecipe
    out: str
    threads: PositiveInt | None
    progress: bool


def card(path: Path, seconds: float) -> Table:
    """What was built, in a few lines."""
    with Zoo(path) as zoo:
        psnr, steps = zoo.column("psnr"), zoo.column("steps")
        table = Table("zoo", str(path), title=f"{len(zoo.specs)} architecture, {zoo.specs[0].numel} parameters")
        table.add_row("networks", f"{len(zoo):,} of {len(np.unique(zoo.run_ids)):,} images")
        table.add_row("splits", ", ".join(f"{name} {len(rows):,}" for name, rows in zoo.splits.items()))
        table.add_row("PSNR", f"mean {psnr.mean():.1f} dB, lowest {psnr.min():.1f} dB")
        table.add_row("steps", f"mean {steps.mean():.0f}, most {steps.max()}")
        table.add_row("file", f"{path.stat().st_size / 2**20:.1f} MiB")
        table.add_row("time", f"{seconds:.1f} s")
    return table


@hydra.main(version_base="1.3", config_path="../conf", config_name="build_zoo")
def main(cfg: DictConfig) -> None:
    with plain_errors():
        config = validated(BuildConfig, OmegaConf.to_container(cfg, resolve=True))
        start = time.monotonic()
        path = build_inr_zoo(config.zoo, Path(config.out), config.progress, config.threads)
        Console().print(card(path, time.monotonic() - start))


if __name__ == "__main__":
    with plain_errors():
        refuse_unknown_keys("../conf", "build_zoo")
    main()
