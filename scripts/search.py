"""Let Optuna choose the settings: ``python scripts/search.py SWEEP.yaml --folder FOLDER [--trials 20] [KEY=VALUE …]``.

SWEEP.yaml is a sweep file as W&B reads them (``conf/sweep``): what is searched, by which method (``bayes``: a Parzen
estimator; ``random``), for which metric of the validation. Each trial is a run of train.py, a process of its own, in
``FOLDER/NUMBER``. What was tried stands in ``FOLDER/search.journal``: killed or preempted and started again, the search
goes on with the trial that was cut short, repeats none that is finished, and proposes what it would have proposed.
``scripts/collect.py FOLDER`` shows what was found.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from wsl import plain_yaml
from wsl.command_line import INTERRUPTED, plain_errors, refuse_unknown_keys
from wsl.data.sampler import mixed_seed
from wsl.errors import UserError
from wsl.preemption import EXIT_CODE, SIGNALS
from wsl.results import Result
from wsl.run_folder import ensure, owned, write_text

ROOT = Path(__file__).resolve().parents[1]
#: in a search's folder: what it was started with
RECORD = "search.json"


class SearchError(UserError, ValueError):
    """The sweep file or the search's folder is of no use; the message says why."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep file asks for.

    Attributes:
        fixed: arguments of train.py that its command names. metric: of the validation, without its split.
    """

    path: Path
    fixed: tuple[str, ...]
    parameters: Mapping[str, Mapping[str, Any]]
    metric: str
    maximise: bool
    method: str

    @classmethod
    def read(cls, path: Path) -> Sweep:
        try:
            values = plain_yaml.load(path.read_bytes())
            name, goal = values["metric"]["name"], values["metric"]["goal"]
            method, parameters = values["method"], dict(values["parameters"])
            fixed = tuple(word for word in values.get("command", ()) if "=" in word)
        except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise SearchError(f"{path} is no sweep file with metric, method and parameters: {error!r}") from None
        for key, value, allowed in (("method", method, ("bayes", "random")), ("goal", goal, ("maximize", "minimize"))):
            if value not in allowed:
                raise SearchError(f"{path}: {key}: {value}: allowed is {' or '.join(allowed)}")
        if not isinstance(name, str) or not name.startswith("val/"):
            raise SearchError(f"{path}: metric.name: {name}: trials are judged by a metric of the validation, val/…")
        for key, one in parameters.items():
            if not isinstance(one, Mapping) or not isinstance(one.get("values", []), list):
                raise SearchError(f"{path}: parameters: {key}: {one}: should hold value, values, or min and max")
        return cls(path, fixed, parameters, name.removeprefix("val/"), goal == "maximize", method)

    @property
    def examples(self) -> list[str]:
        """An override of train.py for each parameter, with a value that a trial may get."""
        return [
            f"{key}={one.get('value', one['values'][0] if one.get('values') else one.get('min'))}"
            for key, one in self.parameters.items()
        ]

    def suggested(self, trial: Any) -> list[str]:
        """The trial's overrides of train.py."""
        return [f"{key}={self._suggest(trial, key, value)}" for key, value in self.parameters.items()]

    def _suggest(self, trial: Any, key: str, one: Mapping[str, Any]) -> Any:
        kinds: dict[str, Callable[[], Any]] = {
            "constant": lambda: one["value"],
            "categorical": lambda: trial.suggest_categorical(key, one["values"]),
            "uniform": lambda: trial.suggest_float(key, one["min"], one["max"]),
            "log_uniform_values": lambda: trial.suggest_float(key, one["min"], one["max"], log=True),
            "int_uniform": lambda: trial.suggest_int(key, one["min"], one["max"]),
        }
        kind = one.get(
            "distribution", "constant" if "value" in one else "categorical" if "values" in one else "uniform"
        )
        try:
            return kinds[kind]()
        except (KeyError, TypeError, ValueError) as error:
            raise SearchError(f"{self.path}: {key}: {dict(one)}: {error}; kinds are {', '.join(kinds)}") from None


class Trials:
    """Runs of train.py, one at a time; a signal that comes meanwhile is theirs."""

    def __init__(self, sweep: Sweep, folder: Path, given: list[str]) -> None:
        self.sweep, self.folder, self.given = sweep, folder, given
        self._running: subprocess.Popen[bytes] | None = None
        for number in SIGNALS:
            signal.signal(number, self._pass_on)

    def value(self, number: int, overrides: list[str]) -> float | None:
        """The metric of a trial; None if it failed. A run that was begun in its folder is gone on with."""
        run = self.folder / str(number)
        words = last_of(["compare=[]", *self.sweep.fixed, *self.given, *overrides, f"folder={run}"])
        self._running = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *words])
        try:
            code = self._running.wait()
        except KeyboardInterrupt:  # the trial has heard it too, and still writes into its folder
            self._running.wait()
            raise
        self._running = None
        if code == EXIT_CODE:
            raise SystemExit(EXIT_CODE)
        if code in (INTERRUPTED, -signal.SIGINT):
            raise KeyboardInterrupt
        if code:
            return None
        found = Result.read(run).val
        if self.sweep.metric not in found:
            raise SearchError(f"{self.sweep.path}: metric.name: val/{self.sweep.metric}: runs have {', '.join(found)}")
        return found[self.sweep.metric]

    def _pass_on(self, number: int, frame: Any) -> None:
        if self._running is None:
            raise SystemExit(EXIT_CODE)
        self._running.send_signal(number)


def last_of(words: Sequence[str]) -> list[str]:
    """Of arguments for the same key the last."""
    return list({word.partition("=")[0]: word for word in words}.values())


def search(sweep: Sweep, folder: Path, trials: int, seed: int, given: list[str]) -> Any:
    """The study, after so many trials in all.

    Raises:
        ConfigError: if a trial would get a key that train.py does not have.
        SearchError: if the folder holds another search, or the first trial fails: the others would too.
    """
    refuse_unknown_keys(str(ROOT / "conf"), "train", last_of([*sweep.fixed, *given, *sweep.examples]))
    try:
        import optuna
    except ImportError:
        raise SearchError("optuna is not installed: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    record = json.dumps({"sweep": sweep.path.read_text(), "seed": seed, "given": given}, indent=2)
    journal = folder / "search.journal"
    if not _begun(folder, record):
        journal.unlink(missing_ok=True)  # of a start of which nothing came, perhaps by other arguments
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    direction = "maximize" if sweep.maximise else "minimize"
    study = optuna.create_study(storage=storage, study_name="search", direction=direction, load_if_exists=True)
    sampler = optuna.samplers.TPESampler if sweep.method == "bayes" else optuna.samplers.RandomSampler
    runs = Trials(sweep, folder, given)
    for number in range(trials):
        known = study.get_trials(deepcopy=False)
        if number < len(known) and known[number].state.is_finished():
            continue
        # A sampler with a seed of its own for each trial: an interrupted search proposes what a whole one would have.
        study.sampler = sampler(seed=mixed_seed(seed, number) % 2**32)
        trial = study.ask() if number == len(known) else optuna.trial.Trial(study, known[number]._trial_id)
        overrides = sweep.suggested(trial)
        print(f"trial {number + 1} of {trials}: {' '.join(overrides)}", flush=True)
        value = runs.value(number, overrides)
        if value is None and number == 0:
            left = (
                f" (other settings need another --folder: {folder / '0'} is begun)" if (folder / "0").exists() else ""
            )
            raise SearchError(f"the first trial failed, and says why above; mend it and start the search again{left}")
        if value is not None:
            write_text(folder / RECORD, record)
        state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
        study.tell(trial, value, state=state)
        print(
            f"trial {number + 1} of {trials}: {'failed' if value is None else f'{sweep.metric} {value:.4f}'}",
            flush=True,
        )
    return study


def _begun(folder: Path, wanted: str) -> bool:
    """Whether a trial of this search has succeeded; what the search is, is written down then.

    Raises:
        SearchError: if one of another search has.
    """
    record = folder / RECORD
    if not record.exists():
        return False
    if record.read_text() != wanted:
        raise SearchError(f"{folder} holds another search ({record}); give the same arguments, or another --folder")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="a file like conf/sweep/learning_rate.yaml")
    parser.add_argument("--folder", type=Path, required=True, help="of the search: begun, or gone on with")
    parser.add_argument("--trials", type=int, default=20, help="in all, those of earlier starts included (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of what is proposed (default 0)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="further overrides of train.py")
    args = parser.parse_intermixed_args()
    if args.trials < 1:
        parser.error(f"--trials {args.trials}: should be at least 1")
    with plain_errors(), owned(ensure(args.folder)):
        study = search(Sweep.read(args.sweep), args.folder, args.trials, args.seed, args.overrides)
        done = [trial for trial in study.get_trials(deepcopy=False) if trial.value is not None]
        if not done:
            left = [str(path.parent) for path in sorted(args.folder.glob("*/config.yaml"))]
            raise SearchError(f"none of {args.trials} trials succeeded; folders: {', '.join(left) or 'none is left'}")
        best = study.best_trial
        print(f"best of {len(done)}: {args.folder / str(best.number)} with {best.value:.4f} by {best.params}")


if __name__ == "__main__":
    main()
