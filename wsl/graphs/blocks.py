"""The neural graph of one architecture as dense blocks: neurons are nodes, weights are edges, biases node values.

All networks of a batch share their topology, so a connection from I to O neurons is one dense block ``[B, O, I, C]``
of edge states, in the order of the weight matrix. No N×N array is made, and nothing is gathered or scattered.

    nodes  [B, N, C]   group after group, in the order of the spec
    edges  [B, E, C]   block after block; with reverse edges a second copy of every block, in which each edge points
                       from the out-neuron of its weight to the in-neuron

Source: Kofinas et al., "Graph Neural Networks for Learning Equivariant Representations of Neural Networks", section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wsl.spec import Connection, WeightSpec


class BlockError(ValueError):
    """A spec has no neural graph of dense blocks; the message is one sentence that says why."""


@dataclass(frozen=True)
class NodeSet:
    """The nodes ``start … start + size − 1``: the neurons of one group.

    ``individual``: the neurons have a meaning of their own (inputs, outputs), so that no two may be confused.
    """

    name: str
    start: int
    size: int
    individual: bool

    def of(self, nodes: Tensor) -> Tensor:
        """The part ``[B, size, C]`` of all nodes ``[B, N, C]``, a view."""
        return nodes.narrow(1, self.start, self.size)


@dataclass(frozen=True)
class Block:
    """The edges of one connection in one direction, laid out ``[O, I]`` like the weight in either direction.

    Attributes:
        source, target: the node sets that messages leave and reach.
        start: position of the first edge.
        reverse: whether messages run from the out-neurons of the weight to its in-neurons.
    """

    source: NodeSet
    target: NodeSet
    start: int
    reverse: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        ends = (self.target.size, self.source.size)
        return ends[::-1] if self.reverse else ends

    @property
    def numel(self) -> int:
        return self.source.size * self.target.size

    @property
    def source_axis(self) -> int:
        """The axis of ``[B, O, I, C]`` along which a target's incoming edges lie; reducing it aggregates."""
        return 1 if self.reverse else 2

    def of(self, edges: Tensor) -> Tensor:
        """The part ``[B, O, I, C]`` of all edges ``[B, E, C]``, a view."""
        return edges.narrow(1, self.start, self.numel).unflatten(1, self.shape)

    def at_sources(self, nodes: Tensor) -> Tensor:
        """The states of the sources, as a view that broadcasts to ``[B, O, I, C]``."""
        return self.source.of(nodes).unsqueeze(3 - self.source_axis)

    def at_targets(self, nodes: Tensor) -> Tensor:
        """The states of the targets, as a view that broadcasts to ``[B, O, I, C]``."""
        return self.target.of(nodes).unsqueeze(self.source_axis)


@dataclass(frozen=True, eq=False)
class BlockGraph:
    """Topology of a neural graph, and where its values lie in a row.

    Attributes:
        node_sets: one for each neuron group.
        blocks: one for each connection, then one for each reversed connection if ``reverse_edges``.
        weight_index: ``[E]`` int64 (without the reversed copies), position in the row of the weight on each edge.
        bias_index, bias_nodes: ``[M]`` int64, position in the row of each bias and the node that it belongs to.
    """

    node_sets: tuple[NodeSet, ...]
    blocks: tuple[Block, ...]
    weight_index: Tensor
    bias_index: Tensor
    bias_nodes: Tensor

    @cached_property
    def num_nodes(self) -> int:
        """N."""
        return sum(nodes.size for nodes in self.node_sets)

    @cached_property
    def num_edges(self) -> int:
        """E, with the reversed copies."""
        return sum(block.numel for block in self.blocks)

    @cached_property
    def incoming(self) -> tuple[tuple[Block, ...], ...]:
        """For each node set, the blocks that reach it."""
        return tuple(tuple(b for b in self.blocks if b.target is nodes) for nodes in self.node_sets)

    def ends(self, batch: int) -> tuple[Tensor, Tensor]:
        """Senders and receivers ``[B·E]`` of the edges of so many networks, whose nodes follow each other."""
        device = self.weight_index.device
        ends = []
        for block in self.blocks:
            out, into = torch.meshgrid(*(torch.arange(size, device=device) for size in block.shape), indexing="ij")
            source, target = (out, into) if block.reverse else (into, out)
            ends.append(torch.stack([source + block.source.start, target + block.target.start]).flatten(1))
        shift = torch.arange(batch, device=device).view(1, -1, 1) * self.num_nodes
        source, target = (torch.cat(ends, dim=1).unsqueeze(1) + shift).flatten(1)
        return source, target

    def degrees(self, reverse: bool = True) -> Tensor:
        """``[N]`` int64, incoming edges of each node; reversed ones count only if ``reverse``."""
        counts = [sum(b.source.size for b in blocks if reverse or not b.reverse) for blocks in self.incoming]
        return torch.tensor(counts).repeat_interleave(torch.tensor([nodes.size for nodes in self.node_sets]))


def block_graph(spec: WeightSpec, reverse_edges: bool = False) -> BlockGraph:
    """The neural graph of a spec whose connections are all linear (any topology, not just a chain).

    Args:
        reverse_edges: also let messages run against the direction of the network.

    Raises:
        BlockError: if the spec has no groups, an empty group, a connection that is not linear, or a parameter that
            is neither a connection's weight nor its bias.
    """
    if not spec.connections or not all(spec.size_of(g.name) for g in spec.groups):
        raise BlockError(f"a neural graph needs connections between groups that are not empty, {spec!r} has not")
    _check_tensors(spec)
    sets, start = {}, 0
    for group in spec.groups:
        size = spec.size_of(group.name)
        sets[group.name] = NodeSet(group.name, start, size, spec.label[group.label].kind != "hidden")
        start += size
    blocks: list[Block] = []
    edge = 0
    for reverse in (False, True)[: 1 + reverse_edges]:
        for connection in spec.connections:
            ends = (sets[connection.source], sets[connection.target])
            blocks.append(Block(*(ends[::-1] if reverse else ends), start=edge, reverse=reverse))
            edge += blocks[-1].numel
    weights = [_weight_positions(spec, connection) for connection in spec.connections]
    biases = [
        (c, torch.from_numpy(spec.tensor[c.tensors["bias"]].index())) for c in spec.connections if "bias" in c.tensors
    ]
    nodes = [torch.arange(len(index)) + sets[c.target].start for c, index in biases]
    none = torch.zeros(0, dtype=torch.int64)
    return BlockGraph(
        node_sets=tuple(sets.values()),
        blocks=tuple(blocks),
        weight_index=torch.cat(weights),
        bias_index=torch.cat([none, *(index for _, index in biases)]),
        bias_nodes=torch.cat([none, *nodes]),
    )


def _check_tensors(spec: WeightSpec) -> None:
    used = set()
    for connection in spec.connections:
        where = f"the connection {connection.source!r} → {connection.target!r}"
        if connection.kind != "linear" or not {"weight"} <= set(connection.tensors) <= {"weight", "bias"}:
            raise BlockError(
                f"{where} is of kind {connection.kind!r} with tensors {sorted(connection.tensors)}, dense blocks are "
                "made of linear connections with a weight and perhaps a bias"
            )
        used |= set(connection.tensors.values())
    if unused := set(spec.tensor) - used:
        raise BlockError(f"the tensors {sorted(unused)} are neither weight nor bias of a connection")


def _weight_positions(spec: WeightSpec, connection: Connection) -> Tensor:
    """Positions in the row of a weight, flattened in the order [O, I]."""
    tensor = spec.tensor[connection.tensors["weight"]]
    ends = (spec.group[connection.target].label, spec.group[connection.source].label)
    if tensor.axes not in (ends, ends[::-1]):
        raise BlockError(f"the weight {tensor.name!r} has the axes {tensor.axes}, its connection joins {ends}")
    index = torch.from_numpy(tensor.index())
    return (index if tensor.axes == ends else index.T).flatten()
