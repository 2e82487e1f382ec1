"""All sieves of an encoder at once: what a callback turns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wsl.nn.sparse.linear import SparseLinear
from wsl.nn.sparse.network_sieve import CountedLayer, NetworkSieve
from wsl.nn.sparse.sieve import EdgeSieve, View, WeightSieve
from wsl.sparsity.macs import LayerCost


class Dials:
    """The sieves of a module.

    Attributes:
        edges: of one graph, in the order of the layers. networks: of graphs that differ from batch to batch, likewise.
        weights: likewise. current_view: see :meth:`view`.
    """

    def __init__(self, module: nn.Module) -> None:
        self.names = {part: name for name, part in module.named_modules()}
        self.edges = [part for part in module.modules() if isinstance(part, EdgeSieve)]
        self.networks = [part for part in module.modules() if isinstance(part, NetworkSieve)]
        self.weights = [part for part in module.modules() if isinstance(part, WeightSieve)]
        self.current_view: View = "true"
        self._scored: Tensor | None = None
        self._locked: Tensor | None = None
        self._masked = list(_masked_parameters(module))

    def __len__(self) -> int:
        return len(self.edges) + len(self.networks) + len(self.weights)

    def prune(self, *, edges: bool, weights: bool) -> None:
        """Whether the next training forward chooses anew what to keep."""
        for sieve in (*self.edges, *self.networks):
            sieve.pruning = edges
        for mask in self.weights:
            mask.pruning = weights

    def view(self, view: View, batch: Any = None) -> None:
        """Which edges evaluation uses; under "locked", all into the rows of ``batch`` are there."""
        self.current_view = view
        if view == "locked" and self.edges and batch is not None and self._scored is not batch.row_ids:
            self._scored = batch.row_ids
            self._locked = torch.zeros(batch.graph.num_nodes, dtype=torch.bool, device=batch.row_ids.device)
            self._locked[batch.row_ids] = True
        for of_networks in self.networks:
            of_networks.view = view
        for sieve in self.edges:
            sieve.view, sieve.locked = view, self._locked

    def forget_momentum(self, optimizers: Iterable[Optimizer]) -> None:
        """Adam's averages of masked entries become 0, so that nothing moves what is pruned for good."""
        for weight, sieve in self._masked:
            for optimizer in optimizers:
                for value in optimizer.state.get(weight, {}).values():
                    if sieve.kept is not None and isinstance(value, Tensor) and value.shape == weight.shape:
                        value.mul_(sieve.kept)


def _masked_parameters(module: nn.Module) -> Iterable[tuple[Tensor, WeightSieve]]:
    for part in module.modules():
        if isinstance(part, SparseLinear):
            yield part.weight, part.sieve


@torch.no_grad()
def network_costs(encoder: nn.Module, batch: Any) -> list[LayerCost]:
    """What an encoder of neural graphs costs on these networks as it is pruned now."""
    sieves, training = Dials(encoder).networks, encoder.training
    encoder.eval()
    for sieve in sieves:
        sieve.counting = True
    encoder(batch)
    for sieve in sieves:
        sieve.counting = False
    encoder.train(training)
    return [cost for part in encoder.modules() if isinstance(part, CountedLayer) for cost in part.network_costs()]


@torch.no_grad()
def layer_errors(encoder: nn.Module, batch: Any) -> list[dict[str, Any]]:
    """For each pruned map or propagation what pruning did to it, relative to its exact output, and the bounds."""
    dials = Dials(encoder)
    training = encoder.training
    encoder.eval()
    watched: list[EdgeSieve | WeightSieve] = [*dials.edges, *dials.weights]
    for sieve in watched:
        sieve.errors = []
    encoder(batch)
    rows = []
    for sieve in watched:
        for error in sieve.errors or []:
            kind = "edges" if isinstance(sieve, EdgeSieve) else "weights"
            place = dials.names[sieve].removesuffix(".sieve")
            rows.append({"layer": place, "pruned": kind, **vars(error)})
        sieve.errors = None
    encoder.train(training)
    return rows
