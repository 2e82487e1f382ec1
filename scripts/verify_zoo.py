"""Check a zoo file: ``python scripts/verify_zoo.py FILE [--sample N]``; or copy what of it can be used.

Reads every byte: links, sizes and types, checksums, the digest, finite weights, norms, copies and runs across splits,
ranges of the columns; runs a sample of the networks and renders INRs again. Names the rows of every fault; the exit
code is 1 if there is one. ``--without-faulty OUT`` writes a copy without the rows that are damaged or not finite, of
which there may be ``--at-most``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from wsl.command_line import plain_errors
from wsl.zoo import Zoo
from wsl.zoo.quarantine import write_without_faulty
from wsl.zoo.verify import Check, verify_zoo

STYLES = {"ok": "green", "FAILED": "bold red", "skipped": "yellow"}


def table(path: Path, checks: list[Check]) -> Table:
    """One line per check, with what failed."""
    found = Table("check", "result", "", title=escape(str(path)), title_justify="left")
    for check in checks:
        style = STYLES[check.status]
        detail = "\n".join(check.failures) or check.skipped
        found.add_row(escape(check.name), f"[{style}]{check.status}[/]", escape(detail))
    return found


def copied(args: argparse.Namespace, progress: Callable[[float], None]) -> int:
    """Write the copy and say how many rows it lacks."""
    count = write_without_faulty(args.file, args.without_faulty, args.at_most, progress)
    rows = f"{count} row{'s' if count > 1 else ''} left out, {len(Zoo(args.without_faulty)):,} copied"
    Console(soft_wrap=True).print(f"{rows}: {args.without_faulty}", markup=False)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a zoo file")
    parser.add_argument("--sample", type=int, default=64, help="networks to run and render again (default 64)")
    parser.add_argument("--without-faulty", type=Path, metavar="OUT", help="write a copy without faulty rows there")
    parser.add_argument("--at-most", type=int, default=10, help="faulty rows that may be left out (default 10)")
    args = parser.parse_args()
    if args.sample < 0:
        parser.error(f"--sample is a number of networks, at least 0, not {args.sample}")

    columns = (TextColumn("reading"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=1.0)
        if args.without_faulty is not None:
            with plain_errors():
                return copied(args, lambda fraction: bar.update(task, completed=fraction))
        checks = verify_zoo(args.file, args.sample, lambda fraction: bar.update(task, completed=fraction))
    console = Console()
    console.print(table(args.file, checks))
    failed = sum(check.status == "FAILED" for check in checks)
    console.print(
        f"{failed} of {len(checks)} checks failed" if failed else f"all {len(checks)} checks passed or skipped"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
