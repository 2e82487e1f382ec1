"""Kinds of nodes: what the symmetries of a neuron's own activation may do to its state.

With d_i the factor of neuron i, its bias and state have the factor d_i, and the weight from j to i has d_i / d_j. This
is checked on every spec, with a random element of its own group: a graph whose values behave otherwise (the running
variance of a norm, say) is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsl.batch import WeightBatch
from wsl.graphs.frame import GraphFrame
from wsl.graphs.network import GraphError, NetworkGraph, Nodes
from wsl.nn.monomial.characters import Action
from wsl.spec import WeightSpec
from wsl.symmetry import act, draw


class Kind(NamedTuple):
    """``acted``: factors that the nodes may have; ``role``: input, hidden or output. Only hidden nodes have factors."""

    role: str
    acted: Action

    @property
    def free(self) -> bool:
        """Whether nothing multiplies the nodes, so that every function of their state is legal."""
        return not any(self.acted)


_FREE = Action(False, False)
KINDS = (
    Kind("input", _FREE),
    Kind("output", _FREE),
    Kind("hidden", _FREE),
    Kind("hidden", Action(True, False)),
    Kind("hidden", Action(False, True)),
    Kind("hidden", Action(True, True)),
)


@cache
def kinds_of(frame: GraphFrame) -> Callable[[WeightSpec], Tensor]:
    """The table of kinds for a frame, always the same function object."""
    return partial(kind_table, frame=frame)


def kind_table(spec: WeightSpec, frame: GraphFrame) -> Tensor:
    """``[N, 1]`` int64, the number among KINDS of each node of a spec's graph.

    Raises:
        GraphError: if the graph does not fit the frame, or a value of it does not have the factor of its place.
    """
    graph = frame.graph(spec)
    numbers = np.empty((graph.num_nodes, 1), dtype=np.int64)
    for nodes in graph.nodes:
        numbers[nodes.start : nodes.start + nodes.size] = KINDS.index(_kind(spec, nodes))
    _check_factors(spec, graph)
    return torch.from_numpy(numbers)


def _label(spec: WeightSpec, nodes: Nodes) -> str | None:
    """The label that the nodes range over, one by one."""
    name = spec.group[nodes.name].label if nodes.role == "hidden" and nodes.name in spec.group else None
    return name if name is not None and spec.label[name].size == nodes.size else None


def _kind(spec: WeightSpec, nodes: Nodes) -> Kind:
    name = _label(spec, nodes)
    held = spec.label[name].symmetries if name is not None and spec.label[name].kind == "hidden" else ()
    return Kind(nodes.role, Action("scaling" in held, "sign" in held))


def _check_factors(spec: WeightSpec, graph: NetworkGraph) -> None:
    element = draw(
        spec, 1, torch.Generator().manual_seed(0), ("scaling", "sign"), dtype=torch.float64, kinds=("hidden",)
    )
    ones = WeightBatch(spec, torch.ones(1, spec.numel, 1, dtype=torch.float64))
    factor = act(element, ones).values[0, :, 0].numpy()
    of_node = np.ones(graph.num_nodes)
    for nodes in graph.nodes:
        if (name := _label(spec, nodes)) is not None and name in element.factor:
            of_node[nodes.start : nodes.start + nodes.size] = element.factor[name][0].numpy()
    right = all(np.allclose(factor[v.positions], of_node[v.nodes]) for v in graph.values)
    for edges in graph.edges:
        expected = np.broadcast_to((of_node[edges.target] / of_node[edges.source])[:, None], edges.positions.shape)
        held = edges.positions >= 0
        right = right and np.allclose(factor[edges.positions[held]], expected[held])
        right = right and (not edges.constant or np.allclose(expected[~held], 1.0))
    if not right:
        raise GraphError(
            f"{spec!r} has parameters that do not scale like a bias (as its neuron) or a weight (as the neuron that it "
            "reaches over the one that it leaves); encoder=canonical removes scales and signs of any network"
        )
