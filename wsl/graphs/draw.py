"""Draw the neural graph of a spec: layers as columns, neurons as dots, edges as lines in the colour of their type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from wsl.graphs.network import NetworkGraph, Nodes

#: edges that are drawn at most; of more, every k-th one
MOST_EDGES = 6000
#: of names, the last characters are shown
LONGEST_NAME = 18
COLOURS = ("#4477aa", "#cc6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#000000")
ROLE_COLOURS = {"input": "#228833", "hidden": "#333333", "output": "#aa3377"}


def draw_graph(graph: NetworkGraph, title: str, path: Path) -> None:
    """Write a PNG: constant edges (skips) are dashed, recurrent ones dotted."""
    columns = _columns(graph)
    height = max(sum(_height(n) for n in column) for column in columns)
    figure = Figure(figsize=(max(6.0, 1.9 * len(columns) + 1), max(4.0, min(14.0, 0.14 * height + 1.8))), dpi=110)
    axes = figure.add_subplot()
    axes.set_axis_off()
    at = _places(graph, columns)
    step = max(1, -(-graph.num_edges // MOST_EDGES))
    _draw_edges(axes, graph, at, step)
    for nodes in graph.nodes:
        here = at[nodes.start : nodes.start + nodes.size]
        axes.scatter(here[:, 0], here[:, 1], s=9, color=ROLE_COLOURS[nodes.role], zorder=3)
        name = nodes.name if len(nodes.name) <= LONGEST_NAME else f"…{nodes.name[1 - LONGEST_NAME :]}"
        text = f"{name}\n{nodes.size} · {nodes.function}"
        axes.annotate(text, (here[0, 0], here[:, 1].max()), (0, 5), textcoords="offset points", ha="center", fontsize=7)
    left_out = f"; one edge of {step} is drawn" if step > 1 else ""
    axes.set_title(f"{title}\n{graph.num_nodes:,} nodes, {graph.num_edges:,} edges{left_out}", fontsize=9, pad=16)
    types = list(dict.fromkeys(e.type for e in graph.edges))
    lines = [Line2D([], [], color=COLOURS[i % len(COLOURS)], label=name) for i, name in enumerate(types)]
    axes.legend(handles=lines, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=6, frameon=False)
    figure.savefig(path, bbox_inches="tight")


def _columns(graph: NetworkGraph) -> list[list[Nodes]]:
    """Node sets by depth; inputs first, outputs last."""
    last = max(n.depth for n in graph.nodes)
    depth = [last if n.role == "output" else n.depth for n in graph.nodes]
    return [[n for n, d in zip(graph.nodes, depth, strict=True) if d == number] for number in sorted(set(depth))]


def _height(nodes: Nodes) -> float:
    """Room that a set of nodes takes in its column, with that for its name."""
    return min(nodes.size, 40) + 5.0


def _places(graph: NetworkGraph, columns: list[list[Nodes]]) -> npt.NDArray[np.float64]:
    """``[N, 2]``, columns centred on one line."""
    at = np.zeros((graph.num_nodes, 2))
    for x, column in enumerate(columns):
        top = sum(_height(n) for n in column) / 2
        for nodes in column:
            span = _height(nodes) - 5.0
            y = top - 4.0 - (np.arange(nodes.size) + 0.5) * span / nodes.size
            at[nodes.start : nodes.start + nodes.size] = np.stack([np.full(nodes.size, float(x)), y], axis=1)
            top -= _height(nodes)
    return at


def _draw_edges(axes: object, graph: NetworkGraph, at: npt.NDArray[np.float64], step: int) -> None:
    types = list(dict.fromkeys(e.type for e in graph.edges))
    visible = float(np.clip(60.0 / np.sqrt(graph.num_edges / step + 1), 0.06, 0.8))
    for edges in graph.edges:
        chosen = slice(None, None, step if len(edges) > step else 1)
        start, end = at[edges.source[chosen]], at[edges.target[chosen]]
        constant = bool((edges.positions < 0).all())
        axes.add_collection(  # type: ignore[attr-defined]
            LineCollection(
                list(_curves(start, end)),
                colors=COLOURS[types.index(edges.type) % len(COLOURS)],
                linewidths=0.7,
                alpha=min(1.0, visible * (2.5 if constant else 1.0)),
                linestyles="dotted" if edges.recurrent else "dashed" if constant else "solid",
                zorder=1,
            )
        )


def _curves(start: npt.NDArray[np.float64], end: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``[E, points, 2]``: straight to the next column; arcs over further ones, and round the neurons of one layer."""
    columns = np.abs(end[:, 0] - start[:, 0])
    if np.all(columns == 1):
        return np.stack([start, end], axis=1)
    middle = (start + end) / 2
    middle[:, 1] += np.where(columns > 1, 2.0 + 2.5 * columns, 0.0)
    middle[:, 0] += np.where(columns == 0, 0.5, 0.0)
    t = np.linspace(0, 1, 13).reshape(1, -1, 1)
    return (1 - t) ** 2 * start[:, None] + 2 * t * (1 - t) * middle[:, None] + t**2 * end[:, None]
