"""metrics.csv of a run folder: one row per logged step, and a resumed run goes on in the same file."""

from __future__ import annotations

import contextlib
import csv
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from wsl.run_folder import RunFolderError


class MetricsFile(Logger):
    """Writes every logged number to ``folder/metrics.csv``.

    Columns are sorted; a metric that appears later makes the file be written again with its column added. (Lightning's
    own CSV logger deletes the rows of the run that it resumes.)

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self._columns: list[str] = []
        self._pending: list[dict[str, Any]] = []
        if self.path.exists():
            with open(self.path, newline="") as file:
                self._columns = list(csv.DictReader(file).fieldnames or [])

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The resolved config is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Take note; Lightning calls :meth:`save` after each log."""
        numbers = {key: int(value) if key == "epoch" else float(value) for key, value in metrics.items()}
        self._pending.append({**numbers, "step": step})

    @rank_zero_only
    def save(self) -> None:
        """Write what was logged.

        Raises:
            RunFolderError: if the file cannot be written, or the run folder is gone.
        """
        try:
            self._save()
        except OSError as error:
            why = error.strerror if self.path.parent.exists() else "the run folder is gone"
            raise RunFolderError(
                f"cannot write {self.path}: {why}; free space or make the folder writable, then go on with "
                "resume=RUNDIR, or start the run again in another folder"
            ) from error

    def _save(self) -> None:
        if not self._pending:
            return
        new = {key for row in self._pending for key in row} - set(self._columns)
        if new:
            rows = self._read()
            self._columns = sorted({*self._columns, *new})
            self._write(rows + self._pending)
        else:
            with open(self.path, "a", newline="") as file:
                csv.DictWriter(file, self._columns).writerows(self._pending)
        self._pending = []

    @rank_zero_only
    def finalize(self, status: str) -> None:
        with contextlib.suppress(*([RunFolderError] if status == "failed" else [])):  # what failed is said already
            self.save()

    @rank_zero_only
    def forget_after(self, step: int) -> None:
        """Drop rows of later steps: a resumed run will make them again."""
        if self._columns:
            self._write([row for row in self._read() if int(row["step"]) < step])

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with open(self.path, newline="") as file:
            return list(csv.DictReader(file))

    def _write(self, rows: list[dict[str, Any]]) -> None:
        temporary = self.path.with_suffix(".partial")
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.path)
