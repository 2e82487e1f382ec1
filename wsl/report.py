"""What a run leaves behind: result.json, figures, the exported encoder, the table on screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import WandbLogger

from wsl import build, plots, ranks, results, tracking
from wsl.attention_maps import write_attention
from wsl.batch import WeightBatch
from wsl.build import RunConfig
from wsl.callbacks.stopwatch import Stopwatch
from wsl.checkpoint import read_checkpoint
from wsl.data.base import Data
from wsl.data.graph_data import GraphData
from wsl.data.zoo_data import ZooData
from wsl.encoders.base import Encoder
from wsl.encoders.node.attention import GATv2Node
from wsl.export import save_encoder
from wsl.results import Result
from wsl.run_folder import first_rank
from wsl.tasks.base import Task
from wsl.tasks.editing import Editing
from wsl.tasks.generalization import Generalization
from wsl.zoo.render import render

SHOWN = 32  # INRs in the gallery
EDITS_SHOWN = 12
UNREAD_SHOWN = 3  # names of parameters


def announce(config: RunConfig, folder: Path, data: Data, encoder: Encoder, task: Task) -> None:
    """Say in five lines what is about to be done (on the first rank, unless progress is off)."""
    if config.trainer.progress == "none" or not first_rank():
        return
    sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in data.rows.items())
    parameters = sum(p.numel() for p in encoder.parameters())
    lines = {
        "config": f"seed {config.seed}, in {folder}",
        "data": f"{data.path}: {sizes} {data.inputs}",
        "encoder": f"{config.label} with {parameters:,} parameters{_unread(encoder)}",
        "task": f"{config.task.name}; the checkpoint is chosen by {task.monitor}",
        "trainer": f"{config.trainer.accelerator}, {config.trainer.max_epochs} epochs{_ranks(config)}",
    }
    console = results.console()
    console.print()
    for word, text in lines.items():
        console.print(f"{word:<8} {text}", soft_wrap=True, markup=False)


def _ranks(config: RunConfig) -> str:
    return f", {config.ranks} ranks that {ranks.launcher()} has started" if config.ranks > 1 else ""


def _unread(encoder: Encoder) -> str:
    sizes = {name: encoder.get_parameter(name).numel() for name in encoder.unread_parameters}
    names, numbers = [name for name in sizes if sizes[name]], sum(sizes.values())
    if not names:
        return ""
    shown = ", ".join(names[:UNREAD_SHOWN]) + (", …" if len(names) > UNREAD_SHOWN else "")
    return f", of which it never reads {numbers:,} ({shown}): they stay as they begin"


def finished(config: RunConfig, folder: Path) -> Result | None:
    """The result of a resumed run that has nothing left to do.

    Raises:
        RunFolderError: if its data has changed since; data that is gone is not asked for.
    """
    if config.resume is None or not (folder / "result.json").exists():
        return None
    result = Result.read(folder)
    if result.epochs < config.trainer.max_epochs:
        return None
    if Path(result.data).exists():
        build.same_data(folder, build.data(config))
    return result


def conclude(config: RunConfig, folder: Path, data: Data, task: Task, trainer: pl.Trainer) -> Result:
    """Write the result, the encoder and the figures of a tested run."""
    checkpoint = trainer.checkpoint_callback
    assert isinstance(checkpoint, ModelCheckpoint)
    stopwatch = next(c for c in trainer.callbacks if isinstance(c, Stopwatch))  # type: ignore[attr-defined]
    tested = {k.split("/", 1)[1]: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
    epoch = read_checkpoint(Path(checkpoint.best_model_path))["epoch"]
    metric = task.monitor.split("/", 1)[1]
    result = Result(
        encoder=config.label,
        parameters=sum(p.numel() for p in task.encoder.parameters()),
        metric=metric,
        val={metric: float(checkpoint.best_model_score)},  # type: ignore[arg-type]
        test=tested,
        epoch=epoch,
        epochs=trainer.current_epoch,
        seconds=stopwatch.seconds,
        seed=config.seed,
        data=str(data.path),
        split=data.split_digest,
        digest=data.digest,
    )
    if trainer.is_global_zero:
        save_encoder(task.encoder, config.encoder.model_dump(mode="json"), folder)
        figures = _figures(folder, data, task, result)
        result.write(folder)  # last: a run with a result is finished, and has all else
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                tracking.conclude(logger, folder, task, figures, {f"val/{metric}": result.val[metric]})
    return result


def finish(folder: Path, found: Sequence[Result]) -> float:
    """Print and store the table of a run and the encoders that it was compared with; returns the run's test metric."""
    first = found[0]
    if not first_rank():
        return first.test[first.metric]
    console = results.console()
    console.print()
    results.print_table(found, title=f"{first.data}, tested once on the best checkpoint by val")
    if len(found) > 1:
        result = Result(**{**vars(first), "compared": tuple(found[1:])})
        result.write(folder)
        names, values = [r.encoder for r in found], [r.test[r.metric] for r in found]
        plots.comparison(names, values, f"test {first.metric}", folder / "figures" / "comparison.png")
    console.print(f"run folder: {folder}", soft_wrap=True, markup=False)
    return first.test[first.metric]


def _figures(folder: Path, data: Data, task: Task, result: Result) -> list[Path]:
    made = [
        plots.learning_curve(
            folder / "metrics.csv", task.monitor, result.epoch, folder / "figures" / "learning_curve.png"
        )
    ]
    if (watched := folder / "figures" / "gradient_flow.png").exists():  # made by the callback
        made.append(watched)
    rows = task.tested
    if rows is not None and isinstance(task, Generalization):
        title = f"test tau {result.test['tau']:.3f} (ceiling {result.test['tau_ceiling']:.3f})"
        scatter = folder / "figures" / "predictions.png"
        made.append(plots.predicted_against_true(rows.target, rows.output.sigmoid(), title, scatter))
    if rows is not None and isinstance(task, Editing) and isinstance(data, ZooData):
        made.append(_edits(folder, data, task))
    if rows is None or not task.needs_classes:
        return made
    predicted = rows.output.argmax(-1)
    made.append(
        plots.confusion_matrix(rows.target, predicted, data.classes, folder / "figures" / "confusion_matrix.png")
    )
    if isinstance(task.encoder, GATv2Node) and isinstance(data, GraphData):
        nodes = data.batch("test").to(next(task.encoder.parameters()).device)
        attention = [(edges.cpu(), weights.cpu()) for edges, weights in task.encoder.attention(nodes)]
        made.append(write_attention(attention, data.graph, rows.row_ids, predicted, folder))
    if isinstance(data, ZooData) and (size := data.recipe.get("render")):
        h, w, c = size["height"], size["width"], size["channels"]
        first = [int(p) for p in range(min(SHOWN, len(data.rows["test"])))]
        batch = data.dataset("test")[first]
        assert isinstance(batch, WeightBatch), "INRs of one zoo share their architecture"
        images = render(batch, h, w, *size.get("range", (0, 1))).reshape(len(batch), h, w, c).squeeze(-1).numpy()
        shown = folder / "figures" / "inrs.png"
        made.append(plots.inr_gallery(images, rows.target[first].tolist(), predicted[first].tolist(), shown))
    return made


@torch.no_grad()
def _edits(folder: Path, data: ZooData, task: Editing) -> Path:
    """The first test networks before, their targets, and after."""
    positions = list(range(min(EDITS_SHOWN, len(data.rows["test"]))))
    device = next(task.encoder.parameters()).device
    batch = data.augmented(data.dataset("test")[positions], "test", 0).to(device)
    assert isinstance(batch, WeightBatch) and batch.target is not None and data.images is not None
    task.eval()
    shown = {"before": task.drawn(batch, batch), "target": batch.target, "after": task.output(batch)}
    black, white = data.images.black, data.images.white
    images = {name: ((x[: len(positions)] - black) / (white - black)).cpu().numpy() for name, x in shown.items()}
    return plots.edit_gallery(images, folder / "figures" / "edits.png")
