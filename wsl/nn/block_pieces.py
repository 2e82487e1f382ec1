"""Dense blocks as a graph on which steps run: pieces are some networks with all of their nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from wsl.graphs.blocks import BlockGraph
from wsl.nn.moments import aggregate, aggregate_backward


@dataclass(frozen=True, eq=False)
class Blocks:
    """A block graph for :func:`~wsl.nn.edge_step.edge_step`."""

    graph: BlockGraph

    def pieces(self, e: Tensor, values: int) -> Iterator[BlockPiece]:
        """Slices of networks whose edge states have about that many values."""
        size = max(1, values // max(1, e[:1].numel()))
        return (BlockPiece(self.graph, slice(start, start + size)) for start in range(0, e.shape[0], size))

    def on_edges(self, source: Tensor, target: Tensor) -> Tensor:
        """source_j + target_i on the edge from j to i: two ``[B, N, C]`` → ``[B, E, C]``."""
        blocks = self.graph.blocks
        return torch.cat([(b.at_sources(source) + b.at_targets(target)).flatten(1, 2) for b in blocks], dim=1)

    def aggregate(self, messages: Tensor) -> Tensor:
        return aggregate(messages, self.graph)


@dataclass(frozen=True, eq=False)
class BlockPiece:
    """The networks ``part`` of a batch, in the sense of :class:`~wsl.nn.edge_step.Piece`."""

    graph: BlockGraph
    part: slice

    def edges(self, e: Tensor) -> Tensor:
        return e[self.part]

    def sum_on_edges(self, source: Tensor, target: Tensor) -> Tensor:
        source, target = source[self.part], target[self.part]
        out = source.new_empty(source.shape[0], self.graph.num_edges, source.shape[2])
        for block in self.graph.blocks:
            torch.add(block.at_sources(source), block.at_targets(target), out=block.of(out))
        return out

    def add_node_grads(self, grad: Tensor, source: Tensor, target: Tensor) -> None:
        source, target = source[self.part], target[self.part]
        for block in self.graph.blocks:
            on_block = block.of(grad)
            block.target.of(target).add_(on_block.sum(block.source_axis))
            block.source.of(source).add_(on_block.sum(3 - block.source_axis))

    def aggregate(self, messages: Tensor, h: Tensor) -> None:
        h[self.part] = aggregate(messages, self.graph)

    def aggregate_backward(self, messages: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        return aggregate_backward(messages, h[self.part], grad_h[self.part], self.graph)
