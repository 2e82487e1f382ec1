"""What a run found: result.json, and tables of mean ± standard deviation over seeds."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from wsl.run_folder import RunFolderError, write_text


@dataclass(frozen=True)
class Result:
    """One trained and tested encoder.

    Attributes:
        encoder: name of its config option.
        parameters: number of trainable values.
        metric: the name of the metric that chose the checkpoint, without its split.
        val, test: metrics of the chosen checkpoint; accuracies are fractions in [0, 1].
        epoch: of the chosen checkpoint, from 0.
        seconds: wall time of training, validation included.
        split: digest of which rows were in which split; empty in results of older releases.
        digest: of the data's content, likewise.
    """

    encoder: str
    parameters: int
    metric: str
    val: dict[str, float]
    test: dict[str, float]
    epoch: int
    epochs: int
    seconds: float
    seed: int
    data: str
    split: str = ""
    digest: str = ""
    compared: tuple[Result, ...] = field(default_factory=tuple)

    def write(self, folder: Path) -> None:
        write_text(folder / "result.json", json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Result:
        """Raises RunFolderError if the folder holds no readable result."""
        path = folder / "result.json"
        try:
            values: dict[str, Any] = dict(json.loads(path.read_text()))
            compared = tuple(cls(**{**other, "compared": ()}) for other in values.pop("compared", ()))
            return cls(**values, compared=compared)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise RunFolderError(
                f"{path} cannot be read: {error}; remove it and give the run's command again"
            ) from None


def mean_std(values: Sequence[float]) -> str:
    """``mean ± std`` (sample standard deviation), or the value alone when there is one."""
    mean = statistics.fmean(values)
    return f"{mean:.4f} ± {statistics.stdev(values):.4f}" if len(values) > 1 else f"{mean:.4f}"


def table(results: Sequence[Result], title: str = "") -> Table:
    """One row per encoder, seeds averaged, in order of first appearance.

    A metric that has a bound, named METRIC_ceiling among the test metrics, is shown beside it; so are R² and what
    networks have before they are edited, METRIC_unedited.
    """
    metric = results[0].metric
    beside = {f"{metric}_ceiling": "ceiling", f"{metric}_unedited": "unedited", "r2": "test R²"}
    beside = {key: title for key, title in beside.items() if all(key in r.test for r in results)}
    out = Table(title=title or None, title_justify="left")
    out.add_column("encoder", no_wrap=True)
    for column in ("parameters", f"test {metric}", *beside.values(), f"val {metric}", "best epoch", "seconds"):
        out.add_column(column, justify="right", no_wrap=True)
    for name in dict.fromkeys(r.encoder for r in results):
        group = [r for r in results if r.encoder == name]
        out.add_row(
            name,
            f"{group[0].parameters:,}",
            mean_std([r.test[metric] for r in group]),
            *(mean_std([r.test[key] for r in group]) for key in beside),
            mean_std([r.val[metric] for r in group]),
            ", ".join(f"{r.epoch + 1}/{r.epochs}" for r in group),
            f"{statistics.fmean(r.seconds for r in group):.0f}",
        )
    return out


def console() -> Console:
    """The console for tables: as wide as the terminal, and never narrower than a table needs when piped."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def print_table(results: Sequence[Result], title: str = "") -> None:
    console().print(table(results, title))
