"""Bring a published zoo, or a folder of checkpoints, into a zoo file.

    python scripts/import_zoo.py FORMAT SOURCE OUT.h5 [options]        FORMAT --help lists its options

SOURCE is a folder, or a zip or tar archive. Every network is checked before anything is written: damaged and unsafe
files, wrong shapes, NaN, labels out of range, duplicates, split files that name what is not there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wsl.command_line import plain_errors
from wsl.zoo import Zoo
from wsl.zoo.card import card
from wsl.zoo.importers import Policies, Source, import_zoo
from wsl.zoo.importers.archive import unpacked
from wsl.zoo.importers.cnn_wild_park import cnn_wild_park
from wsl.zoo.importers.dwsnets import dwsnets
from wsl.zoo.importers.folder import folder
from wsl.zoo.importers.modelzoo import modelzoo
from wsl.zoo.importers.nfn_siren import nfn_siren
from wsl.zoo.importers.small_cnn_zoo import small_cnn_zoo

#: format → what opens the source, and one line of help
FORMATS: dict[str, tuple[Callable[..., Source], str]] = {
    "dwsnets": (dwsnets, "INRs of MNIST and Fashion-MNIST by Navon et al. (mnist-inrs, fmnist_inrs)"),
    "nfn_siren": (nfn_siren, "SIRENs of MNIST, Fashion-MNIST and CIFAR-10 by Zhou et al. (siren_*_wts)"),
    "small_cnn_zoo": (small_cnn_zoo, "Small CNN Zoo by Unterthiner et al. (weights.npy, metrics.csv.gz, layout.csv)"),
    "cnn_wild_park": (cnn_wild_park, "CNN Wild Park by Kofinas et al. (Ray Tune folders)"),
    "modelzoo": (modelzoo, "Model Zoos by Schürholt et al. (Ray Tune folders with result.json)"),
    "folder": (folder, "any folder of .safetensors, .pt, .pth files with a CSV of labels"),
}


def share_or_number(text: str) -> float:
    """Of runs or networks: below 1 a share, from 1 on a number."""
    value = float(text)
    if value < 0 or (value > 1 and value != int(value)):
        raise argparse.ArgumentTypeError(f"{text} is neither a share below 1 nor a whole number")
    return value


def step(text: str) -> int | None:
    """An epoch, or all."""
    return None if text == "all" else int(text)


#: option → its argparse arguments; each goes to the formats whose function has a parameter of that name
OPTIONS: dict[str, dict[str, Any]] = {
    "split_file": {"type": Path, "help": "the published split file, if it is not in SOURCE"},
    "val": {"type": share_or_number, "help": "validation networks or runs to draw without one: a share or a number"},
    "test": {"type": share_or_number, "help": "the same for testing"},
    "seed": {"type": int, "help": "of that draw"},
    "prefix": {"help": "of the folders of the first copies"},
    "views": {"type": int, "help": "copies of each training image, 0: all"},
    "split_points": {"type": int, "nargs": 2, "metavar": ("VAL", "TEST"), "help": "first image of each split"},
    "channels": {"type": int, "choices": (1, 3), "help": "of the images"},
    "header_line": {"choices": ("keep", "drop"), "help": "the split file's first line; published splits need 'keep'"},
    "step": {"type": step, "help": "keep checkpoints of this epoch, or 'all'"},
    "activation": {"choices": ("relu", "tanh", "both"), "help": "keep networks with this activation"},
    "keep_activation": {"choices": ("before", "after"), "help": "before splitting (Monomial) or after (ScaleGMN)"},
    "side": {"type": int, "help": "height and width of the images"},
    "epochs": {"type": int, "nargs": "+", "help": "checkpoints to take (default: the last of each run)"},
    "labels": {"type": Path, "help": "CSV: file, then labels; optionally run, split"},
    "hints": {"type": Path, "help": "YAML: what names and shapes do not tell (wsl.state_dict.hints)"},
    "classes": {"type": int, "help": "number of classes, the limit of the column 'label'"},
}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    for name, (opens, text) in FORMATS.items():
        command = commands.add_parser(name, help=text, description=opens.__doc__)
        command.add_argument("source", type=Path, metavar="SOURCE", help="a folder, or a zip or tar archive")
        command.add_argument("out", type=Path, metavar="OUT.h5", help="the zoo file to write")
        for option in (o for o in OPTIONS if o in opens.__annotations__):
            command.add_argument(f"--{option.replace('_', '-')}", default=argparse.SUPPRESS, **OPTIONS[option])
        command.add_argument(
            "--faulty", choices=("refuse", "quarantine"), default="refuse",
            help="networks that cannot be used: refuse them all, or leave them out and list them in the file",
        )  # fmt: skip
        command.add_argument(
            "--duplicates", choices=("refuse", "quarantine", "keep"), default="refuse",
            help="networks equal to an earlier one",
        )  # fmt: skip
        command.add_argument("--overwrite", action="store_true", help="replace OUT.h5")
    return parser


def run(args: argparse.Namespace, console: Console) -> Path:
    """Open the source and import it, with progress."""
    opens = FORMATS[args.format][0]
    chosen = {name: value for name, value in vars(args).items() if name in OPTIONS}
    told = {name: value.name if isinstance(value, Path) else value for name, value in chosen.items()}
    options = {"format": args.format, "source": args.source.name, **told}
    policies = Policies(args.faulty, args.duplicates, args.overwrite)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        with unpacked(args.source, args.out, lambda done, total: show("unpacking MiB", done >> 20, total >> 20)) as at:
            return import_zoo(opens(at, **chosen), args.out, options, policies, show)


def main() -> int:
    args = arguments().parse_args()
    with plain_errors():
        path = run(args, Console(stderr=True))
        with Zoo(path) as zoo:
            Console().print(card(zoo))
    return 0


if __name__ == "__main__":
    sys.exit(main())
