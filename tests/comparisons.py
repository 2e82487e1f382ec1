"""Runs of a comparison, made up."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT)]

from comparing.outcome import Order  # noqa: E402

from wsl.results import Result  # noqa: E402


def result(encoder: str, test: float, val: float, seed: int = 0) -> Result:
    return Result(encoder, 10, "accuracy", {"accuracy": val}, {"accuracy": test}, 1, 2, 4.0, seed, "zoo.h5")


def order(folder: Path, zoo: Path, encoder: str) -> Order:
    given = ("data=digits_inr", f"data.path={zoo}", "data.build=''", "logger.wandb=false", "trainer.progress=none")
    return Order(folder, given, encoder, 1e-3, 0, 2, 1.0, 1)
