"""Unifews on Cora: the published pairs under ``full``, and what the sparse model itself can do (docs/unifews.md).

Largest component of Cora, binary features, 50/25/25 split within classes, one run of train.py's own parts per seed:
network of width 512, Adam 1e-3, weight decay 1e-5, batch normalisation, dropout 0.5.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from wsl import build
from wsl.callbacks.sparsify import VIEWS, UnifewsSparsification

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("WSL_DATA", ROOT.parent / "shared" / "data"))

GCN = ("encoder=gcn", "encoder.read_sparse=true")
GAT = ("encoder=gatv2_node", "encoder.activation=relu", "encoder.attention_dropout=0.5")
OFF = {"edge_threshold": 0.0, "weight_threshold": 0.0}
PAPER = {**OFF, "select": "full"}
#: trained and evaluated with the same few edges, chosen by what they are worth to receivers that are unsure alone
DOUBT = {
    **OFF, "edge_choice": "doubt", "warm_up": 60, "warm_up_edges": "loops", "rewind": True, "freeze": 61,
    "pruned_edge": "absent", "best_in_edge": True, "placement": "first",
}  # fmt: skip
MESSAGE = {**DOUBT, "edge_choice": "message", "warm_up_edges": "all"}
NEED = {**DOUBT, "edge_choice": "need", "warm_up_edges": "all"}
RANDOM = {**OFF, "pruned_edge": "absent", "edge_choice": "random", "placement": "first"}

#: name → (encoder, sparsity options); the tables of docs/unifews.md
TABLES: dict[str, dict[str, tuple[tuple[str, ...], dict[str, Any]]]] = {
    "published": {
        "gcn, dense": (GCN, PAPER),
        "gcn (1, 1)": (GCN, {**PAPER, "edge_threshold": 1.0, "weight_threshold": 1.0}),
        "gcn (2, 0)": (GCN, {**PAPER, "edge_threshold": 2.0}),
        "gcn (2, 2)": (GCN, {**PAPER, "edge_threshold": 2.0, "weight_threshold": 2.0}),
    },
    "true": {
        f"gcn {100 * target:.0f} %, {name}": (GCN, {**options, "edge_target": target})
        for target in (0.74, 0.9, 0.98)
        for name, options in {
            "doubt": DOUBT,
            "message": MESSAGE,
            "need (asks the dense model)": NEED,
            "random": RANDOM,
            "magnitude": {**RANDOM, "edge_choice": "magnitude"},
            "drop_edge": {**RANDOM, "edge_choice": "drop_edge"},
        }.items()
    }
    | {"gcn, no edge at all": (GCN, {**OFF, "edge_target": 0.9999, "pruned_edge": "absent"})},
    "weights": {
        f"gcn weights {100 * target:.0f} %, {choice}": (GCN, {**OFF, "weight_target": target, "weight_choice": choice})
        for target in (0.95, 0.99)
        for choice in ("message", "magnitude", "random")
    },
    "attention": {
        "gat, dense": (GAT, PAPER),
        "gat (0.05, 0)": (GAT, {**PAPER, "edge_threshold": 0.05}),
        "gat 54 %, message": (GAT, {**MESSAGE, "edge_target": 0.54}),
        "gat 54 %, doubt": (GAT, {**DOUBT, "edge_target": 0.54}),
        "gat 90 %, doubt": (GAT, {**DOUBT, "edge_target": 0.9}),
        "gat 98 %, doubt": (GAT, {**DOUBT, "edge_target": 0.98}),
    },
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", choices=[*TABLES, "all"], default="all")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds; each has its own split")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write every run to this file")


def run(args: argparse.Namespace) -> None:
    console = Console(highlight=False)
    found: dict[str, list[dict[str, float]]] = {}
    for name, rows in TABLES.items():
        if args.table not in (name, "all"):
            continue
        for row, (encoder, options) in rows.items():
            if args.only not in row:
                continue
            start = time.perf_counter()
            found[row] = [one(encoder, options, seed, args.epochs) for seed in range(args.seeds)]
            console.print(f"{row}: {_line(found[row])}  ({time.perf_counter() - start:.0f} s)", markup=False)
            if args.json:
                args.json.write_text(json.dumps(found, indent=2) + "\n")
    console.print(table(found))


def one(encoder: tuple[str, ...], options: Mapping[str, Any], seed: int, epochs: int) -> dict[str, float]:
    """Train and test once; accuracies in per cent under every view, sparsities, MACs."""
    fixed = ["data=cora", f"data.path={DATA / 'cora.npz'}", "data.split=stratified", f"data.split_seed={seed}"]
    fixed += ["data.largest_component=true", "data.normalize_features=false", "task=node_classification"]
    fixed += ["optimizer=adam", "optimizer.lr=1e-3", "optimizer.weight_decay=1e-5", "scheduler=plateau"]
    fixed += ["scheduler.factor=0.5", "scheduler.patience=15", "logger=csv", "compare=[]", "trainer.progress=none"]
    fixed += [
        f"trainer.max_epochs={epochs}",
        "trainer.gradient_clip_val=0.0",
        "trainer.check_val_every_n_epoch=2",
        f"seed={seed}",
    ]
    fixed += ["encoder.hidden=512", "encoder.norm=batch", "encoder.input_dropout=false", "encoder.dropout=0.5"]
    given = [f"sparsity.{key}={'null' if value is None else value}" for key, value in options.items()]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = build.config(compose("train", [*fixed, *encoder, "sparsity=unifews", *given]))
    with tempfile.TemporaryDirectory() as folder:
        data = build.data(config)
        task = build.task(config, build.encoder(config, data))
        trainer = build.trainer(config, task, data, Path(folder))
        trainer.callbacks = [c for c in trainer.callbacks if not _keeps_last(c)]  # type: ignore[attr-defined]
        trainer.fit(task, data, weights_only=True)
        trainer.test(task, data, ckpt_path=build.chosen(trainer), weights_only=True, verbose=False)
        sparsify = next(c for c in trainer.callbacks if isinstance(c, UnifewsSparsification))  # type: ignore[attr-defined]
    assert sparsify.cost is not None
    return {
        **{view: 100 * sparsify.tested[view] for view in VIEWS},
        "edges": 100 * sparsify.cost.edge_sparsity,
        "weights": 100 * sparsify.cost.weight_sparsity,
        "gmacs": sparsify.cost.macs / 1e9,
    }


def _keeps_last(callback: object) -> bool:
    """A checkpoint in every epoch, for resuming: most of the time of so small a run, and not needed here."""
    return getattr(callback, "filename", None) == "last"


def _line(runs: list[dict[str, float]]) -> str:
    return "  ".join(f"{key} {_mean(runs, key)}" for key in runs[0])


def _mean(runs: list[dict[str, float]], key: str) -> str:
    values = [run[key] for run in runs]
    digits = 3 if key == "gmacs" else 1
    spread = f" ± {np.std(values, ddof=1):.1f}" if key in VIEWS and len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def table(found: Mapping[str, list[dict[str, float]]]) -> Table:
    """Means over seeds, ± standard deviation for accuracies."""
    out = Table(title="Cora, test accuracy in %, mean ± std over seeds", title_justify="left")
    out.add_column("model")
    for key in ("edges removed", "weights removed", "GMACs", *VIEWS):
        out.add_column(key, justify="right")
    for name, runs in found.items():
        out.add_row(name, *(_mean(runs, key) for key in ("edges", "weights", "gmacs", *VIEWS)))
    return out
