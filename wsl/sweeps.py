"""What a sweep found: its jobs grouped by what they differ in, seeds averaged, the best chosen by validation."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from wsl import plain_yaml, plots, results
from wsl.command_line import jobs_of
from wsl.results import Result
from wsl.run_config import TASKS
from wsl.run_folder import RunFolderError, flat, read_config, write_text

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
        return ", ".join(f"{key}={value}" for key, value in self.values.items()) or "all finished jobs"

    def mean(self, split: str) -> float:
        return statistics.fmean(self.scores(split))

    def scores(self, split: str) -> list[float]:
        """The metric that chose the checkpoints, of each seed."""
        return [getattr(result, split)[result.metric] for result in self.found]


def collect(folder: Path) -> tuple[list[Setting], dict[Path, str]]:
    """The settings of a sweep's folder, the best by validation first; and the jobs without a result: folder → why.

    Raises:
        RunFolderError: if the folder holds no finished job, or jobs that were chosen by different metrics.
    """
    done: list[tuple[dict[str, Any], Result]] = []
    without: dict[Path, str] = {}
    jobs = sorted(path.parent for path in folder.glob("*/config.yaml"))
    for job in jobs:
        try:
            done.append(_read(job))
        except RunFolderError as error:
            without[job] = str(error)
    for number, given in enumerate(_asked(folder)):
        if (job := folder / str(number)) not in jobs:  # it was refused before it began, or its turn did not come
            without[job] = f"left nothing: {' '.join(given)}"
    if not done:
        jobs_told = "".join(f"\n  {job}: {why}" for job, why in without.items())
        raise RunFolderError(f"{folder} holds no finished job of a sweep (FOLDER/JOB/result.json){jobs_told}")
    configs, found = [config for config, _ in done], [result for _, result in done]
    if len(metrics := {result.metric for result in found}) > 1:
        raise RunFolderError(f"{folder}: jobs are judged by {', '.join(sorted(metrics))}; collect sweeps of one task")
    groups: dict[str, tuple[dict[str, Any], list[Result]]] = {}
    for values, result in zip(_settings(configs), found, strict=True):
        groups.setdefault(str(values), (values, []))[1].append(result)
    settings = [Setting(values, tuple(seeds)) for values, seeds in groups.values()]
    sign = -1 if TASKS[configs[0]["task"]["name"]].mode == "max" else 1
    return sorted(settings, key=lambda s: sign * s.mean("val")), without


def _read(job: Path) -> tuple[dict[str, Any], Result]:
    """Config and result of a job.

    Raises:
        RunFolderError: if one of them is absent, or no run has written it.
    """
    if not (job / "result.json").exists():
        raise RunFolderError("not finished")
    config = read_config(job)
    try:
        result = Result.read(job)
        scores = [getattr(result, split)[result.metric] for split in ("val", "test")]
        readable = all(isinstance(score, int | float) for score in scores)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{job / 'result.json'} cannot be read: {error!r}") from None
    if not readable:
        raise RunFolderError(f"{job / 'result.json'} cannot be read: {result.metric} is no number")
    task = config.get("task")
    if "label" not in config or not isinstance(task, Mapping) or task.get("name") not in TASKS:
        raise RunFolderError(f"{job / 'config.yaml'} is not one that a run has written")
    return config, result


def _asked(folder: Path) -> list[tuple[str, ...]]:
    """What the jobs of the sweep differ in, by number, as Hydra has noted it; empty if there is no such note."""
    try:
        hydra = plain_yaml.load((folder / "multirun.yaml").read_bytes())["hydra"]
        if hydra["sweep"]["subdir"] != "${hydra:job.num}":  # the folders have other names
            return []
        return jobs_of([str(text) for text in hydra["overrides"]["task"]])
    except (OSError, yaml.YAMLError, LookupError, TypeError):
        return []


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
        values = [str(value) for value in setting.values.values()] or ["all finished jobs"]
        scores = [results.mean_std(setting.scores(split)) for split in ("val", "test")]
        out.add_row(*values, str(len(setting.found)), *scores)
    return out


def write(settings: Sequence[Setting], folder: Path) -> list[Path]:
    """``sweep.csv``, one row per job, and ``sweep.png``.

    Raises:
        RunFolderError: if they cannot be written.
    """
    metric = settings[0].found[0].metric
    path, figure = folder / "sweep.csv", folder / "sweep.png"
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*settings[0].values, "seed", f"val/{metric}", f"test/{metric}"])
    for s in settings:
        writer.writerows([*s.values.values(), r.seed, r.val[metric], r.test[metric]] for r in s.found)
    write_text(path, text.getvalue())
    scores = {split: [s.scores(split) for s in settings] for split in ("val", "test")}
    try:
        return [path, plots.sweep([s.name for s in settings], scores, metric, figure)]
    except OSError as error:
        raise RunFolderError(f"cannot write {figure}: {error.strerror}; make the folder writable") from error
