"""Every encoder on the same zoo: ``python scripts/compare.py ZOO [--encoders all] [--seeds 3] [--budget MINUTES]``.

ZOO is an option of ``conf/data``. All encoders get the same split, optimiser, schedule and number of epochs (fewer if
an encoder's first run would take longer than the budget). The learning rate is chosen for each on validation, by one
run per rate with the first seed; the others then run with the chosen rate. Every run is a process of its own,
``--jobs`` of them at a time. What is finished is not repeated: killed and started again, the comparison goes on; for
other epochs, budget, threads or overrides it asks for another ``--out``. Prints a table and writes it as Markdown, CSV
and a figure, and every run as a row of runs.csv.

An encoder may bring overrides of its own, in quotes: ``--encoders statnn "ng_t_small encoder.probes=64"``. ``table``
stands for the rows that docs/results.md has for zoos of this kind (``scripts/comparing/rows.py``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from comparing import protocol, rows, tables  # noqa: E402
from comparing.comparison import Comparison, Run  # noqa: E402
from comparing.one_run import ROOT, check_data, end_with_parent, outcome_of  # noqa: E402
from comparing.outcome import KILLED, NOT_RUN, Order, Outcome, outcome_if_known  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: E402
from rich.table import Column, Table  # noqa: E402

from wsl.command_line import plain_errors, refuse_unknown_keys, with_overrides  # noqa: E402
from wsl.errors import UserError  # noqa: E402
from wsl.results import console  # noqa: E402
from wsl.run_folder import ensure, write_text  # noqa: E402

#: keys that a comparison sets itself, and how it is told to
OWN_KEYS = {
    "data": "ZOO", "task": "--task", "encoder": "--encoders", "compare": "--encoders", "seed": "--seeds",
    "optimizer.lr": "--rates", "trainer.max_epochs": "--epochs", "folder": "--out", "resume": "--out",
}  # fmt: skip
#: a process of its own for each run, forked from one that has imported all this already
PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(["wsl.report"])


def options(group: str) -> list[str]:
    """The options of a config group."""
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", choices=options("data"), help="option of the data group")
    parser.add_argument("--task", choices=options("task"), default="classification")
    parser.add_argument("--encoders", nargs="+", default=["all"], metavar="NAME", help="options of the encoder group")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each encoder (default 3)")
    parser.add_argument("--budget", type=float, default=4.0, metavar="MINUTES", help="of training per run (default 4)")
    parser.add_argument("--epochs", type=int, default=30, help="at most (default 30)")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3], help="learning rates to choose among")
    parser.add_argument("--threads", type=int, default=2, help="of each run (default 2)")
    parser.add_argument("--finished", action="store_true", help="run nothing, tabulate what is finished")
    parser.add_argument("--out", type=Path, default=None, help="folder (default runs/compare_ZOO)")
    chosen = with_overrides(parser, given)
    known = options("encoder")
    if chosen.encoders == ["all"]:
        chosen.encoders = known
    elif chosen.encoders == ["table"]:
        chosen.encoders = list(rows.of_table(chosen.zoo))
    if unknown := sorted({name.partition(" ")[0] for name in chosen.encoders} - set(known)):
        parser.error(f"--encoders {' '.join(unknown)}: not among {', '.join(known)}")
    rows_own = [text for name in chosen.encoders for text in name.split()[1:]]
    for text in (*chosen.overrides, *rows_own):
        if instead := OWN_KEYS.get(text.lstrip("+~").partition("=")[0]):
            parser.error(f"{text}: a comparison sets this itself; choose it with {instead}")
    whole = (chosen.seeds, chosen.epochs, chosen.threads, chosen.jobs)
    if min(whole) < 1 or chosen.budget <= 0 or min(chosen.rates) <= 0:
        parser.error("--seeds, --budget, --epochs, --rates, --threads and --jobs are positive")
    chosen.out = chosen.out or Path("runs") / f"compare_{chosen.zoo}"
    return chosen


def in_own_process(order: Order) -> Outcome:
    """The outcome of an order, from a process that ends with it, so that its peak memory is its own.

    Raises:
        UserError: if the process was killed; a run that is killed a second time is one that stopped.
    """
    with ProcessPoolExecutor(1, mp_context=PROCESSES, initializer=end_with_parent) as pool:
        try:
            return pool.submit(outcome_of, order).result()
        except BrokenProcessPool:
            if (order.folder / KILLED).exists():
                found = Outcome(stopped="its process was killed twice, as happens when memory does not suffice")
                found.write(order.folder / "outcome.json")
                return found
            write_text(ensure(order.folder) / KILLED, "")
            raise UserError(f"the run in {order.folder} was killed; start the same command again to go on") from None


def refuse_unknown_options(args: argparse.Namespace) -> None:
    """Before the first run, not when the turn of a row comes.

    Raises:
        ConfigError: naming the key or option and what is allowed.
    """
    common = [f"data={args.zoo}", f"task={args.task}", *args.overrides]
    for name in [args.encoders[0], *(n for n in args.encoders[1:] if " " in n)]:
        encoder, *own = name.split()
        refuse_unknown_keys(str(ROOT / "conf"), "train", [f"encoder={encoder}", *own, *common])


def comparison(
    args: argparse.Namespace, carry_out: Callable[[Order], Outcome], say: Callable[[str], None]
) -> Comparison:
    """What the arguments ask for."""
    common = (f"data={args.zoo}", f"task={args.task}", "logger.wandb=false", "trainer.progress=none", *args.overrides)
    return Comparison(
        args.encoders, args.rates, args.seeds, args.epochs, args.budget, args.threads, args.jobs, args.out, common,
        carry_out, say,
    )  # fmt: skip


def main(given: Sequence[str] | None = None) -> int:
    with plain_errors():
        return compare(arguments(given))


def compare(args: argparse.Namespace) -> int:
    """Run what is left to run, or nothing, and write the tables.

    Raises:
        UserError: of the options, the data, the folder or a run.
    """
    refuse_unknown_options(args)
    screen = console()
    if args.finished:
        wanted = comparison(args, outcome_if_known, lambda text: None)
        protocol.keep_to(args.out, wanted.protocol, write=False)
        wanted.run()
        if not any(outcome.stopped != NOT_RUN for outcome in wanted.found.values()):
            raise UserError(f"{args.out} holds no finished run of these encoders, rates and seeds")
    else:
        wanted = run(args, screen)
    protocol.of_one_split(wanted.outcomes, args.out)
    found, rates = wanted.outcomes, wanted.best_rates
    table = tables.rows(found, rates)
    threads = f"{args.threads} thread{'s' if args.threads > 1 else ''}"
    title = f"{args.zoo}: at most {args.epochs} epochs or {args.budget:g} minutes a run, {threads}"
    shown = Table(Column(tables.COLUMNS[0], overflow="fold"), *tables.COLUMNS[1:], title=title, title_justify="left")
    for row in table:
        shown.add_row(*row)
    screen.width = max(screen.width, 200)
    screen.print(shown)
    write_text(args.out / "table.md", tables.markdown(table))
    write_text(args.out / "table.csv", tables.comma_separated(tables.COLUMNS, table))
    write_text(args.out / "runs.csv", tables.comma_separated(tables.RUN_COLUMNS, tables.runs(wanted.found)))
    tables.figure(found, title, args.out / "comparison.png")
    screen.print(f"written: {args.out}/table.md, table.csv, runs.csv, comparison.png", markup=False, soft_wrap=True)
    return 0


def run(args: argparse.Namespace, screen: Console) -> Comparison:
    """Carry out what is asked for, with a line for every run that ends and a bar until the last one has."""
    bar = Progress(
        TextColumn("{task.completed} of {task.total} runs"), BarColumn(), TimeElapsedColumn(),
        console=screen, transient=True,
    )  # fmt: skip
    shown = bar.add_task("", total=None)

    def say(text: str) -> None:
        screen.print(text, markup=False, soft_wrap=True)
        bar.update(shown, completed=len(wanted.found), total=wanted.expected)

    wanted = comparison(args, in_own_process, say)
    digest = check_data(wanted.order(Run(args.encoders[0], args.rates[0], 0)))
    protocol.keep_to(args.out, wanted.protocol)
    protocol.of_this_data(args.out, digest)
    bar.update(shown, total=wanted.expected)
    with bar:
        wanted.run()
    return wanted


if __name__ == "__main__":
    sys.exit(main())
