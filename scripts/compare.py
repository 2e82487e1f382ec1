"""Every encoder on the same zoo: ``python scripts/compare.py ZOO [--encoders all] [--seeds 3] [--budget MINUTES]``.

ZOO is an option of ``conf/data``. All encoders get the same split, optimiser, schedule and number of epochs (fewer if
a run would take longer than the budget). The learning rate is chosen for each on validation, by one run per rate with
the first seed; the others then run with the chosen rate. Every run is a process of its own. What is finished is not
repeated: killed and started again, the comparison goes on. Prints a table and writes it as Markdown, CSV and a figure.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from comparing import tables  # noqa: E402
from comparing.one_run import ROOT, Order, Outcome, outcome_of  # noqa: E402
from rich.table import Table  # noqa: E402

from wsl.command_line import plain_errors, with_overrides  # noqa: E402
from wsl.errors import UserError  # noqa: E402
from wsl.results import console  # noqa: E402
from wsl.run_folder import write_text  # noqa: E402


def options(group: str) -> list[str]:
    """The options of a config group."""
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", choices=options("data"), help="option of the data group")
    parser.add_argument("--task", choices=options("task"), default="classification")
    parser.add_argument("--encoders", nargs="+", default=["all"], metavar="NAME", help="options of the encoder group")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each encoder (default 3)")
    parser.add_argument("--budget", type=float, default=4.0, metavar="MINUTES", help="of training per run (default 4)")
    parser.add_argument("--epochs", type=int, default=30, help="at most (default 30)")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3], help="learning rates to choose among")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None, help="folder (default runs/compare_ZOO)")
    chosen = with_overrides(parser, given)
    known = options("encoder")
    chosen.encoders = known if chosen.encoders == ["all"] else chosen.encoders
    if unknown := sorted(set(chosen.encoders) - set(known)):
        parser.error(f"--encoders {' '.join(unknown)}: not among {', '.join(known)}")
    if chosen.seeds < 1 or chosen.budget <= 0 or chosen.epochs < 1 or chosen.threads < 1 or min(chosen.rates) <= 0:
        parser.error("--seeds, --budget, --epochs, --rates and --threads are positive")
    chosen.out = chosen.out or Path("runs") / f"compare_{chosen.zoo}"
    return chosen


def in_own_process(order: Order) -> Outcome:
    """The outcome of an order, from a process that ends with it, so that its peak memory is its own.

    Raises:
        UserError: if the process died (killed, or out of memory).
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(outcome_of, order).result()
        except BrokenProcessPool:
            raise UserError(f"the run in {order.folder} was killed; start the same command again to go on") from None


def compared(
    args: argparse.Namespace, carry_out: Callable[[Order], Outcome], say: Callable[[str], None]
) -> tuple[dict[str, list[Outcome]], dict[str, float]]:
    """All outcomes and the chosen rate of each encoder."""
    common = (f"data={args.zoo}", f"task={args.task}", "logger.wandb=false", "trainer.progress=none", *args.overrides)

    def wanted(name: str, rate: float, seed: int) -> Outcome:
        folder = args.out / name / f"rate{rate:g}_seed{seed}"
        done = (folder / "outcome.json").exists()
        found = carry_out(Order(folder, common, name, rate, seed, args.epochs, args.budget, args.threads))
        value = "refused" if found.result is None else f"{found.result.test[found.result.metric]:.4f}"
        say(f"{name}, rate {rate:g}, seed {seed}: {value}{' (known)' if done else ''}")
        return found

    found: dict[str, list[Outcome]] = {}
    rates: dict[str, float] = {}
    for name in args.encoders:
        first = {}
        for rate in args.rates:
            first[rate] = wanted(name, rate, 0)
            if first[rate].result is None:
                break
        best = max(first, key=lambda rate: _validated(first[rate]))
        rates[name] = best
        later = range(1, args.seeds) if first[best].result is not None else range(0)
        found[name] = [first[best], *(wanted(name, best, seed) for seed in later)]
    return found, rates


def _validated(outcome: Outcome) -> float:
    return -math.inf if outcome.result is None else outcome.result.val[outcome.result.metric]


def main(given: Sequence[str] | None = None) -> int:
    args = arguments(given)
    screen = console()
    with plain_errors():
        found, rates = compared(args, in_own_process, lambda text: screen.print(text, markup=False, soft_wrap=True))
    table = tables.rows(found, rates)
    title = f"{args.zoo}: at most {args.epochs} epochs or {args.budget:g} minutes a run, {args.threads} threads"
    shown = Table(*tables.COLUMNS, title=title, title_justify="left")
    for row in table:
        shown.add_row(*row)
    screen.width = max(screen.width, 160)
    screen.print(shown)
    write_text(args.out / "table.md", tables.markdown(table))
    write_text(args.out / "table.csv", tables.comma_separated(table))
    tables.figure(found, title, args.out / "comparison.png")
    screen.print(f"written: {args.out}/table.md, table.csv, comparison.png", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
