"""Normalisation of node states by what all nodes of a network have in common."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: how node states are normalised between layers of an encoder of neural graphs
NodeNorm = Literal["network", "layer", "none"]


class Owners(NamedTuple):
    """Which network each node of a list belongs to: ``owner`` ``[ΣN]`` int64, and the ``number`` B of networks."""

    owner: Tensor
    number: int


class NetworkNorm(nn.Module):
    r"""One mean and one deviation for all nodes and channels of a network, then a scale and an offset per channel.

    .. math:: y_{nc} = γ_c (x_{nc} - μ) / \sqrt{σ^2 + ε} + β_c, \quad μ, σ^2 \text{ over all } n, c \text{ of it}

    What makes one node's states larger than another's stays, which a norm of each node alone takes away. It is what
    PyTorch Geometric's ``LayerNorm`` in graph mode is meant for (the published NG-GNN gives it a whole mini-batch as
    one graph, so that a network's features depend on the others), with ε under the root: equal states have gradients.

    Args:
        width: C. eps: ε.

    Shapes: ``[B, N, C]`` of networks of one size, or ``[…, ΣN, C]`` with the owners of the nodes → the same.
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor, owners: Owners | None = None) -> Tensor:
        if owners is None:
            normal = F.layer_norm(x, x.shape[1:], eps=self.eps)
        else:
            centred = x - _means(x, owners)
            normal = centred * (_means(centred.square(), owners) + self.eps).rsqrt()
        return normal * self.weight + self.bias


def _means(x: Tensor, owners: Owners) -> Tensor:
    """Mean over nodes and channels of the network of each node, ``[…, ΣN, 1]``."""
    of_nodes = x.mean(-1)
    counts = torch.bincount(owners.owner, minlength=owners.number).clamp(min=1).to(x.dtype)
    sums = of_nodes.new_zeros(*of_nodes.shape[:-1], owners.number).index_add(-1, owners.owner, of_nodes)
    return (sums / counts).index_select(-1, owners.owner).unsqueeze(-1)


def node_norm(kind: NodeNorm, width: int) -> nn.Module:
    """The norm that an encoder's option names; called with states and, on a list of nodes, their owners."""
    return {"network": NetworkNorm, "layer": _EachNode, "none": _Nothing}[kind](width)


class _EachNode(nn.LayerNorm):
    """Layer norm; whose node it is does not matter."""

    def forward(self, x: Tensor, owners: Owners | None = None) -> Tensor:
        return super().forward(x)


class _Nothing(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, owners: Owners | None = None) -> Tensor:
        return x
