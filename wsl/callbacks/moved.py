"""A run folder may be moved or copied: what a checkpoint says of files in it is said of where it is now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl


class MovedFolder(pl.Callback):
    """Rewrites the paths in a checkpoint's callback states, which Lightning stores in full.

    Otherwise the best checkpoint so far and its score would be forgotten.

    Args:
        folder: the checkpoints' folder now.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def on_load_checkpoint(self, trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        states = checkpoint["callbacks"]
        for key, state in states.items():
            if key.startswith(("ModelCheckpoint", "CheckpointWithinEpochs")) and state.get("dirpath"):
                states[key] = moved(state, Path(state["dirpath"]), self.folder)


def moved(value: Any, before: Path, now: Path) -> Any:
    """The value with every path in ``before`` as that in ``now``."""
    if isinstance(value, dict):
        return {moved(k, before, now): moved(v, before, now) for k, v in value.items()}
    if not isinstance(value, str) or not Path(value).is_relative_to(before):
        return value
    return str(now / Path(value).relative_to(before))
