"""The tables and the figure of a comparison."""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from comparing.comparison import Run
from comparing.outcome import Outcome
from wsl.results import mean_std

#: of a dotted key in front of "=", all but its last name
LAST_OF_KEY = re.compile(r"\S*\.(?=\w+=)")
COLUMNS = (
    "encoder",
    "test",
    "seeds",
    "val",
    "rate",
    "loss, train / val",
    "parameters",
    "epochs",
    "step, units",
    "peak, MiB",
    "to 95 %, s",
    "training, s",
    "symmetries",
)
RUN_COLUMNS = (
    "encoder",
    "rate",
    "seed",
    "test",
    "val",
    "train_loss",
    "val_loss",
    "parameters",
    "best_epoch",
    "epochs",
    "step_units",
    "peak_mib",
    "to_95_s",
    "training_s",
    "split",
)


def ordered(found: Mapping[str, Sequence[Outcome]]) -> list[tuple[str, Sequence[Outcome]]]:
    """Best test metric first, refusals last."""

    def key(item: tuple[str, Sequence[Outcome]]) -> float:
        values = [o.tested for o in item[1] if o.result is not None]
        return -statistics.fmean(values) if values else math.inf

    return sorted(found.items(), key=key)


def tests(outcomes: Sequence[Outcome]) -> list[float]:
    return [o.result.test[o.result.metric] for o in outcomes if o.result is not None]


def rows(found: Mapping[str, Sequence[Outcome]], rates: Mapping[str, float]) -> list[tuple[str, ...]]:
    """One row per encoder, in the order of :data:`COLUMNS`."""
    out = []
    for name, outcomes in ordered(found):
        trained = [o for o in outcomes if o.result is not None]
        results = [o.result for o in trained if o.result is not None]
        if not results:
            out.append((name, outcomes[0].why_not, *[""] * (len(COLUMNS) - 2)))
            continue
        metric = results[0].metric
        stopped = len(outcomes) - len(trained)
        out.append(
            (
                name,
                mean_std(tests(outcomes)),
                f"{len(results)}, {stopped} stopped" if stopped else str(len(results)),
                mean_std([r.val[metric] for r in results]),
                f"{rates[name]:g}",
                " / ".join(_mean(losses, 3) for losses in zip(*(o.losses for o in trained), strict=True)),
                f"{results[0].parameters:,}",
                "–".join(str(n) for n in sorted({min(r.epochs for r in results), max(r.epochs for r in results)})),
                _middle([o.step_units for o in trained], 1),
                _middle([o.peak_mib for o in trained], 0),
                _mean([o.to_95 for o in trained], 0),
                _mean([r.seconds for r in results], 0),
                ", ".join(trained[0].symmetries) or "none",
            )
        )
    return out


def runs(found: Mapping[Run, Outcome]) -> list[tuple[str, ...]]:
    """One row per run that has a result, also at rates that were not chosen, in the order of :data:`RUN_COLUMNS`."""
    return [
        (
            run.encoder,
            f"{run.rate:g}",
            *(str(value) for value in (r.seed, r.test[r.metric], r.val[r.metric], *o.losses, r.parameters)),
            *(str(value) for value in (r.epoch + 1, r.epochs)),
            *(f"{value:.4g}" for value in (o.step_units, o.peak_mib, o.to_95, r.seconds)),
            r.split,
        )
        for run, o in sorted(found.items(), key=lambda item: item[0])
        if (r := o.result) is not None
    ]


def _known(values: Sequence[float], digits: int, summary: Callable[[Sequence[float]], float]) -> str:
    """The mean or median of the values that are there."""
    there = [v for v in values if not math.isnan(v)]
    return f"{summary(there):,.{digits}f}" if there else "?"


_mean = partial(_known, summary=statistics.fmean)
_middle = partial(_known, summary=statistics.median)


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A Markdown table; numbers to the right."""
    rule = ["---", *["---:"] * (len(COLUMNS) - 2), "---"]
    lines = [COLUMNS, rule, *table]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def comma_separated(columns: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *table])
    return text.getvalue()


def figure(found: Mapping[str, Sequence[Outcome]], title: str, path: Path) -> None:
    """Test metric of each encoder against the cost of a training step, seeds as bars; of those whose cost is known."""
    shown = [(name, [o for o in ended if not math.isnan(o.step_units)]) for name, ended in ordered(found)]
    shown = [(name, outcomes) for name, outcomes in shown if outcomes]
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots()
    for number, (name, outcomes) in enumerate(shown, 1):  # names beside each other would cover each other
        values, cost = tests(outcomes), statistics.median(o.step_units for o in outcomes)
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        place = cost, statistics.fmean(values)
        label = f"{number}  {LAST_OF_KEY.sub('', name)}"
        axes.errorbar(*place, yerr=spread, fmt="o", capsize=3, label=label)
        axes.annotate(str(number), place, xytext=(5, 3), textcoords="offset points", fontsize=8)
    metric = shown[0][1][0].result.metric if shown and shown[0][1][0].result else ""
    axes.set(xscale="log", xlabel="training step, matmul units", ylabel=f"test {metric}", title=title)
    axes.grid(alpha=0.3)
    if shown:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
