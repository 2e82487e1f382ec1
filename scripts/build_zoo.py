"""Train a zoo of networks: ``python scripts/build_zoo.py zoo=mnist_inr [KEY=VALUE …]``, ``--help``.

The recipe is a file of conf/zoo; ``out`` is the zoo file. Killed and started again, building goes on where it was.
"""

from __future__ import annotations

import time
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from wsl.command_line import plain_errors, refuse_unknown_keys
from wsl.config import Strict, validated
from wsl.ranges import PositiveInt
from wsl.zoo import Zoo
from wsl.zoo.build.kinds import AnyRecipe, build_zoo
from wsl.zoo.card import card


class BuildConfig(Strict):
    """What the script takes."""

    zoo: AnyRecipe
    out: str
    threads: PositiveInt | None
    progress: bool


@hydra.main(version_base="1.3", config_path="../conf", config_name="build_zoo")
def main(cfg: DictConfig) -> None:
    with plain_errors():
        config = validated(BuildConfig, OmegaConf.to_container(cfg, resolve=True))
        start = time.monotonic()
        path = build_zoo(config.zoo, Path(config.out), config.progress, config.threads)
        seconds = time.monotonic() - start
        with Zoo(path) as zoo:
            Console().print(card(zoo), f"{len(zoo):,} networks in {seconds:.1f} s")


if __name__ == "__main__":
    with plain_errors():
        refuse_unknown_keys("../conf", "build_zoo")
    main()
