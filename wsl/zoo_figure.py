"""A zoo on one page: how its labels spread, how large its weights are layer by layer, which networks it holds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from wsl.plots import ACCENT, INK
from wsl.zoo import Zoo
from wsl.zoo.architectures import activations, depth, widths
from wsl.zoo.temporary import reported, write_whole

Array = npt.NDArray[Any]
COLOURS = (ACCENT, "#d98c3f", "#7a5c8e", "#5f9e6e", "#b8c4c9")  # of the splits, in their order; the last: in none
COLUMNS = 4  # panels in a row
MOST_LABELS = 14  # panels of labels
FEW = 24  # distinct values that get a bar of their own
SAMPLE = 512  # networks whose weights are read
MOST_LAYERS, MOST_BARS = 16, 12


def draw_zoo(zoo: Zoo, path: Path) -> Path:
    """Draw the page as a PNG file; return its path.

    Every panel counts rows by split. Columns that are positions in a source, and texts with many values, are left out.

    Raises:
        ZooError: if a part of the file is damaged, or the figure cannot be written.
    """
    owner = _owner(zoo)
    names = [*sorted(zoo.splits, key=_split_order), *(["in none"] if (owner == len(zoo.splits)).any() else [])]
    ordered = sorted(zoo.columns, key=lambda name: (name != "label", not name.endswith("accuracy"), name))
    labels = [(name, values) for name in ordered if _is_label(name, values := zoo.column(name))][:MOST_LABELS]
    panels = 1 + len(labels)
    rows = 1 + -(-max(0, panels - 2) // COLUMNS)
    figure = Figure(figsize=(3.3 * COLUMNS, 2.7 * rows + 0.5), layout="constrained")
    grid = figure.add_gridspec(rows, COLUMNS)
    _weights(figure.add_subplot(grid[0, :2]), zoo)
    places = [grid[0, 2], grid[0, 3], *(grid[1 + i // COLUMNS, i % COLUMNS] for i in range(max(0, panels - 2)))]
    _architectures(figure.add_subplot(places[0]), zoo, owner, len(names))
    for place, (name, values) in zip(places[1:], labels, strict=False):
        _label(figure.add_subplot(place), name, values, owner, len(names))
    patches = [Patch(color=_colour(number)) for number in range(len(names))]
    figure.legend(patches, names, frameon=False, fontsize=8, loc="outside upper right", ncols=len(names))
    sizes = f"{len(zoo):,} networks, {len(zoo.specs):,} architecture{'s' if len(zoo.specs) > 1 else ''}"
    figure.suptitle(f"{zoo.path.name}: {sizes}", fontsize=11, color=INK)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(which="both", labelsize=7)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, picture.getvalue())
    return path


# -- panels -----------------------------------------------------------------------------------------------------------


def _label(axes: Axes, name: str, values: Array, owner: Array, splits: int) -> None:
    axes.set_title(name, fontsize=9, loc="left", color=INK)
    if values.dtype.kind == "U":
        words, index = np.unique(values, return_inverse=True)
        _bars(axes, [str(word) for word in words], index, owner, splits)
        return
    numbers = values.astype(np.float64)
    known = np.isfinite(numbers)
    distinct = np.unique(numbers[known])
    if len(distinct) <= FEW and values.dtype.kind in "iub":
        _bars(axes, [f"{value:g}" for value in distinct], np.searchsorted(distinct, numbers), owner, splits)
        return
    edges = np.histogram_bin_edges(numbers[known], 30)
    parts = [numbers[known & (owner == number)] for number in range(splits)]
    axes.hist(parts, bins=edges.tolist(), stacked=True, color=[_colour(n) for n in range(len(parts))])
    axes.set_ylabel("networks", fontsize=7)


def _bars(axes: Axes, names: Sequence[str], index: Array, owner: Array, splits: int) -> None:
    """Stacked bars of categories, flat if their names are short."""
    bottom = np.zeros(len(names))
    flat = max(map(len, names)) > 3
    for number in range(splits):
        counts = np.bincount(index[owner == number], minlength=len(names))
        place, colour = np.arange(len(names)), _colour(number)
        if flat:
            axes.barh(place, counts, left=bottom, color=colour)
        else:
            axes.bar(place, counts, bottom=bottom, color=colour)
        bottom += counts
    if flat:
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(max(len(names), 4) - 0.5, -0.5)
        axes.set_xlabel("networks", fontsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    else:
        axes.set_xticks(range(len(names)), names)
        axes.set_ylabel("networks", fontsize=7)


def _architectures(axes: Axes, zoo: Zoo, owner: Array, splits: int) -> None:
    """Rows by architecture if there are few, by depth and number of parameters if there are many."""
    if len(zoo.specs) <= MOST_BARS:
        axes.set_title("networks by architecture", fontsize=9, loc="left", color=INK)
        names = [widths(spec) for spec in zoo.specs]
        if len(set(names)) < len(names):  # they differ in what stands between the weights
            names = [f"{name} {', '.join(activations(spec))}" for name, spec in zip(names, zoo.specs, strict=True)]
        names = [_broken(name) for name in names]
        _bars(axes, names, zoo.spec_ids, owner, splits)
        return
    axes.set_title("networks by number of parameters", fontsize=9, loc="left", color=INK)
    sizes = np.array([spec.numel for spec in zoo.specs])[zoo.spec_ids]
    depths = np.array([depth(spec) for spec in zoo.specs])[zoo.spec_ids]
    edges = np.geomspace(sizes.min(), sizes.max() + 1, 30)
    parts = [sizes[owner == number] for number in range(splits)]
    axes.hist(parts, bins=edges.tolist(), stacked=True, color=[_colour(n) for n in range(len(parts))])
    axes.set_xscale("log")
    counts = [f"depth {d}: {count:,}" for d, count in zip(*np.unique(depths, return_counts=True), strict=True)]
    axes.set_xlabel("parameters; " + ", ".join(counts[:5]), fontsize=6)


def _weights(axes: Axes, zoo: Zoo) -> None:
    """Root mean square of each weight and bias, over a sample of the networks: median, quartiles, 5 to 95 %."""
    rows = np.unique(np.linspace(0, len(zoo) - 1, min(SAMPLE, len(zoo))).round().astype(np.int64))
    values, row_ptr, spec_ids = zoo.read_mixed_rows(rows)
    found: dict[tuple[int, str], list[float]] = {}
    single = len(zoo.specs) == 1
    for row, number in enumerate(spec_ids.tolist()):
        layers = {"weight": -1, "bias": -1}
        for stored in zoo.specs[number].stored:
            kind = "weight" if len(stored.shape) > 1 else "bias"
            layers[kind] += 1
            begin = row_ptr[row] + stored.offset
            part = values[begin : begin + int(np.prod(stored.shape))].astype(np.float64)
            name = stored.name if single else f"{kind} {layers[kind] + 1}"
            position = len(found) if single else 2 * layers[kind] + (kind == "bias")
            key = next((k for k in found if k[1] == name), (position, name))
            found.setdefault(key, []).append(float(np.sqrt(np.square(part).mean())))
    shown = sorted(found)[:MOST_LAYERS]
    spreads = [np.array(found[key])[np.isfinite(found[key])] for key in shown]
    parts = axes.boxplot(
        spreads, orientation="horizontal", whis=(5, 95), showfliers=False, widths=0.6, patch_artist=True
    )
    for key, box, median in zip(shown, parts["boxes"], parts["medians"], strict=True):
        box.set(facecolor=ACCENT if "bias" not in key[1] else COLOURS[-1], edgecolor=INK, linewidth=0.6)
        median.set(color="white" if "bias" not in key[1] else INK)
    axes.set_yticks(range(1, len(shown) + 1), [name for _, name in shown])
    axes.invert_yaxis()
    if any(len(s) and s.min() > 0 for s in spreads):
        axes.set_xscale("log")
    more = f", the first {MOST_LAYERS} of {len(found)} tensors" if len(found) > MOST_LAYERS else ""
    axes.set_title(f"root mean square of the weights ({len(rows):,} networks{more})", fontsize=9, loc="left", color=INK)


# -- rows and colours -------------------------------------------------------------------------------------------------


def _split_order(name: str) -> tuple[int, str]:
    return (("train", "val", "test").index(name) if name in ("train", "val", "test") else 3, name)


def _owner(zoo: Zoo) -> Array:
    """The split of each row, in the order of the legend; as many as there are splits for none."""
    owner = np.full(len(zoo), len(zoo.splits), dtype=np.int64)
    for number, name in enumerate(sorted(zoo.splits, key=_split_order)):
        owner[zoo.splits[name]] = number
    return owner


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _is_label(name: str, values: Array) -> bool:
    """Not a position in a source, nor all the same, nor different in nearly every row."""
    distinct = len(np.unique(values))
    if name.endswith(("_index", "_row")):
        return False
    if values.dtype.kind == "U":
        return 1 < distinct <= MOST_BARS
    return distinct > 1 and not (values.dtype.kind in "iu" and distinct > FEW and 2 * distinct > len(values))


def _broken(text: str) -> str:
    """Long widths on two lines."""
    return text if len(text) < 18 else f"{text[: len(text) // 2]}\n{text[len(text) // 2 :]}"
