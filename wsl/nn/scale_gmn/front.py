"""First states of nodes and edges; of one architecture as a dense graph, of any as an edge list.

Every map is linear without bias, and codes of places are multiplied where a factor may act, so the states have the
factors of the values. Node values of inputs are 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsl.batch import MixedWeightBatch
from wsl.graphs.edge_list import edge_list
from wsl.graphs.frame import ROLES, GraphFrame
from wsl.graphs.network.parts import KERNEL
from wsl.graphs.tables import node_table
from wsl.nn.monomial.invariants import unit
from wsl.nn.scale_gmn.graph import KindGraph, NotDenseError, dense_graph, dense_order, list_graph
from wsl.nn.scale_gmn.kinds import KINDS, kind_table, kinds_of
from wsl.spec import WeightSpec


class States(NamedTuple):
    """A graph with its first states; those of edges by number of the part.

    ``back``: of edges against the network, from reciprocal weights (or the same). ``codes``: of nodes, ``[1, N, C]`` or
    ``[ΣN, C]``.
    """

    graph: KindGraph
    nodes: Tensor
    edges: dict[int, Tensor]
    back: dict[int, Tensor]
    codes: Tensor


def reciprocal(v: Tensor) -> Tensor:
    """v / ‖v‖² over the last axis, so 1/w of a single weight: has the factor 1/d of a vector with factor d. 0 stays.

    Weight decay takes the weights of dead neurons to 1e-36, whose reciprocals overflow where layers multiply them:
    what is below the sixth root of the smallest number of its type (5e-7 of float32, 5e-52 of float64) counts as 0.
    """
    largest = v.detach().abs().amax(dim=-1, keepdim=True)
    nothing = largest < torch.finfo(v.dtype).tiny ** (1 / 6)
    v, largest = v.masked_fill(nothing, 0), largest.masked_fill(nothing, 1)
    norm = torch.linalg.vector_norm(v / largest, dim=-1, keepdim=True)
    return unit(v) / norm.masked_fill(norm == 0, 1) / largest


class Places(NamedTuple):
    """Of each node ``[N]``: role, row, position and function (:class:`~wsl.graphs.tables.Tables`), kind."""

    role: Tensor
    row: Tensor
    position: Tensor
    function: Tensor
    kind: Tensor


class Embedding(nn.Module):
    """Linear maps of values, and codes of places: one for each input, each depth of hidden neurons, each output.

    Hidden neurons with a meaning of their own (positions of a flattened map) have a code for it, too, and those of
    families with several activations one for theirs. Codes multiply the states of nodes that may have factors, as
    h ⊙ (1 + p), and are added to others. Edges may have codes as well: by input, depth, output.
    """

    acted: Tensor

    def __init__(self, frame: GraphFrame, width: int, edge_codes: bool) -> None:
        super().__init__()
        self.frame = frame
        self.nodes = nn.Linear(max(1, len(frame.slots)), width, bias=False)
        self.edges = nn.ModuleList(nn.Linear(size, width, bias=False) for _, size in frame.types)
        self.places = nn.Parameter(torch.randn(frame.inputs + frame.depth + frame.outputs, width))
        self.positions = nn.Parameter(torch.randn(frame.positions, width)) if frame.positions > 1 else None
        several = len(frame.functions) > 1
        self.functions = nn.Parameter(torch.randn(len(frame.functions), width)) if several else None
        between = max(1, frame.depth - 1)
        rows = frame.inputs + between + frame.outputs
        self.edge_places = nn.Parameter(torch.randn(rows, width)) if edge_codes else None
        self.register_buffer("acted", torch.tensor([not kind.free for kind in KINDS]), persistent=False)

    def codes(self, at: Places) -> Tensor:
        """Of nodes, ``[N, C]``."""
        starts = torch.tensor([0, self.frame.inputs, self.frame.inputs + self.frame.depth], device=at.role.device)
        code = self.places.index_select(0, starts[at.role] + at.row)
        for table, rows in ((self.positions, at.position), (self.functions, at.function)):
            if table is not None:  # a number below 0 says that there is none
                code = code + F.pad(table, (0, 0, 1, 0)).index_select(0, rows + 1)
        return code

    def node_states(self, values: Tensor, at: Places, code: Tensor) -> Tensor:
        """``[…, N, C]`` from values ``[…, N, V]`` and codes ``[N, C]``."""
        inputs = (at.role == ROLES.index("input")).to(values).unsqueeze(-1)
        values = F.pad(values, (0, 1)) if not values.shape[-1] else values
        x = self.nodes(values + inputs)
        return torch.where(self.acted[at.kind].unsqueeze(-1), x * (1 + code), x + code)

    def edge_states(self, values: Tensor, type: int, slots: Tensor | None = None) -> Tensor:
        """``[…, C]`` from values ``[…, F]`` of one type, or those in some slots alone."""
        weight = self.edges[type].weight
        assert isinstance(weight, Tensor)
        return F.linear(values, weight if slots is None else weight.index_select(1, slots))

    def edge_code(self, at: Places, source: Tensor, target: Tensor) -> Tensor | None:
        """1 + p of edges between nodes, or None."""
        if self.edge_places is None:
            return None
        frame, between = self.frame, max(1, self.frame.depth - 1)
        inside = frame.inputs + (at.row[target] - 1).clamp(0, between - 1)
        last = frame.inputs + between + at.row[target]
        rows = torch.where(at.role[target] == ROLES.index("output"), last, inside)
        rows = torch.where(at.role[source] == ROLES.index("input"), at.row[source], rows)
        return 1 + self.edge_places.index_select(0, rows)


class DenseFront(nn.Module):
    """Networks of one architecture, ``[B, P]`` values → :class:`States` on a dense graph.

    Raises:
        NotDenseError: if a connection is no matrix, or a value stands for something else than a bias or weight.
    """

    def __init__(self, spec: WeightSpec, frame: GraphFrame) -> None:
        super().__init__()
        graph = frame.graph(spec)
        kinds = kind_table(spec, frame)[:, 0]
        self.graph = dense_graph(graph, kinds.tolist())
        columns = {**dict(zip(("role", "row", "position", "function"), node_table(spec, frame).T, strict=True))}
        for name, column in (columns | {"kind": kinds}).items():
            self.register_buffer(f"node_{name}", column.contiguous(), persistent=False)
        self.num_nodes, self.slots = graph.num_nodes, len(frame.slots)
        found = [(v.nodes * self.slots + frame.slots.index(v.slot), v.positions) for v in graph.values]
        places = np.concatenate([np.zeros(0, dtype=np.int64), *(p for p, _ in found)])
        positions = np.concatenate([np.zeros(0, dtype=np.int64), *(p for _, p in found)])
        if len(np.unique(places)) < len(places):
            raise NotDenseError("two values stand in one place of a node")
        self.register_buffer("value_places", torch.from_numpy(places), persistent=False)
        self.register_buffer("value_positions", torch.from_numpy(positions), persistent=False)
        self.types, self.shapes = [], []
        for number, edges in enumerate(graph.edges):
            order = dense_order(edges)
            if (edges.positions < 0).any():
                raise NotDenseError(f"connection {edges.connection} has constants on its edges")
            slots = frame.cells(edges.shape) if edges.type == KERNEL else np.arange(edges.width)
            part = self.graph.parts[number]
            self.types.append(frame.number_of(edges.type))
            self.shapes.append((part.targets[1], part.sources[1], edges.width))
            for name, array in (
                ("positions", edges.positions[order].reshape(-1)), ("slots", slots), ("source", edges.source[order]),
                ("target", edges.target[order]),
            ):  # fmt: skip
                tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
                self.register_buffer(f"edge_{name}_{number}", tensor, persistent=False)

    def forward(self, values: Tensor, embed: Embedding, own_back: bool) -> States:
        at = Places(*(self.get_buffer(f"node_{name}") for name in Places._fields))
        on_nodes = values.new_zeros(len(values), self.num_nodes * self.slots)
        picked = values.index_select(1, self.get_buffer("value_positions"))
        on_nodes = on_nodes.index_copy(1, self.get_buffer("value_places"), picked)
        codes = embed.codes(at)
        x = embed.node_states(on_nodes.view(len(values), self.num_nodes, self.slots), at, codes)
        edges: dict[int, Tensor] = {}
        back: dict[int, Tensor] = {}
        for number, (type, shape) in enumerate(zip(self.types, self.shapes, strict=True)):
            positions, slots, source, target = (
                self.get_buffer(f"edge_{name}_{number}") for name in ("positions", "slots", "source", "target")
            )
            here = values.index_select(1, positions).view(-1, *shape)
            code = embed.edge_code(at, source, target)
            code = None if code is None else code.view(*shape[:2], -1)
            for states, of in ((edges, here), *(((back, reciprocal(here)),) if own_back else ())):
                lifted = embed.edge_states(of, type, slots)
                states[number] = lifted if code is None else lifted * code
        return States(self.graph, x, edges, back if own_back else edges, codes.unsqueeze(0))


class ListFront(nn.Module):
    """Networks of any architectures that fit a frame → :class:`States` on an edge list."""

    def __init__(self, frame: GraphFrame) -> None:
        super().__init__()
        self.frame = frame

    def forward(self, batch: MixedWeightBatch, embed: Embedding, own_back: bool) -> States:
        graph = edge_list(batch, self.frame)
        kinds = batch.tables(kinds_of(self.frame))[0][:, 0]
        at = Places(graph.role, graph.row, graph.position, graph.function, kinds)
        codes = embed.codes(at)
        x = embed.node_states(graph.node_values(batch.values).squeeze(-1), at, codes)
        values = graph.edge_values(batch.values).squeeze(-1)
        code = embed.edge_code(at, graph.source, graph.target)
        by_kind = list_graph(graph, kinds)
        lists = []
        for of in (values, reciprocal(values)) if own_back else (values,):
            lifted = self._lifted(graph.type, of, embed)
            lifted = lifted if code is None else lifted * code
            lists.append({n: lifted.index_select(0, part.edges) for n, part in enumerate(by_kind.parts)})
        return States(by_kind, x, lists[0], lists[-1], codes)

    def _lifted(self, types: Tensor, values: Tensor, embed: Embedding) -> Tensor:
        if len(self.frame.types) == 1:
            return embed.edge_states(values, 0)
        rows = [(types == number).nonzero().squeeze(-1) for number in range(len(self.frame.types))]
        parts = [
            embed.edge_states(values.index_select(0, of_type)[:, :width], number)
            for number, (of_type, (_, width)) in enumerate(zip(rows, self.frame.types, strict=True))
        ]
        lifted = torch.cat(parts)
        return torch.empty_like(lifted).index_copy(0, torch.cat(rows), lifted)
