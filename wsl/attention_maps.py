"""What a trained attention model listened to: the neighbours of single nodes by weight, drawn and tabled."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wsl import plots
from wsl.graphs.node_graph import NodeGraph

SHOWN = 12  # nodes in figure and table, half of them mistakes where there are enough
NEIGHBOURS = 16  # per node in the figure, the heaviest


@dataclass(frozen=True)
class Listening:
    """Whom a node heard in one layer: neighbours (itself with a self loop), weights ``[n, H]`` that add up to 1."""

    layer: int
    node: int
    neighbours: Tensor
    weights: Tensor


def listening(attention: Sequence[tuple[Tensor, Tensor]], nodes: Sequence[int]) -> list[Listening]:
    """Cut the edges into single nodes out of what ``GATv2Node.attention`` returns, heaviest first."""
    found = []
    for layer, (edges, weights) in enumerate(attention):
        for node in nodes:
            into = (edges[1] == node).nonzero().flatten()
            order = into[weights[into].mean(1).argsort(descending=True, stable=True)]
            found.append(Listening(layer, node, edges[0, order], weights[order]))
    return found


def same_class_share(edges: Tensor, weights: Tensor, labels: Tensor) -> tuple[float, float]:
    """(share of attention that goes to nodes of the own class, share of such neighbours), self loops aside, over all
    nodes with another neighbour; equal if attention does not care about the class."""
    edges, weights = edges[:, edges[0] != edges[1]], weights[edges[0] != edges[1]].mean(1)
    same = (labels[edges[0]] == labels[edges[1]]).to(weights)
    sums = torch.zeros(4, len(labels), dtype=weights.dtype)
    for row, value in enumerate((weights * same, weights, same, torch.ones_like(same))):
        sums[row].index_add_(0, edges[1], value)
    seen = sums[3] > 0
    heard, total, alike, number = sums[:, seen]
    return float((heard / total).mean()), float((alike / number).mean())


def write_attention(
    attention: Sequence[tuple[Tensor, Tensor]], graph: NodeGraph, row_ids: Tensor, predicted: Tensor, folder: Path
) -> Path:
    """``attention.csv`` with every edge into the nodes shown, and ``figures/attention.png`` of the last layer.

    Args:
        attention: per layer the edges ``[2, E]`` and weights ``[E, H]``.
        row_ids, predicted: the tested nodes and their predicted classes.

    Returns:
        The figure's path.
    """
    labels = graph.y.tolist()
    guess = dict(zip(row_ids.tolist(), predicted.tolist(), strict=True))
    wrong = [node for node in guess if guess[node] != labels[node]]
    right = [node for node in guess if guess[node] == labels[node]]
    nodes = [*wrong[: max(SHOWN // 2, SHOWN - len(right))], *right][:SHOWN]
    found = listening(attention, nodes)
    with open(folder / "attention.csv", "w", newline="") as file:
        writer = csv.writer(file)
        heads = range(max((weights.shape[1] for _, weights in attention), default=0))
        names = [f"head_{head}" for head in heads]
        writer.writerow(["layer", "node", "label", "predicted", "neighbour", "neighbour_label", "weight", *names])
        for item in found:
            for neighbour, weights in zip(item.neighbours.tolist(), item.weights.tolist(), strict=True):
                known = [item.layer, item.node, labels[item.node], guess[item.node], neighbour, labels[neighbour]]
                writer.writerow([*known, sum(weights) / len(weights), *weights])
    stars = [
        plots.Star(
            title=f"node {item.node}: class {labels[item.node]}, predicted {guess[item.node]}",
            wrong=guess[item.node] != labels[item.node],
            centre=labels[item.node],
            classes=[labels[n] for n in item.neighbours[:NEIGHBOURS].tolist()],
            weights=item.weights[:NEIGHBOURS].mean(1).tolist(),
        )
        for item in found
        if item.layer == len(attention) - 1
    ]
    heard, alike = same_class_share(*attention[-1], graph.y)
    title = f"last layer: {heard:.1%} of the attention goes to neighbours of the own class, who are {alike:.1%} of all"
    return plots.attention_stars(stars, title, folder / "figures" / "attention.png")
