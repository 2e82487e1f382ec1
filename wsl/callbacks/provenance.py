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

from wsl import __version__
from wsl.checkpoint import FORMAT
from wsl.run_folder import write_bytes, write_text

PACKAGES = ("torch", "pytorch-lightning", "torch-geometric", "hydra-core", "omegaconf", "h5py", "numpy", "wandb")


class Provenance(pl.Callback):
    """Writes ``provenance.json`` (and ``code.diff`` if the checkout has changes) into the run folder.

    Checkpoints are marked with their format and this release.

    The file is a list with one record for each start: the first, and every time that the run was resumed.

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
        path = self.folder / "provenance.json"
        starts = json.loads(path.read_text()) if path.exists() else []
        diff = _git("diff", "HEAD", "--binary")
        record = {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "commit": _git("rev-parse", "HEAD").decode().strip(),
            "changed": _git("status", "--porcelain").decode(errors="replace").splitlines(),
            "python": platform.python_version(),
            "packages": {name: _version(name) for name in PACKAGES},
            "machine": {"system": platform.platform(), "threads": torch.get_num_threads()},
            "ranks": trainer.world_size,
            "seed": self.seed,
            "data": self.data,
        }
        write_text(path, json.dumps([*starts, record], indent=2) + "\n")
        if diff:
            write_bytes(self.folder / ("code.diff" if not starts else f"code.{len(starts) + 1}.diff"), diff)

    def on_save_checkpoint(self, trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["wsl"] = {"format": FORMAT, "release": __version__}


def _git(*arguments: str) -> bytes:
    """Output of git in the checkout that this package lies in; empty where there is none."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parents[2], capture_output=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
