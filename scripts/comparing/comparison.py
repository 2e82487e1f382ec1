"""Which runs a comparison needs, in which order, and which of them its table is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from comparing import rows
from comparing.outcome import NOT_RUN, Order, Outcome


class Run(NamedTuple):
    """One encoder, with overrides of its own behind it, at one rate with one seed."""

    encoder: str
    rate: float
    seed: int


@dataclass
class Comparison:
    """Every encoder at every rate with seed 0, then with the other seeds at the rate that validation chose.

    Attributes:
        encoders, rates, seeds: what is compared.
        epochs, minutes: of a run, at most; what an encoder's first run with a result could afford, the others get too.
        threads: of a run. jobs: runs at a time.
        folder: of all runs. overrides: of ``train.py`` for all of them.
        carry_out: the outcome of an order, perhaps in another process. say: told every outcome.
        found: every outcome so far.
    """

    encoders: Sequence[str]
    rates: Sequence[float]
    seeds: int
    epochs: int
    minutes: float
    threads: int
    jobs: int
    folder: Path
    overrides: tuple[str, ...]
    carry_out: Callable[[Order], Outcome]
    say: Callable[[str], None]
    found: dict[Run, Outcome] = field(default_factory=dict)

    def run(self) -> None:
        """Carry out what is wanted, one rate of all encoders first, so that there is soon something of each.

        Raises:
            UserError: of the first run that died; the others that had not begun are left.
        """
        first, *others = self.rates
        self._all(Run(name, first, 0) for name in self.encoders)
        taken = [name for name in self.encoders if not self.found[Run(name, first, 0)].refused]
        self._all(Run(name, rate, 0) for name in taken for rate in others)
        best = self.best_rates
        trained = [name for name in taken if self.found[Run(name, best[name], 0)].result is not None]
        self._all(Run(name, best[name], seed) for seed in range(1, self.seeds) for name in trained)

    @property
    def protocol(self) -> dict[str, object]:
        """What every run has in common, whichever encoders, rates and seeds are asked for."""
        overrides = sorted(self.overrides)
        return {"overrides": overrides, "epochs": self.epochs, "minutes": self.minutes, "threads": self.threads}

    @property
    def best_rates(self) -> dict[str, float]:
        """Of each encoder, by validation with seed 0."""
        return {
            name: max(self.rates, key=lambda rate: self.found.get(Run(name, rate, 0), Outcome()).validated)
            for name in self.encoders
        }

    @property
    def outcomes(self) -> dict[str, list[Outcome]]:
        """Of each encoder at its best rate: those of all seeds that were run, or one that says why none was."""
        out = {}
        for name, rate in self.best_rates.items():
            ended = [self.found.get(Run(name, rate, seed)) for seed in range(self.seeds)]
            run = [o for o in ended if o is not None and o.stopped != NOT_RUN]
            out[name] = run or [self.found[Run(name, rate, 0)]]
        return out

    def _all(self, wanted: Iterable[Run]) -> None:
        pool = ThreadPoolExecutor(self.jobs)
        try:
            for ended in [pool.submit(self._one, run) for run in wanted]:
                ended.result()
        finally:
            pool.shutdown(cancel_futures=True)

    @property
    def expected(self) -> int:
        """How many runs there will be, as far as is known: an encoder that refuses has one."""
        whole = len(self.rates) + self.seeds - 1
        refused = {run.encoder for run, outcome in list(self.found.items()) if outcome.refused}
        return sum(1 if name in refused else whole for name in self.encoders)

    def order(self, run: Run) -> Order:
        """What is asked of a run, given what is found so far."""
        folder = self.folder / rows.folder(run.encoder) / f"rate{run.rate:g}_seed{run.seed}"
        epochs, minutes, batches = self.epochs, self.minutes, None
        first = next((o for r, o in list(self.found.items()) if r.encoder == run.encoder and o.result), None)
        if first is not None and first.result is not None:  # as long, whatever else the machine does now
            epochs, minutes, batches = first.result.epochs, math.inf, first.batches
        return Order(folder, self.overrides, run.encoder, run.rate, run.seed, epochs, minutes, self.threads, batches)

    def _one(self, run: Run) -> None:
        self.found[run] = outcome = self.carry_out(self.order(run))
        result = outcome.result
        value = outcome.why_not if result is None else f"{result.val[result.metric]:.4f} on validation"
        self.say(f"{len(self.found)}. {run.encoder}, rate {run.rate:g}, seed {run.seed}: {value}")
