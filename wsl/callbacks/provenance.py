"""Write down, before the first step, everything that is needed to repeat the run."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from wsl.run_folder import write_text

PACKAGES = ("torch", "pytorch-lightning", "torch-geometric", "hydra-core", "omegaconf", "h5py", "numpy", "wandb")


class Provenance(pl.Callback):
    """Writes ``provenance.json`` (and ``code.diff`` if the checkout has changes) into the run folder.

    Args:
        folder: the run folder.
        data: what the data module knows of its source, e.g. path and digest.
        seed: the run's seed.
    """

    def __init__(self, folder: Path, data: dict[str, Any], seed: int) -> None:
        self.folder, self.data, self.seed = folder, data, seed

    def on_fit_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        commit, diff = _git("rev-parse", "HEAD"), _git("diff", "HEAD")
        record = {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "commit": commit,
            "changed": bool(diff),
            "python": platform.python_version(),
            "packages": {name: _version(name) for name in PACKAGES},
            "machine": {"system": platform.platform(), "threads": torch.get_num_threads()},
            "ranks": trainer.world_size,
            "seed": self.seed,
            "data": self.data,
        }
        write_text(self.folder / "provenance.json", json.dumps(record, indent=2) + "\n")
        if diff:
            write_text(self.folder / "code.diff", diff)


def _git(*arguments: str) -> str:
    """Output of git in the checkout that this package lies in; empty where there is none."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
