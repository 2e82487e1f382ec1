"""Kendall's tau when test networks are rescaled: ReLU networks of cnn_digits, factors uniform in [1, 10^k], k = 0 … 4.

Every encoder is trained once, on the networks as they are. Then each test network counts twice, as it is and moved by a
random permutation and positive scaling of its hidden channels (``data.augment.twins``), which leave its function alone:
an encoder that respects scaling gives the same tau for every k. With k = 0 the twins are permuted only.

    python scripts/reproduce.py scaling --seeds 0 1 2 --markdown scaling.md --figure scaling.png

The first seed of every encoder comes first. What is finished is not repeated: stopped and started again, runs go on
from their last checkpoint. Further arguments are overrides of the config.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.progress import track
from rich.table import Table

import train
from wsl import build
from wsl.config import arguments
from wsl.errors import UserError
from wsl.results import mean_std
from wsl.run_folder import ensure, owned, write_text
from wsl.trainer import lightning_trainer

ROOT = Path(__file__).resolve().parents[2]
POWERS = (0, 1, 2, 3, 4)
#: name → overrides that choose the encoder
ENCODERS: dict[str, tuple[str, ...]] = {
    "monomial": ("encoder=monomial",),
    "monomial, paths": ("encoder=monomial", "encoder.paths=8"),
    "monomial_rich": ("encoder=monomial_rich",),
    "scale_gmn": ("encoder=scale_gmn_cnn_small",),
    "nfn_np": ("encoder=nfn_np",),
    "nfn_hnp": ("encoder=nfn_hnp",),
    "canonical, nfn_np": ("encoder=canonical", "encoder@encoder.encoder=nfn_np"),
    "statnn": ("encoder=statnn",),
}
FIXED = ("data=cnn_digits", "data.where.activation=relu", "task=generalization", "compare=[]", "logger=csv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--encoders", nargs="+", default=list(ENCODERS), metavar="NAME", help=", ".join(map(repr, ENCODERS))
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED")
    parser.add_argument("--folder", type=Path, default=Path("runs/scaling"), help="where runs are made and found again")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    parser.add_argument("--figure", type=Path, help="draw the curves into this file")
    parser.set_defaults(takes_overrides=True)


def run(args: argparse.Namespace) -> None:
    """Train what is missing, test everything, print the table.

    Raises:
        UserError: if an encoder has no name here.
    """
    if unknown := sorted(set(args.encoders) - set(ENCODERS)):
        raise UserError(f"--encoders {', '.join(unknown)}: not among {', '.join(map(repr, ENCODERS))}")
    found: dict[str, list[list[float]]] = {name: [] for name in args.encoders}
    parameters: dict[str, int] = {}
    console = Console(highlight=False)
    for seed in args.seeds:
        for name in args.encoders:
            config = _config(name, seed, args.overrides)
            folder = ensure(args.folder / f"{name.replace(', ', '_')}_seed{seed}")
            with owned(folder):
                config = build.continued(config, folder)
                parameters[name] = train.run(config, folder).parameters
                found[name].append(_tested(config, folder, name))
            console.print(f"{name}, seed {seed}: {' '.join(f'{tau:.4f}' for tau in found[name][-1])}")
    print_table(found, parameters)
    if args.json:
        write_text(args.json, json.dumps({"powers": POWERS, "tau": found, "parameters": parameters}, indent=2) + "\n")
    if args.markdown:
        write_text(args.markdown, "\n".join(markdown(found, parameters)) + "\n")
    if args.figure:
        draw(found, args.figure)


def _config(name: str, seed: int, overrides: Sequence[str]) -> build.RunConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return build.config(compose("train", [*FIXED, *ENCODERS[name], f"seed={seed}", *overrides]))


def _tested(config: build.RunConfig, folder: Path, name: str) -> list[float]:
    """Tau of the test networks and their twins, for every power; read where it is known."""
    known = folder / "tau.json"
    if known.exists():
        return [float(tau) for tau in json.loads(known.read_text())]
    task = build.task(config, build.exported_encoder(folder))
    options = arguments(config.trainer) | {"progress": "none"}
    trainer = lightning_trainer(folder=folder, callbacks=[], loggers=[], **options)
    out = []
    for power in track(POWERS, f"testing {name}, seed {config.seed}", transient=True, console=Console(stderr=True)):
        twins = {"twins": ("test",), "twin_symmetries": ("permutation", "scaling"), "scale": (1.0, 10.0**power)}
        augment = config.data.augment.model_copy(update=twins)
        data = build.data(config.model_copy(update={"data": config.data.model_copy(update={"augment": augment})}))
        (metrics,) = trainer.test(task, data, verbose=False)
        out.append(metrics["test/tau"])
    write_text(known, json.dumps(out) + "\n")
    return out


def print_table(found: Mapping[str, list[list[float]]], parameters: Mapping[str, int]) -> None:
    """One row per encoder, mean ± standard deviation over seeds."""
    table = Table("encoder", "parameters", *(f"U[1, 10^{k}]" if k else "permuted" for k in POWERS), title="test tau")
    for name, runs in found.items():
        table.add_row(name, f"{parameters[name]:,}", *(mean_std(column) for column in zip(*runs, strict=True)))
    Console(width=140, highlight=False).print(table)


def markdown(found: Mapping[str, list[list[float]]], parameters: Mapping[str, int]) -> list[str]:
    """The lines of the same table for a page of docs."""
    heads = ["permuted", *(f"U[1, 10^{k}]" for k in POWERS[1:])]
    lines = [f"| encoder | parameters | {' | '.join(heads)} |", f"| --- | ---: |{' ---: |' * len(POWERS)}"]
    for name, runs in found.items():
        cells = [mean_std(column) for column in zip(*runs, strict=True)]
        lines.append(f"| {name} | {parameters[name]:,} | {' | '.join(cells)} |")
    return lines


def draw(found: Mapping[str, list[list[float]]], target: Path) -> None:
    """Tau against the largest factor, one curve per encoder, a band of one deviation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, runs in found.items():
        columns = list(zip(*runs, strict=True))
        mean = [statistics.fmean(c) for c in columns]
        (line,) = axes.plot(POWERS, mean, marker="o", label=name)
        if len(runs) > 1:
            std = [statistics.stdev(c) for c in columns]
            low, high = ([m + s * d for m, d in zip(mean, std, strict=True)] for s in (-1, 1))
            axes.fill_between(POWERS, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="largest factor of the twins' channels", ylabel="test tau")
    axes.set_xticks(POWERS, [f"$10^{k}$" if k else "1" for k in POWERS])
    axes.legend(frameon=False, fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
