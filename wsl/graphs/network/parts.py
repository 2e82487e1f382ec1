"""What the neural graph of a spec is made of, as plain arrays: positions in a row, not values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from wsl.errors import UserError

Integers = npt.NDArray[np.int64]

#: type of edges that carry a kernel, or one number at its centre
KERNEL = "kernel"


class GraphError(UserError, ValueError):
    """A spec has no neural graph; the message is one sentence that says why."""


@dataclass(frozen=True)
class GraphOptions:
    """How a network is read as a graph.

    Args:
        flatten: a linear layer on a flattened feature map: "kernel" makes its positions the cells of a kernel,
            "repeat" copies the channels (and the edges into them) for every position, "layer" adds a layer of one
            node for each channel and position, fed by its channel alone.
        linear: "kernel" reads the weight of a linear layer as the centre of a kernel, "own" as a type of its own.
        attention: "separate" gives the channels of queries and keys, and those of values, nodes of their own; "triple"
            is the published form with (Q, K, V) on one edge, which ties the two (see :func:`tied_attention`).
    """

    flatten: Literal["kernel", "repeat", "layer"] = "kernel"
    linear: Literal["kernel", "own"] = "kernel"
    attention: Literal["separate", "triple"] = "separate"


@dataclass(frozen=True, eq=False)
class Nodes:
    """The nodes ``start … start + size − 1``: the neurons of a group, or what stands for a layer's inner channels.

    Attributes:
        role: "input", "hidden" or "output".
        function: the activation of the neurons, or what else they are ("query_key", "value", "table", …).
        depth: length of the longest path from the inputs, at least 1 for hidden nodes.
        index: ``[size]`` place of each node where they have a meaning of their own (among all inputs, among all
            outputs, positions and other fixed channels), else zeros.
        individual: whether they have.
    """

    name: str
    start: int
    size: int
    role: str
    function: str
    depth: int
    index: Integers
    individual: bool


@dataclass(frozen=True, eq=False)
class NodeValues:
    """Values of kind ``slot`` on nodes: ``nodes [M]``, positions in the row ``[M]``."""

    slot: str
    nodes: Integers
    positions: Integers


@dataclass(frozen=True, eq=False)
class EdgeSet:
    """Edges of one connection and one type.

    Attributes:
        type: names the encoder of the values.
        source, target: ``[E]`` nodes.
        positions: ``[E, K]`` in the row; −1 where ``constant`` stands.
        shape: of the kernel whose K cells these are; empty if there is one value, or the type is no kernel.
        constant: value of the cells without a position.
        connection: number of the connection in the spec.
        recurrent: whether the edges close a cycle.
    """

    type: str
    source: Integers
    target: Integers
    positions: Integers
    shape: tuple[int, ...]
    constant: float
    connection: int
    recurrent: bool

    def __len__(self) -> int:
        return len(self.source)

    @property
    def width(self) -> int:
        """K."""
        return self.positions.shape[1]


@dataclass(frozen=True, eq=False)
class NetworkGraph:
    """Nodes, their values and edges."""

    nodes: tuple[Nodes, ...]
    values: tuple[NodeValues, ...]
    edges: tuple[EdgeSet, ...]

    @cached_property
    def num_nodes(self) -> int:
        return sum(part.size for part in self.nodes)

    @cached_property
    def num_edges(self) -> int:
        return sum(len(part) for part in self.edges)

    def of_role(self, role: str) -> tuple[Nodes, ...]:
        return tuple(part for part in self.nodes if part.role == role)

    def kernels(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of all kernels."""
        return tuple(dict.fromkeys(part.shape for part in self.edges if part.type == KERNEL))


def product(sizes: Sequence[int]) -> int:
    """Π sizes, 1 for none."""
    return int(np.prod(np.asarray(sizes, dtype=np.int64))) if len(sizes) else 1
