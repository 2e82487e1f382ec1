"""Prune the messages and weights of an encoder while it trains, and say truthfully what that costs and saves."""

from __future__ import annotations

import csv
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from rich.console import Console
from rich.table import Table
from torch import Tensor

from wsl import plots
from wsl.encoders.node.sparsifiable import Sparsifiable
from wsl.nn.sparse.dials import Dials, layer_errors
from wsl.nn.sparse.edge_choice import worth
from wsl.nn.sparse.sieve import View
from wsl.ranges import NonNegativeInt, PositiveInt
from wsl.sparsity import SparsityError, check_target, check_threshold
from wsl.sparsity.macs import Cost, total
from wsl.sparsity.schedule import Schedule

VIEWS: tuple[View, ...] = ("true", "locked", "full")


class UnifewsSparsification(pl.Callback):
    """Turns the dials of every sieve in the encoder (:mod:`wsl.nn.sparse.sieve`) by a schedule.

    Three accuracies are always reported. *true*: pruned edges are pruned everywhere, the figure to quote. *locked*:
    all edges into the nodes that are scored are there again. *full*: all edges are, as in the published curves; only
    weights stay pruned. The run folder gets

        sparsity.csv            every validated epoch: sparsities, MACs, seconds, three accuracies
        sparsity_layers.csv     every layer: error of the sparse model's output, and its bounds (wsl.sparsity.bound)
        figures/sparsity.png    accuracy against edge sparsity

    Masks and kept edges are buffers of the encoder, so checkpoints and exports hold the sparse model.

    Args:
        folder: the run folder (given by the program).
        edge_threshold: δ_a, in units of the layer's mean message. 0: no message is pruned.
        weight_threshold: δ_w, in units of ‖X‖_F / F over the column's norm. 0: no weight is pruned.
        edge_target: share of the edges to remove in each layer, in place of δ_a; reached by a cubic ramp.
        weight_target: share of the weights to remove in each map, in place of δ_w.
        absolute: thresholds of the paper's text, not relative ones of its code.
        warm_up: dense epochs at the start.
        warm_up_edges: "all", or "loops": the warm-up sees no edge but self loops.
        ramp: epochs after the warm-up in which targets are reached; 0: at once.
        monotone: epoch from which pruned weights stay pruned; null: half of the epochs.
        freeze: epoch from which nothing changes any more; null: never.
        refresh: epochs between new choices of edges; in between the chosen ones are used.
        pruned_edge: what a pruned edge is in normalisation and softmax: "zero" (still counted) or "absent".
        edge_choice: "message": Unifews. "doubt", "need": what an edge is worth to its receiver, asked once after the
            warm-up (:mod:`wsl.nn.sparse.edge_choice`). To compare with: "random" (fixed), "magnitude", "drop_edge" (in
            every epoch others; evaluation has those of the last).
        weight_choice: "message": Unifews. To compare with: "random" (fixed), "magnitude".
        best_in_edge: the best edge of every receiver goes last.
        placement: "equal": the edge target holds in each layer; "first": the same number of edges in all, as many as
            fit in the first layer.
        rewind: after the warm-up start from the initial weights again, with the edges chosen.
        select: the accuracy that chooses the checkpoint.

    Raises:
        SparsityError: for a negative threshold, a target of 1, an encoder without anything to prune.
    """

    def __init__(
        self,
        folder: Path,
        *,
        edge_threshold: float = 0.0,
        weight_threshold: float = 0.0,
        edge_target: float | None = None,
        weight_target: float | None = None,
        absolute: bool = False,
        warm_up: NonNegativeInt = 0,
        warm_up_edges: Literal["all", "loops"] = "all",
        ramp: NonNegativeInt = 0,
        monotone: NonNegativeInt | None = None,
        freeze: PositiveInt | None = None,
        refresh: PositiveInt = 1,
        pruned_edge: Literal["zero", "absent"] = "zero",
        edge_choice: Literal["message", "doubt", "need", "random", "magnitude", "drop_edge"] = "message",
        weight_choice: Literal["message", "random", "magnitude"] = "message",
        best_in_edge: bool = False,
        placement: Literal["equal", "first"] = "equal",
        rewind: bool = False,
        select: View = "true",
    ) -> None:
        check_threshold("sparsity.edge_threshold", edge_threshold)
        check_threshold("sparsity.weight_threshold", weight_threshold)
        for name, target in (("edge_target", edge_target), ("weight_target", weight_target)):
            if target is not None:
                check_target(f"sparsity.{name}", target)
        _check_together(edge_choice, weight_choice, edge_target, weight_target, warm_up, placement)
        self.folder, self.warm_up, self.ramp, self.monotone, self.freeze = folder, warm_up, ramp, monotone, freeze
        self.edge_threshold, self.weight_threshold = edge_threshold, weight_threshold
        self.edge_target, self.weight_target, self.absolute = edge_target, weight_target, absolute
        self.refresh, self.pruned_edge, self.best_in_edge = refresh, pruned_edge, best_in_edge
        self.edge_choice, self.weight_choice = edge_choice, weight_choice
        self.placement, self.rewind, self.select = placement, rewind, select
        self.warm_up_edges = warm_up_edges
        self.rows: list[dict[str, float]] = []
        self.tested: dict[str, float] = {}
        self.cost: Cost | None = None
        self._initial: dict[str, Tensor] = {}
        self._counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._console = Console(highlight=False, soft_wrap=True)
        self._started = 0.0

    # --- dials --------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        self.dials = Dials(task.encoder)  # type: ignore[arg-type]
        if not len(self.dials):
            raise SparsityError(
                f"sparsity: {type(task.encoder).__name__} has nothing that can be pruned; choose encoder gcn, "
                "sage, gin, gcnii, gatv2_node, sgc, appnp or heat"
            )
        if self.edge_target and not self.dials.edges and (self.edge_choice != "message" or self.edge_target > 0):
            raise SparsityError("sparsity.edge_target: this encoder has no messages to prune; set it to null")
        epochs = trainer.max_epochs or 1
        monotone = epochs // 2 if self.monotone is None else self.monotone
        self.schedule = Schedule(epochs, self.warm_up, monotone, self.freeze, self.ramp)
        self.dials.view(self.select)

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if self.rewind and not self._initial:
            self._initial = {name: value.clone() for name, value in task.encoder.state_dict().items()}  # type: ignore[union-attr]
        table = self.folder / "sparsity.csv"
        if table.exists() and trainer.current_epoch:
            with open(table, newline="") as file:
                found = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
            self.rows = [row for row in found if row["epoch"] < trainer.current_epoch]

    def on_train_epoch_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._started = time.perf_counter()
        epoch = trainer.current_epoch
        phase, share = self.schedule.phase(epoch), self.schedule.share(epoch)
        if phase == "dense" or share < 1:
            self._counts_from_here(trainer)
        if epoch == self.warm_up > 0:
            self._counts_from_here(trainer)
            self._after_warm_up(trainer, task)
        for number, sieve in enumerate(self.dials.edges):
            sieve.choice = "random" if self.edge_choice == "drop_edge" else self.edge_choice  # type: ignore[assignment]
            sieve.choice = "given" if self.edge_choice in ("doubt", "need") else sieve.choice
            sieve.seed = number if self.edge_choice == "random" else number + 1000 * (epoch + 1)
            sieve.absolute, sieve.threshold = self.absolute, self.edge_threshold
            sieve.best_in_edge, sieve.renormalize = self.best_in_edge, self.pruned_edge == "absent"
            sieve.sparsity = self._edge_sparsity(number, share)
            if phase == "dense" and self.warm_up_edges == "loops":
                sieve.choice, sieve.sparsity, sieve.renormalize = "magnitude", 1.0, True
        for number, weights in enumerate(self.dials.weights):
            weights.choice, weights.seed, weights.absolute = self.weight_choice, number, self.absolute
            weights.threshold, weights.monotone = self.weight_threshold, phase == "monotone"
            weights.sparsity = None if self.weight_target is None else self.weight_target * share
        if phase in ("monotone", "frozen"):
            self.dials.forget_momentum(trainer.optimizers)

    def _edge_sparsity(self, number: int, share: float) -> float | None:
        if self.edge_target is None:
            return None
        target = self.edge_target * share
        if self.placement == "equal":
            return target
        left = (1.0 - target) * len(self.dials.edges) - number
        return 1.0 - min(1.0, max(0.0, left))

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """The first batch of an epoch prunes, the others use what it kept."""
        phase = self.schedule.phase(trainer.current_epoch)
        changing = phase in ("regrow", "monotone") and batch_idx == 0
        due = (trainer.current_epoch - self.warm_up) % self.refresh == 0
        alone = phase == "dense" and self.warm_up_edges == "loops" and batch_idx == 0
        self.dials.prune(
            edges=alone or (changing and due and bool(self.edge_threshold or self.edge_target)),
            weights=changing and bool(self.weight_threshold or self.weight_target),
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.dials.prune(edges=False, weights=False)

    def _after_warm_up(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if self.edge_choice in ("doubt", "need"):
            batch = trainer.datamodule.example()  # type: ignore[attr-defined]
            encoder = task.encoder
            assert isinstance(encoder, Sparsifiable)
            value = worth(encoder, batch.to(task.device), self.edge_choice)
            for sieve in self.dials.edges:
                sieve.worth = value
        if self.rewind:
            task.encoder.load_state_dict(self._initial)  # type: ignore[union-attr]
            for optimizer in trainer.optimizers:
                optimizer.state.clear()

    def _counts_from_here(self, trainer: pl.Trainer) -> None:
        """Epochs that are not yet as sparse as asked for must not be chosen: the best so far is forgotten."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
                trainer.strategy.remove_checkpoint(callback.best_model_path)
                callback.best_k_models.clear()
                callback.best_model_path = callback.kth_best_model_path = ""
                callback.best_model_score = callback.current_score = None

    # --- reports ------------------------------------------------------------------------------------------------

    def on_validation_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._score(task, batch)

    def on_test_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._score(task, batch)

    def on_test_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.dials.view("true")  # whatever chose the checkpoint, the test metric is that of the sparse model

    @torch.no_grad()
    def _score(self, task: pl.LightningModule, batch: Any) -> None:
        before = self.dials.current_view
        for view in VIEWS:
            self.dials.view(view, batch)
            right = (task.output(batch).argmax(-1) == batch.target).sum()  # type: ignore[operator]
            self._counts[view][0] += int(right)
            self._counts[view][1] += len(batch)
        self.dials.view(before, batch)

    def _accuracies(self) -> dict[str, float]:
        found = {view: right / max(1, n) for view, (right, n) in self._counts.items()}
        self._counts.clear()
        return found

    def on_validation_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        accuracies = self._accuracies()
        cost = self.cost = total(self._costs(trainer, task))
        row = {
            "epoch": float(trainer.current_epoch),
            "edge_sparsity": cost.edge_sparsity,
            "edge_sparsity_with_loops": cost.edge_sparsity_with_loops,
            "weight_sparsity": cost.weight_sparsity,
            "macs": float(cost.macs),
            "dense_macs": float(cost.dense_macs),
            "seconds": time.perf_counter() - self._started,
        } | {f"val_{view}": value for view, value in accuracies.items()}
        self.rows.append(row)
        if trainer.is_global_zero and not trainer.sanity_checking:
            for logger in trainer.loggers:
                logger.log_metrics({f"sparsity/{k}": v for k, v in row.items() if k != "epoch"}, trainer.global_step)
            _write_csv(self.folder / "sparsity.csv", self.rows)

    def _costs(self, trainer: pl.Trainer, task: pl.LightningModule) -> Any:
        return task.encoder.costs(trainer.datamodule.example().to(task.device).graph)  # type: ignore[attr-defined,operator,union-attr]

    def on_test_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.tested = self._accuracies()
        self.cost = total(self._costs(trainer, task))
        for logger in trainer.loggers:
            logger.log_metrics({f"test/accuracy_{k}": v for k, v in self.tested.items()}, trainer.global_step)
        if not trainer.is_global_zero:
            return
        errors = layer_errors(task.encoder, trainer.datamodule.example().to(task.device))  # type: ignore[arg-type,attr-defined]
        _write_csv(self.folder / "sparsity_layers.csv", errors)
        if self.rows:
            plots.accuracy_against_sparsity(
                {v: [(r["edge_sparsity"], r[f"val_{v}"]) for r in self.rows] for v in VIEWS},
                {v: (self.cost.edge_sparsity, value) for v, value in self.tested.items()},
                self.folder / "figures" / "sparsity.png",
            )
        self._print(errors)

    def _print(self, errors: list[dict[str, Any]]) -> None:
        assert self.cost is not None
        cost = self.cost
        table = Table(title="the sparse model, tested once", title_justify="left")
        for name in ("edges removed", "with loops", "weights removed", "MACs", "of dense", *VIEWS):
            table.add_column(name, justify="right")
        shares = (cost.edge_sparsity, cost.edge_sparsity_with_loops, cost.weight_sparsity)
        share = cost.macs / max(1, cost.dense_macs)
        accuracies = (f"{self.tested[view]:.4f}" for view in VIEWS)
        table.add_row(*(f"{s:.1%}" for s in shares), f"{cost.macs:,}", f"{share:.1%}", *accuracies)
        self._console.print(table)
        if errors:
            layers = Table(title="error of each layer's output by pruning, relative", title_justify="left")
            for name in errors[0]:
                layers.add_column(name)
            for row in errors:
                layers.add_row(*(v if isinstance(v, str) else f"{v:.4g}" for v in row.values()))
            self._console.print(layers)

    def state_dict(self) -> dict[str, Any]:
        known = [sieve.worth for sieve in self.dials.edges if sieve.worth is not None] if hasattr(self, "dials") else []
        return {"initial": self._initial, "worth": known[:1]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._initial = state["initial"]
        for sieve in self.dials.edges:
            sieve.worth = state["worth"][0] if state["worth"] else None


def no_sparsification(folder: Path) -> None:
    """Nothing is pruned."""


def _check_together(
    edge_choice: str,
    weight_choice: str,
    edge_target: float | None,
    weight_target: float | None,
    warm_up: int,
    placement: str,
) -> None:
    """Options that need each other."""
    if edge_choice in ("doubt", "need") and not warm_up:
        raise SparsityError(
            f"sparsity.edge_choice={edge_choice} asks a trained model: set sparsity.warm_up to some epochs"
        )
    if edge_target is None and (edge_choice != "message" or placement != "equal"):
        raise SparsityError(
            f"sparsity.edge_choice={edge_choice} with sparsity.placement={placement} needs sparsity.edge_target"
        )
    if weight_choice != "message" and weight_target is None:
        raise SparsityError(f"sparsity.weight_choice={weight_choice} needs sparsity.weight_target")


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
