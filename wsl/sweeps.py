"""What a sweep found: its jobs grouped by what they differ in, seeds averaged, the best chosen by validation."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from wsl import plots, results
from wsl.results import Result
from wsl.run_config import TASKS
from wsl.run_folder import RunFolderError, flat, read_config

#: keys that tell no setting from another
APART = ("seed", "run_root", "resume", "folder")


@dataclass(frozen=True)
class Setting:
    """The finished jobs of a sweep that differ in nothing but the seed.

    Attributes:
        values: of the keys in which the sweep's settings differ.
    """

    values: dict[str, Any]
    found: tuple[Result, ...]

    @property
    def name(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.values.items()) or "all jobs"

    def mean(self, split: str) -> float:
        return statistics.fmean(self.scores(split))

    def scores(self, split: str) -> list[float]:
        """The metric that chose the checkpoints, of each seed."""
        return [getattr(result, split)[result.metric] for result in self.found]


def collect(folder: Path) -> tuple[list[Setting], list[Path]]:
    """The settings of a sweep's folder, the best by validation first, and the folders of jobs without a result.

    Raises:
        RunFolderError: if the folder holds no finished job, or jobs that were chosen by different metrics.
    """
    jobs = sorted(path.parent for path in folder.glob("*/config.yaml"))
    done = [job for job in jobs if (job / "result.json").exists()]
    if not done:
        raise RunFolderError(f"{folder} holds no finished job of a sweep (FOLDER/JOB/result.json)")
    configs, found = [read_config(job) for job in done], [Result.read(job) for job in done]
    if len(metrics := {result.metric for result in found}) > 1:
        raise RunFolderError(f"{folder}: jobs are judged by {', '.join(sorted(metrics))}; collect sweeps of one task")
    groups: dict[str, tuple[dict[str, Any], list[Result]]] = {}
    for values, result in zip(_settings(configs), found, strict=True):
        groups.setdefault(str(values), (values, []))[1].append(result)
    settings = [Setting(values, tuple(seeds)) for values, seeds in groups.values()]
    sign = -1 if TASKS[configs[0]["task"]["name"]].mode == "max" else 1
    return sorted(settings, key=lambda s: sign * s.mean("val")), [job for job in jobs if job not in done]


def _settings(configs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each config has in the keys in which they differ; of different encoders the name alone."""
    plain = [{k: v for k, v in flat(config).items() if k not in APART} for config in configs]
    if len({config["label"] for config in plain}) > 1:
        plain = [{k: v for k, v in c.items() if not k.startswith("encoder.")} for c in plain]
    keys = [k for k in dict.fromkeys(k for c in plain for k in c) if len({str(c.get(k)) for c in plain}) > 1]
    return [{("encoder" if k == "label" else k): c.get(k) for k in keys} for c in plain]


def table(settings: Sequence[Setting], title: str) -> Table:
    """One row per setting, mean ± standard deviation over its seeds."""
    metric = settings[0].found[0].metric
    out = Table(title=title, title_justify="left")
    for column in settings[0].values or ("setting",):
        out.add_column(column, no_wrap=True)
    for column in ("seeds", f"val {metric}", f"test {metric}"):
        out.add_column(column, justify="right", no_wrap=True)
    for setting in settings:
        values = [str(value) for value in setting.values.values()] or ["all jobs"]
        scores = [results.mean_std(setting.scores(split)) for split in ("val", "test")]
        out.add_row(*values, str(len(setting.found)), *scores)
    return out


def write(settings: Sequence[Setting], folder: Path) -> list[Path]:
    """``sweep.csv``, one row per job, and ``sweep.png``."""
    metric = settings[0].found[0].metric
    path = folder / "sweep.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*settings[0].values, "seed", f"val/{metric}", f"test/{metric}"])
        for s in settings:
            writer.writerows([*s.values.values(), r.seed, r.val[metric], r.test[metric]] for r in s.found)
    scores = {split: [s.scores(split) for s in settings] for split in ("val", "test")}
    return [path, plots.sweep([s.name for s in settings], scores, metric, folder / "sweep.png")]
