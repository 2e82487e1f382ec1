"""Prune the messages and weights of an encoder while it trains, and say truthfully what that costs and saves."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from rich.console import Console
from torch import Tensor

from wsl import plots
from wsl.callbacks.sparsity_report import print_sparse, write_csv
from wsl.encoders.node.sparsifiable import Sparsifiable
from wsl.nn.sparse.dials import Dials, layer_errors, network_costs
from wsl.nn.sparse.edge_choice import worth
from wsl.nn.sparse.sieve import View
from wsl.ranges import NonNegativeInt, PositiveInt
from wsl.sparsity import SparsityError, check_target, check_threshold
from wsl.sparsity.macs import Cost, LayerCost, total
from wsl.sparsity.options import check_networks, check_together
from wsl.sparsity.schedule import Schedule
from wsl.tasks.base import Task
from wsl.tasks.gathered import GatheredRows

VIEWS: tuple[View, ...] = ("true", "locked", "full")
COUNTED = 64
"""Networks of a zoo whose edges and MACs stand for all."""


class UnifewsSparsification(pl.Callback):
    """Turns the dials of every sieve in the encoder (:mod:`wsl.nn.sparse.sieve`) by a schedule.

    Three accuracies are always reported. *true*: pruned edges are pruned everywhere, the figure to quote. *locked*:
    all edges into the nodes that are scored are there again. *full*: all edges are, as in the published curves; only
    weights stay pruned. Instead of accuracy, the metric is the one that the task monitors. The run folder gets

        sparsity.csv            every validated epoch: sparsities, MACs, seconds, three accuracies
        sparsity_layers.csv     every layer: error of the sparse model's output, and its bounds (wsl.sparsity.bound)
        figures/sparsity.png    accuracy against edge sparsity

    Masks and kept edges are buffers of the encoder, so checkpoints and exports hold the sparse model.

    Encoders of neural graphs (NG-GNN, GATv2, ScaleGMN) prune the edges of every network by itself, by a rule that is
    in the checkpoint (:mod:`wsl.nn.sparse.network_sieve`): their own messages choose, a pruned edge is absent, and
    "locked" is not told, as what is scored is the network. Sparsities and MACs are those of 64 training networks.

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
        pruned_edge: what a pruned edge is in normalisation and softmax: "zero" (still counted) or "absent"; "auto":
            zero on one graph, absent on neural graphs.
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
        pruned_edge: Literal["auto", "zero", "absent"] = "auto",
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
        check_together(edge_choice, weight_choice, edge_target, weight_target, warm_up, placement)
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
        self._said = {view: GatheredRows() for view in VIEWS}
        self._example: Any = None
        self._console = Console(highlight=False, soft_wrap=True)
        self._started = 0.0

    # --- dials --------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        self.dials = Dials(task.encoder)  # type: ignore[arg-type]
        if not len(self.dials):
            raise SparsityError(
                f"sparsity: {type(task.encoder).__name__} has nothing that can be pruned; choose encoder gcn, "
                "sage, gin, gcnii, gatv2_node, sgc, appnp or heat for a graph, ng_gnn, gatv2 or scale_gmn for networks"
            )
        if self.dials.networks:
            check_networks(self.edge_choice, self.pruned_edge, self.warm_up_edges)
        elif self.edge_target and not self.dials.edges and (self.edge_choice != "message" or self.edge_target > 0):
            raise SparsityError("sparsity.edge_target: this encoder has no messages to prune; set it to null")
        if self.weight_target and not self.dials.weights:
            raise SparsityError("sparsity.weight_target: this encoder has no weights to prune; set it to null")
        epochs = trainer.max_epochs or 1
        monotone = epochs // 2 if self.monotone is None else self.monotone
        self.schedule = Schedule(epochs, self.warm_up, monotone, self.freeze, self.ramp)
        self.dials.view(self.select)

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._started = time.perf_counter()  # a run that goes on within an epoch has no start of that epoch
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
            sieve.sparsity = self._edge_sparsity(number, share, len(self.dials.edges))
            if phase == "dense" and self.warm_up_edges == "loops":
                sieve.choice, sieve.sparsity, sieve.renormalize = "magnitude", 1.0, True
        for number, of_networks in enumerate(self.dials.networks):
            of_networks.absolute, of_networks.threshold = self.absolute, self.edge_threshold
            of_networks.best_in_edge = self.best_in_edge
            of_networks.sparsity = self._edge_sparsity(number, share, len(self.dials.networks))
        for number, weights in enumerate(self.dials.weights):
            weights.choice, weights.seed, weights.absolute = self.weight_choice, number, self.absolute
            weights.threshold, weights.monotone = self.weight_threshold, phase == "monotone"
            weights.sparsity = None if self.weight_target is None else self.weight_target * share
        if phase in ("monotone", "frozen"):
            self.dials.forget_momentum(trainer.optimizers)

    def _edge_sparsity(self, number: int, share: float, layers: int) -> float | None:
        if self.edge_target is None:
            return None
        target = self.edge_target * share
        if self.placement == "equal":
            return target
        left = (1.0 - target) * layers - number
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
        assert isinstance(task, Task)
        self._score(task, batch)

    def on_test_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        assert isinstance(task, Task)
        self._score(task, batch)

    def on_test_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.dials.view("true")  # whatever chose the checkpoint, the test metric is that of the sparse model

    @property
    def views(self) -> tuple[View, ...]:
        """Those that differ: on neural graphs "locked" is "full"."""
        return ("true", "full") if self.dials.networks else VIEWS

    @torch.no_grad()
    def _score(self, task: Task, batch: Any) -> None:
        before = self.dials.current_view
        for view in self.views:
            self.dials.view(view, batch)
            self._said[view].to(task.device).update(batch.row_ids, task.output(batch), batch.target)
        self.dials.view(before, batch)

    def _metrics(self, task: Task) -> dict[str, float]:
        """The metric that the task monitors, of each view."""
        return {view: task.metrics(self._said[view].gather())[_metric(task)] for view in self.views}

    def on_validation_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        assert isinstance(task, Task)
        scores = self._metrics(task)
        cost = self.cost = total(self._costs(trainer, task))
        row = {
            "epoch": float(trainer.current_epoch),
            "edge_sparsity": cost.edge_sparsity,
            "edge_sparsity_with_loops": cost.edge_sparsity_with_loops,
            "weight_sparsity": cost.weight_sparsity,
            "macs": float(cost.macs),
            "dense_macs": float(cost.dense_macs),
            "seconds": time.perf_counter() - self._started,
        } | {f"val_{view}": value for view, value in scores.items()}
        self.rows.append(row)
        if trainer.is_global_zero and not trainer.sanity_checking:
            for logger in trainer.loggers:
                logger.log_metrics({f"sparsity/{k}": v for k, v in row.items() if k != "epoch"}, trainer.global_step)
            write_csv(self.folder / "sparsity.csv", self.rows)

    def _costs(self, trainer: pl.Trainer, task: pl.LightningModule) -> list[LayerCost]:
        encoder: Any = task.encoder
        if self._example is None:
            example = trainer.datamodule.example()  # type: ignore[attr-defined]
            some = torch.arange(min(COUNTED, len(example)))
            self._example = (example.select(some) if self.dials.networks else example).to(task.device)
        if self.dials.networks:
            return network_costs(encoder, self._example)
        found: list[LayerCost] = encoder.costs(self._example.graph)
        return found

    def on_test_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        assert isinstance(task, Task)
        self.tested = self._metrics(task)
        self.cost = total(self._costs(trainer, task))
        for logger in trainer.loggers:
            logger.log_metrics({f"test/{_metric(task)}_{k}": v for k, v in self.tested.items()}, trainer.global_step)
        if not trainer.is_global_zero:
            return
        errors = layer_errors(task.encoder, self._example)
        write_csv(self.folder / "sparsity_layers.csv", errors)
        if self.rows:
            plots.accuracy_against_sparsity(
                {v: [(r["edge_sparsity"], r[f"val_{v}"]) for r in self.rows] for v in self.views},
                {v: (self.cost.edge_sparsity, value) for v, value in self.tested.items()},
                self.folder / "figures" / "sparsity.png",
                _metric(task),
            )
        print_sparse(self._console, self.cost, self.tested, errors)

    def state_dict(self) -> dict[str, Any]:
        known = [sieve.worth for sieve in self.dials.edges if sieve.worth is not None] if hasattr(self, "dials") else []
        return {"initial": self._initial, "worth": known[:1]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._initial = state["initial"]
        for sieve in self.dials.edges:
            sieve.worth = state["worth"][0] if state["worth"] else None


def _metric(task: Task) -> str:
    """The name of the metric that the task monitors."""
    return task.monitor.removeprefix("val/")


def no_sparsification(folder: Path) -> None:
    """Nothing is pruned."""
