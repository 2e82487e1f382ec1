"""Table and figure of a sweep: ``python scripts/collect.py SWEEP_FOLDER``.

Jobs that differ in the seed alone are averaged (mean ± sample standard deviation). Settings are ranked by validation;
test figures are shown beside, and choose nothing. Jobs without a result are named. Writes ``sweep.csv`` and
``sweep.png`` into the folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from wsl import results, sweeps
from wsl.command_line import plain_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of a sweep: one folder for each job")
    args = parser.parse_args()
    with plain_errors():
        settings, without = sweeps.collect(args.folder)
        console = results.console()
        console.print(sweeps.table(settings, f"{args.folder}, best by validation first"))
        console.print(f"best by validation: {settings[0].name}", markup=False, soft_wrap=True)
        if without:
            jobs = len(without) + sum(len(setting.found) for setting in settings)
            text = f"{len(without)} of {jobs} jobs have no result (given again, the sweep goes on with them):"
            console.print(text, markup=False, soft_wrap=True)
        for job, why in without.items():
            console.print(f"  {job}: {why}", markup=False, soft_wrap=True)
        for path in sweeps.write(settings, args.folder):
            console.print(f"written: {path}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
