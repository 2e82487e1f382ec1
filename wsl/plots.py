"""Figures of a run, as PNG files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

INK, ACCENT, WRONG = "#333333", "#1f6f8b", "#c0392b"


def learning_curve(metrics: Path, metric: str, best_epoch: int, target: Path) -> Path:
    """Training and validation loss, and the validation metric, against epochs, from a run's metrics.csv."""
    with open(metrics, newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for key, label, colour in (("train/loss_epoch", "train", INK), ("val/loss", "val", ACCENT)):
        left.plot(*_series(rows, key), label=label, color=colour, marker=".", markersize=4)
    left.set(xlabel="epoch", ylabel="loss")
    left.legend(frameon=False)
    epochs, values = _series(rows, metric)
    right.plot(epochs, values, color=ACCENT, marker=".", markersize=4)
    right.axvline(best_epoch + 1, color=WRONG, linewidth=1, linestyle="--")
    right.annotate("chosen", (best_epoch + 1, min(values, default=0)), color=WRONG, fontsize=8)
    right.set(xlabel="epoch", ylabel=metric)
    return _save(figure, target)


def confusion_matrix(target: Tensor, predicted: Tensor, classes: int, path: Path) -> Path:
    """Counts of (true, predicted) class pairs."""
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    counts.index_put_((target, predicted), torch.ones_like(target), accumulate=True)
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts.numpy(), cmap="Blues")
    threshold = counts.max().item() / 2
    for i, j in np.ndindex(classes, classes):
        if counts[i, j]:
            colour = "white" if counts[i, j] > threshold else INK
            axes.text(j, i, str(int(counts[i, j])), ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel="predicted", ylabel="true", xticks=range(classes), yticks=range(classes))
    accuracy = counts.diagonal().sum().item() / max(1, counts.sum().item())
    axes.set_title(f"test accuracy {accuracy:.1%}", fontsize=10)
    return _save(figure, path)


def predicted_against_true(target: Tensor, predicted: Tensor, title: str, path: Path) -> Path:
    """A point for each network: its target and what was predicted; on the diagonal the two agree."""
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    both = torch.cat([target, predicted])
    low, high = float(both.min()), float(both.max())
    axes.plot((low, high), (low, high), color=WRONG, linewidth=1, linestyle="--")
    axes.scatter(target, predicted, s=9, alpha=0.5, color=ACCENT, linewidths=0)
    axes.set(xlabel="true", ylabel="predicted")
    axes.set_title(title, fontsize=10)
    return _save(figure, path)


def inr_gallery(images: np.ndarray, target: Sequence[int], predicted: Sequence[int], path: Path) -> Path:
    """Rendered INRs ``[n, h, w]`` or ``[n, h, w, 3]`` in [0, 1] with their predicted labels; mistakes in red."""
    columns = 8
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.15 * columns, 1.35 * rows), layout="constrained")
    for axes, image, t, p in zip(
        figure.subplots(rows, columns, squeeze=False).flat[: len(images)], images, target, predicted, strict=True
    ):
        axes.imshow(np.clip(image, 0, 1), cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"{p}" if p == t else f"{p} (is {t})", fontsize=9, color=INK if p == t else WRONG)
    for axes in figure.axes:
        axes.axis("off")
    return _save(figure, path)


def edit_gallery(rows: Mapping[str, np.ndarray], path: Path) -> Path:
    """One row of images ``[n, h, w, c]`` in [0, 1] for each name, the same network in a column."""
    columns = max(len(images) for images in rows.values())
    figure = Figure(figsize=(0.6 + 0.9 * columns, 0.95 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for place, image in zip(line, images, strict=True):
            place.imshow(
                np.clip(image, 0, 1).squeeze(-1) if image.shape[-1] == 1 else np.clip(image, 0, 1),
                cmap="gray",
                vmin=0,
                vmax=1,
            )
            place.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=10, color=INK)
    return _save(figure, path)


def comparison(names: Sequence[str], values: Sequence[float], metric: str, path: Path) -> Path:
    """One bar per encoder."""
    figure = Figure(figsize=(6.4, 0.5 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(names, values, color=[ACCENT] + ["#b8c4c9"] * (len(names) - 1))
    axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel=metric, xlim=(min(0.0, *values), max(values) * 1.15 if max(values) > 0 else 1))
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def sweep(names: Sequence[str], scores: Mapping[str, Sequence[Sequence[float]]], metric: str, path: Path) -> Path:
    """Each setting's mean ± standard deviation and its seeds, in every split: split → setting → seed."""
    figure = Figure(figsize=(7.4, 0.9 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    for number, ((split, of_settings), colour) in enumerate(zip(scores.items(), (ACCENT, INK), strict=False)):
        height = np.arange(len(names)) + 0.12 * (2 * number - 1)
        mean = [float(np.mean(seeds)) for seeds in of_settings]
        spread = [float(np.std(seeds, ddof=1)) if len(seeds) > 1 else 0.0 for seeds in of_settings]
        axes.errorbar(mean, height, xerr=spread, fmt="o", markersize=5, capsize=3, color=colour, label=split)
        for seeds, y in zip(of_settings, height, strict=True):
            axes.plot(seeds, [y] * len(seeds), "|", color=colour, alpha=0.5)
    axes.set(xlabel=f"{metric} (mean ± deviation over seeds)", yticks=range(len(names)))
    axes.set_yticklabels(names, fontsize=8)
    axes.invert_yaxis()
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


@dataclass(frozen=True)
class Star:
    """A node among its neighbours: their classes give the colours, their weights the width of the rays."""

    title: str
    wrong: bool
    centre: int
    classes: Sequence[int]
    weights: Sequence[float]


def attention_stars(stars: Sequence[Star], title: str, path: Path) -> Path:
    """One star for each node, heaviest neighbour on top and on clockwise; mistakes have red titles."""
    columns = 4
    rows = max(1, -(-len(stars) // columns))
    figure = Figure(figsize=(2.7 * columns, 0.4 + 2.4 * rows), layout="constrained")
    figure.suptitle(title, fontsize=10)
    colours = matplotlib.colormaps["tab20"]
    for axes, star in zip(figure.subplots(rows, columns, squeeze=False).flat[: len(stars)], stars, strict=True):
        angles = np.pi / 2 - np.linspace(0, 2 * np.pi, len(star.classes), endpoint=False)
        for angle, kind, weight in zip(angles, star.classes, star.weights, strict=True):
            x, y = np.cos(angle), np.sin(angle)
            axes.plot([0, x], [0, y], color=INK, linewidth=0.3 + 8 * weight, alpha=0.6, zorder=1)
            axes.scatter([x], [y], color=colours(kind % 20), s=90, zorder=2)
            axes.text(x, y, str(kind), ha="center", va="center", fontsize=6, zorder=3)
            axes.text(1.28 * x, 1.28 * y, f"{weight:.2f}", ha="center", va="center", fontsize=6, color=INK)
        axes.scatter([0], [0], color=colours(star.centre % 20), s=160, edgecolors=INK, zorder=2)
        axes.text(0, 0, str(star.centre), ha="center", va="center", fontsize=7, zorder=3)
        axes.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), aspect="equal")
        axes.set_title(star.title, fontsize=7, color=WRONG if star.wrong else INK)
    for axes in figure.axes:
        axes.axis("off")
    return _save(figure, path)


def accuracy_against_sparsity(
    validated: Mapping[str, Sequence[tuple[float, float]]],
    tested: Mapping[str, tuple[float, float]],
    path: Path,
    metric: str = "accuracy",
) -> Path:
    """Points (edge sparsity, accuracy) of every validated epoch, by the edges that evaluation used, and the test's.

    Args:
        validated: {view: [(sparsity, accuracy), …]} in the order of the epochs, which pales from late to early.
        tested: {view: (sparsity, accuracy)}.
        metric: what it is, if not accuracy.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(validated, (ACCENT, "#c98b1b", "#8a8f98"), strict=False))
    for view, points in validated.items():
        x, y = np.array(points, dtype=float).reshape(-1, 2).T
        shades = [(*to_rgb(colours[view]), alpha) for alpha in np.linspace(0.15, 0.9, len(x))]
        axes.scatter(x, y, s=12, c=shades, linewidths=0)
        axes.scatter(*tested[view], s=70, color=colours[view], marker="D", edgecolors=INK, label=view, zorder=3)
    axes.set(xlabel="edge sparsity (self loops not counted)", ylabel=metric)
    axes.set_title("validation by epoch (dots, late is dark), test (diamonds)", fontsize=9, loc="left")
    axes.legend(title="evaluated on", frameon=False, fontsize=8, title_fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def layers_by_steps(panels: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], path: Path) -> Path:
    """One heat map for each quantity, layers downwards, steps to the right; the colours are powers of ten.

    Args:
        panels: {title: {layer: [(step, value), …]}}; values of 0 and what is not finite stay white.
    """
    shown = {title: layers for title, layers in panels.items() if layers}
    figure = Figure(figsize=(9, 0.5 + sum(0.8 + 0.22 * len(layers) for layers in shown.values())), layout="constrained")
    for number, (title, layers) in enumerate(shown.items()):
        axes = figure.add_subplot(len(shown), 1, number + 1)
        steps = sorted({step for series in layers.values() for step, _ in series})
        column = {step: n for n, step in enumerate(steps)}
        values = np.full((len(layers), len(steps)), np.nan)
        for row, series in enumerate(layers.values()):
            for step, value in series:
                values[row, column[step]] = np.log10(value) if 0 < value < np.inf else np.nan
        image = axes.imshow(values, aspect="auto", cmap="viridis", interpolation="nearest")
        figure.colorbar(image, ax=axes, label="log₁₀", pad=0.01)
        ticks = np.unique(np.linspace(0, len(steps) - 1, min(8, len(steps))).astype(int))
        axes.set(xticks=ticks, xticklabels=[str(steps[t]) for t in ticks], xlabel="step")
        axes.set(yticks=range(len(layers)), yticklabels=list(layers))
        axes.set_title(title, fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
    return _save(figure, path)


def _series(rows: Sequence[dict[str, str]], key: str) -> tuple[list[int], list[float]]:
    found = [(int(row["epoch"]) + 1, float(row[key])) for row in rows if row.get(key)]
    return [epoch for epoch, _ in found], [value for _, value in found]


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
