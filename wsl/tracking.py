"""What W&B is given when a run is over: figures, a table of predictions, the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.loggers import WandbLogger

from wsl.tasks.base import Task

#: of the table of predictions: a sample that can be looked at, not a copy of the data
ROWS_SHOWN = 1000


def conclude(
    logger: WandbLogger, folder: Path, task: Task, figures: Sequence[Path], metadata: dict[str, float]
) -> None:
    """Log the figures, the first test rows with what was said of them, and the exported encoder; end the W&B run.

    The artifact, of type ``model``, holds ``model.safetensors`` and ``model.json``: weights and plain values, no code.

    Args:
        metadata: of the artifact.
    """
    import wandb

    for path in figures:
        logger.log_image(key=f"figures/{path.stem}", images=[str(path)])
    columns, rows = predictions(task)
    if rows:
        logger.log_table(key="predictions", columns=columns, data=rows)
    model = wandb.Artifact(f"model-{logger.experiment.id}", "model", metadata=metadata)
    for name in ("model.safetensors", "model.json"):
        model.add_file(str(folder / name))
    logger.experiment.log_artifact(model)
    logger.experiment.finish()


def predictions(task: Task) -> tuple[list[str], list[list[float]]]:
    """The first :data:`ROWS_SHOWN` test rows: row id, target, and the predicted class with its probability, or what
    the task keeps of a row if that is one number."""
    tested = task.tested
    if tested is None:
        return [], []
    ids, output, target = (column[:ROWS_SHOWN] for column in tested)
    if task.needs_classes:
        probability, predicted = output.softmax(-1).max(-1)
        names, columns = ["row", "target", "predicted", "probability"], [ids, target, predicted, probability]
    elif output.ndim == 1:
        names, columns = ["row", "target", "output"], [ids, target, output]
    else:
        return [], []
    return names, [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]
