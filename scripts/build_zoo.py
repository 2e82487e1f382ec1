"""Train a zoo of networks: ``python scripts/build_zoo.py zoo=mnist_inr [KEY=VALUE …]``, ``--help``.

The recipe is a file of conf/zoo; ``out`` is the zoo file. Killed and started again, building goes on where it was.
``python scripts/build_zoo.py --describe FILE [--figures FOLDER]`` prints the card of any zoo file and draws it.
"""

from __future__ import annotations

import argparse
import sys
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
from wsl.zoo.card import card, full_card
from wsl.zoo_figure import draw_zoo


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


def describe(arguments: list[str]) -> None:
    """The card of a zoo file, and its figure: a PNG file beside it or in a given folder."""
    parser = argparse.ArgumentParser(description=describe.__doc__)
    parser.add_argument("--describe", type=Path, required=True, metavar="FILE", help="a zoo file")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="where to draw (default: beside the file)")
    args = parser.parse_args(arguments)
    with Zoo(args.describe) as zoo:
        console = Console()
        console.print(full_card(zoo))
        drawn = draw_zoo(zoo, (args.figures or zoo.path.parent) / f"{zoo.path.stem}.png")
        console.print(f"figure: {drawn}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    if any(argument.startswith("--describe") for argument in sys.argv[1:]):
        with plain_errors():
            describe(sys.argv[1:])
        sys.exit()
    with plain_errors():
        refuse_unknown_keys("../conf", "build_zoo")
    main()
