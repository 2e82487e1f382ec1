"""What is asked of one run, and what it found."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from wsl.errors import UserError  # noqa: E402
from wsl.results import Result  # noqa: E402
from wsl.run_folder import write_text  # noqa: E402

#: of the file that says that a run's process was killed once
KILLED = "killed"
NOT_RUN = "not run"


@dataclass(frozen=True)
class Order:
    """One run that is wanted.

    Attributes:
        folder: of the run; a finished one is read, not repeated, one that was interrupted goes on.
        overrides: of ``train.py``, without encoder, rate and seed.
        encoder: option of the encoder group, and overrides of its own behind it, separated by spaces.
        rate: learning rate. seed: of the run.
        epochs: at most; fewer where they would take longer than ``minutes``.
        batches: of an epoch, if not all.
    """

    folder: Path
    overrides: tuple[str, ...]
    encoder: str
    rate: float
    seed: int
    epochs: int
    minutes: float
    threads: int
    batches: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What a run found.

    Attributes:
        refused: the encoder's sentence where it cannot read the zoo; all else is absent then.
        stopped: the error that ended training, or "not run", likewise.
        step_units: median training step in matmul units, nan where a schedule prunes the encoder while it trains.
        peak_mib: largest resident size of the process.
        symmetries: that the encoder claims. to_95: seconds until validation reached 95 % of its best, nan if unknown.
        losses: of the last epoch, in training and validation.
        batches: of an epoch, where the budget did not allow a whole one.
        mode: whether the metric is better when it is greater ("max") or less ("min").
    """

    refused: str = ""
    stopped: str = ""
    result: Result | None = None
    step_units: float = math.nan
    peak_mib: float = math.nan
    symmetries: tuple[str, ...] = ()
    to_95: float = math.nan
    losses: tuple[float, float] = (math.nan, math.nan)
    batches: int | None = None
    mode: str = "max"

    @property
    def validated(self) -> float:
        """The metric on validation that chose the checkpoint, so signed that more is better; without a result −∞."""
        return -math.inf if self.result is None else self._signed(self.result.val[self.result.metric])

    @property
    def tested(self) -> float:
        """Likewise on the test split."""
        return -math.inf if self.result is None else self._signed(self.result.test[self.result.metric])

    def _signed(self, value: float) -> float:
        return value if self.mode == "max" else -value

    @property
    def why_not(self) -> str:
        """Why there is no result, or nothing."""
        return self.refused or self.stopped

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Outcome:
        """Raises UserError if the file is damaged, or of another release."""
        try:
            values = json.loads(path.read_text())
            found = values.pop("result")
            result = None if found is None else Result(**{**found, "compared": ()})
            lists = {name: tuple(values.pop(name)) for name in ("symmetries", "losses")}
            return cls(**values, **lists, result=result)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{path} cannot be read ({type(error).__name__}: {error})"
            raise UserError(f"{reason}; remove {path.parent} to have this run done again") from None


def outcome_if_known(order: Order) -> Outcome:
    """What an earlier process found."""
    path = order.folder / "outcome.json"
    return Outcome.read(path) if path.exists() else Outcome(stopped=NOT_RUN)
