"""The neural graphs of a batch of networks as one edge list, whatever their architectures.

    nodes   [ΣN, …]    network after network
    edges   [ΣE, …]    network after network, each in the order of the nodes that edges reach; values padded to the
                       frame's width (:mod:`wsl.graphs.frame`), so that a kernel is centred among zeros

Nothing loops over networks: what is known of a spec is a table (:mod:`wsl.graphs.tables`), computed once per spec.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.graphs.frame import ROLES, GraphFrame
from wsl.graphs.tables import Table, tables_of


@dataclass(frozen=True, eq=False)
class Cells:
    """Where values of the rows are in a graph: ``positions [M]`` in the batch's flat values, ``places [M]``, and the
    class ``[M]`` over which statistics are taken."""

    positions: Tensor
    places: Tensor
    classes: Tensor

    def pick(self, flat: Tensor) -> Tensor:
        """The values of the cells, ``[M, C]``, of all values of the batch ``[ΣP, C]``."""
        return flat.index_select(0, self.positions)

    def spread(self, picked: Tensor, places: int) -> Tensor:
        """The values of the cells ``[M, C]`` in their places, ``[places, C]``; zero where there is none."""
        return picked.new_zeros(places, picked.shape[1]).index_copy(0, self.places, picked)


@dataclass(frozen=True, eq=False)
class EdgeList:
    """Topology of the graphs, and where their values come from.

    Attributes:
        frame: what the graphs fit into.
        role, row, position, function: ``[ΣN]`` int64 of each node, as in :class:`~wsl.graphs.tables.Tables`.
        node_owner, node_offsets: the network of each node ``[ΣN]``, and offsets ``[B + 1]``.
        source, target, type: ``[ΣE]`` int64 of each edge; ``target`` ascends.
        edge_offsets: ``[B + 1]``.
        directed_source, directed_target, directed_edge, reversed: ``[ΣD]`` of edges and, with reverse edges, their
            copies in the other direction; ``directed_target`` ascends, ``directed_edge`` is the edge's number.
        node_cells, edge_cells: where the rows' values go.
        constants, constant_values: places ``[M]`` in the flattened edge values that hold a constant, and its value.
        values: ΣP, the number of values of the batch.
    """

    frame: GraphFrame
    role: Tensor
    row: Tensor
    position: Tensor
    function: Tensor
    node_owner: Tensor
    node_offsets: Tensor
    source: Tensor
    target: Tensor
    type: Tensor
    edge_offsets: Tensor
    directed_source: Tensor
    directed_target: Tensor
    directed_edge: Tensor
    reversed: Tensor
    node_cells: Cells
    edge_cells: Cells
    constants: Tensor
    constant_values: Tensor
    values: int

    def __len__(self) -> int:
        """B."""
        return self.node_offsets.shape[0] - 1

    @property
    def num_nodes(self) -> int:
        """ΣN."""
        return self.role.shape[0]

    @property
    def num_edges(self) -> int:
        """ΣE, without reversed copies."""
        return self.source.shape[0]

    @cached_property
    def edge_index(self) -> Tensor:
        """``[2, ΣE]``, sources and targets."""
        return torch.stack([self.source, self.target])

    @cached_property
    def row_pointer(self) -> Tensor:
        """``[ΣN + 1]``: the edges into node i are ``row_pointer[i] … row_pointer[i + 1]``."""
        return pointer(self.target, self.num_nodes)

    @cached_property
    def directed_row_pointer(self) -> Tensor:
        """``[ΣN + 1]``, as :attr:`row_pointer`, of the directed edges."""
        return pointer(self.directed_target, self.num_nodes)

    def node_values(self, flat: Tensor) -> Tensor:
        """Values of the rows ``[ΣP, C]`` on their nodes, ``[ΣN, V, C]`` in the order of the frame's slots."""
        return self.spread_on_nodes(self.node_cells.pick(flat))

    def edge_values(self, flat: Tensor) -> Tensor:
        """Values of the rows ``[ΣP, C]`` on their edges, ``[ΣE, F, C]``, with constants."""
        return self.spread_on_edges(self.edge_cells.pick(flat))

    def spread_on_nodes(self, picked: Tensor) -> Tensor:
        """:meth:`node_values` from values of the node cells, ``[M, C]``."""
        slots = len(self.frame.slots)
        return self.node_cells.spread(picked, self.num_nodes * slots).view(self.num_nodes, slots, picked.shape[1])

    def spread_on_edges(self, picked: Tensor) -> Tensor:
        """:meth:`edge_values` from values of the edge cells, ``[M, C]``."""
        width = self.frame.width
        spread = self.edge_cells.spread(picked, self.num_edges * width)
        if len(self.constants):
            constant = self.constant_values.to(picked.dtype).unsqueeze(-1).expand(-1, picked.shape[1])
            spread = spread.index_copy(0, self.constants, constant)
        return spread.view(self.num_edges, width, picked.shape[1])

    def rows(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """Inverse of :meth:`node_values` and :meth:`edge_values`: ``[ΣN, V, C]``, ``[ΣE, F, C]`` → ``[ΣP, C]``.

        A value that stands in several places (tied or repeated weights) takes their mean.
        """
        cells = (self.node_cells, self.edge_cells)
        positions = torch.cat([c.positions for c in cells])
        parts = [v.flatten(0, 1).index_select(0, c.places) for v, c in zip((nodes, edges), cells, strict=True)]
        picked = torch.cat(parts)
        count = positions.bincount(minlength=self.values)
        first = picked.new_zeros(self.values, picked.shape[1]).index_copy(0, positions, picked.detach())
        if bool((count == 1).all()):
            return first if not picked.requires_grad else torch.zeros_like(first).index_add(0, positions, picked)
        # the mean of equal values is that value, to the last bit: sum what differs from one of them
        difference = torch.zeros_like(first).index_add(0, positions, picked - first.index_select(0, positions))
        return first + difference / count.clamp(min=1).unsqueeze(-1)


def edge_list(batch: WeightBatch | MixedWeightBatch, frame: GraphFrame, reverse_edges: bool = False) -> EdgeList:
    """The graphs of all networks of a batch.

    Raises:
        GraphError: if a spec has no graph, or one that the frame does not fit.
    """
    mixed = as_mixed(batch)
    tables = tables_of(frame, reverse_edges)
    nodes, node_owner, node_offsets = mixed.tables(tables.nodes)
    edges, edge_owner, edge_offsets = mixed.tables(tables.edges)
    directed, directed_owner, _ = mixed.tables(tables.directed)
    constants, constant_owner, _ = mixed.tables(tables.constants)
    edge_start = node_offsets[edge_owner]
    directed_start = node_offsets[directed_owner]
    return EdgeList(
        frame,
        nodes[:, 0],
        nodes[:, 1],
        nodes[:, 2],
        nodes[:, 3],
        node_owner,
        node_offsets,
        edges[:, 0] + edge_start,
        edges[:, 1] + edge_start,
        edges[:, 2],
        edge_offsets,
        directed[:, 0] + directed_start,
        directed[:, 1] + directed_start,
        directed[:, 2] + edge_offsets[directed_owner],
        directed[:, 3].bool(),
        _cells(mixed, tables.node_cells, node_offsets, len(frame.slots)),
        _cells(mixed, tables.edge_cells, edge_offsets, frame.width),
        constants[:, 0].long() + edge_offsets[constant_owner] * frame.width,
        constants[:, 1],
        mixed.values.shape[0],
    )


def _cells(batch: MixedWeightBatch, table: Table, starts: Tensor, width: int) -> Cells:
    rows, owner, _ = batch.tables(table)
    return Cells(rows[:, 0] + batch.offsets[owner], rows[:, 1] + starts[owner] * width, rows[:, 2].long())


def as_mixed(batch: WeightBatch | MixedWeightBatch) -> MixedWeightBatch:
    """The networks of one spec as a mixed batch; a mixed batch as it is."""
    if isinstance(batch, MixedWeightBatch):
        return batch
    size, numel = batch.values.shape[:2]
    device = batch.values.device
    ids = torch.zeros(size, dtype=torch.int64, device=device)
    offsets = torch.arange(size + 1, device=device) * numel
    return MixedWeightBatch((batch.spec,), ids, batch.values.flatten(0, 1), offsets, batch.target, batch.row_ids)


def pointer(ascending: Tensor, size: int) -> Tensor:
    """``[size + 1]``: where the run of each number below ``size`` begins in a list that ascends."""
    counts = ascending.bincount(minlength=size)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def states_of(graph: EdgeList, x: Tensor, role: str) -> Tensor:
    """States ``[B, n, C]`` of the nodes of a role, in their order, from those of all ``[ΣN, C]``.

    n is the frame's number of inputs or outputs; zeros where a network has fewer.
    """
    size = graph.frame.inputs if role == "input" else graph.frame.outputs
    rows = (graph.role == ROLES.index(role)).nonzero().squeeze(-1)
    places = graph.node_owner[rows] * size + graph.row[rows]
    out = x.new_zeros(len(graph) * size, x.shape[1])
    return out.index_copy(0, places, x.index_select(0, rows)).view(len(graph), size, x.shape[1])
