"""Run again what a page of results shows: ``python scripts/reproduce.py NAME [options]``, ``NAME --help``.

Each name is a file of ``scripts/reproductions``; results are printed as a table and, with ``--json FILE``, written.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import reproductions

from wsl.command_line import plain_errors, with_overrides


def main() -> int:
    names = sorted(module.name for module in pkgutil.iter_modules(reproductions.__path__))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="name", required=True)
    modules = {name: importlib.import_module(f"reproductions.{name}") for name in names}
    for name, module in modules.items():
        module.add_arguments(commands.add_parser(name, help=(module.__doc__ or "").splitlines()[0]))
    args = with_overrides(parser)
    if args.overrides and not getattr(args, "takes_overrides", False):
        parser.error(f"{args.name} takes no overrides of the config: {' '.join(args.overrides)}")
    with plain_errors():
        modules[args.name].run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
