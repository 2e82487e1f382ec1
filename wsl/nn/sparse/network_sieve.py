"""Pruned messages on graphs that differ from batch to batch: neural graphs, of which every network has its own.

There is no mask to keep, as there is for the one graph of a node classifier: what is kept is the *rule*, and each
network's own messages say which of its edges stay. A layer of any encoder uses it so:

    kept = self.sieve(target, networks, lambda: Norms(norm of every message, the same))     → [D] bool, or None for all
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from wsl.graphs.blocks import BlockGraph
from wsl.nn.sparse.sieve import Sieve, View
from wsl.sparsity import edges
from wsl.sparsity.macs import LayerCost
from wsl.sparsity.networks import compared_within, relative, strongest_of_each


class Norms(NamedTuple):
    """What an edge says and what it is compared with the mean of, ``[D]`` each (for messages both are the norm)."""

    value: Tensor
    basis: Tensor


@dataclass(frozen=True, eq=False)
class Networks:
    """Which network is whose, of a batch.

    Attributes:
        owner: ``[N]`` int64, the network of each node. edges: ``[B]`` int64, the edges of each that may be pruned,
            before anything was. prunable: ``[N]`` bool, receivers whose edges may go, or None for all.
    """

    owner: Tensor
    edges: Tensor
    prunable: Tensor | None = None

    @classmethod
    def alike(cls, graph: BlockGraph, size: int) -> tuple[Networks, Tensor, Tensor, Tensor]:
        """Of networks that share their blocks: also sender and receiver ``[B·E]`` of their edges sorted by receiver,
        and the position of each among the blocks' edges, network after network."""
        source, target = graph.ends(size)
        order = torch.argsort(target, stable=True)
        owner = torch.arange(size, device=target.device).repeat_interleave(graph.num_nodes)
        return cls.of(owner, size, target), source[order], target[order], order

    @classmethod
    def of(cls, owner: Tensor, size: int, target: Tensor, prunable: Tensor | None = None) -> Networks:
        """From the receiver ``[D]`` of every edge of a batch of ``size`` networks."""
        target = target if prunable is None else target[prunable[target]]
        return cls(owner, torch.bincount(owner[target], minlength=size), prunable)


class NetworkSieve(Sieve):
    """Which edges of each network a layer keeps, by a rule that is in the state dict.

    A training forward in which ``pruning`` is set takes the rule from the dials; all others, and evaluation, use the
    rule as it is. It is a threshold δ, an edge goes when its message is below δ · mean, or a share of the network's
    edges to remove, the least relative to that mean first.

    Args:
        reference: what the mean is over: all of the network's edges in this layer, or those "destination" shares, the
            edges into the same node. The latter is for encoders that respect the scaling of neurons: it multiplies all
            messages into one node by the same number, so a comparison within them does not change.

    Attributes:
        rule: ``[4]`` float64 buffer: threshold; share to remove, or NaN; whether the threshold is absolute; whether
            each receiver's best edge goes last. None: open.
        view: in evaluation: "true" prunes; "full" and "locked" do not, as all edges reach what is scored.
        counting: count edges even where nothing is pruned.
        used: numbers of edges of the last forward: of the graph, given, kept.
    """

    rule: Tensor | None

    def __init__(self, reference: Literal["network", "destination"] = "network") -> None:
        super().__init__()
        self.register_buffer("rule", None)
        self.reference = reference
        self.view: View = "true"
        self.best_in_edge = False
        self.counting = False
        self.used = (0, 0, 0)

    @property
    def open(self) -> bool:
        return self.rule is None and not (self.training and self.pruning) and not self.counting

    def forward(self, target: Tensor, networks: Networks, norms: Callable[[], Norms]) -> Tensor | None:
        """The edges ``[D]`` bool that stay of those with these receivers; None: all of them.

        ``norms()`` is asked for only when something may go.
        """
        if self.training and self.pruning:
            share = float("nan") if self.sparsity is None else self.sparsity
            dials = [self.threshold, share, float(self.absolute), float(self.best_in_edge)]
            self.rule = torch.tensor(dials, dtype=torch.float64, device=target.device)
        total = target.shape[0]
        if self.rule is None or (not self.training and self.view != "true"):
            self.used = (int(networks.edges.sum()), total, total)
            return None
        with torch.no_grad():
            kept = self._kept(target, networks, norms(), self.rule)
        self.used = (int(networks.edges.sum()), total, int(kept.sum()))
        return kept

    def _kept(self, target: Tensor, networks: Networks, norms: Norms, rule: Tensor) -> Tensor:
        threshold, share, absolute, best = rule.tolist()
        owner = networks.owner[target]
        free = torch.ones_like(target, dtype=torch.bool) if networks.prunable is None else networks.prunable[target]
        nodes, size = len(networks.owner), len(networks.edges)
        group, groups = (target, nodes) if self.reference == "destination" else (owner, size)
        scores = compared_within(norms.value, norms.basis, group, groups, free)
        value = relative(scores)
        first = edges.greatest_into(value, target, free, nodes) if best else None
        if not math.isnan(share):
            count = ((1.0 - share) * networks.edges).round().long()
            return strongest_of_each(value, owner, count, free, first) | ~free
        kept = edges.above(scores, threshold, bool(absolute)) | ~free
        return kept if first is None else kept | first


@runtime_checkable
class CountedLayer(Protocol):
    """A layer on neural graphs that tells what its last forward cost."""

    def network_costs(self) -> list[LayerCost]:
        """Of the networks that it was given last."""
