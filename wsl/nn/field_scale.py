"""Learned scales of a field over parameters: an editor starts by changing little."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsl.spec import WeightSpec


class FieldScale(nn.Module):
    r"""Δ_t ← α_t Δ_t, with one learned scalar α for each parameter tensor t: it commutes with every symmetry.

    Layers differ in the size of their weights by orders of magnitude, and an untrained field of the size of its input
    would overwrite the networks. Source: Kofinas et al., "Graph Neural Networks for Learning Equivariant
    Representations of Neural Networks", section 4.2, where neural graphs are edited so.

    Args:
        spec: of the networks. start: of all scales.

    Shapes: ``[B, P, k]`` → the same.
    """

    owner: Tensor

    def __init__(self, spec: WeightSpec, start: float) -> None:
        super().__init__()
        owner = torch.empty(spec.numel, dtype=torch.int64)
        for number, tensor in enumerate(spec.tensors):
            owner[torch.from_numpy(tensor.index().ravel())] = number
        self.register_buffer("owner", owner, persistent=False)
        self.scale = nn.Parameter(torch.full((len(spec.tensors),), start))

    def forward(self, field: Tensor) -> Tensor:
        return field * self.scale.index_select(0, self.owner).unsqueeze(-1)


def field_scale(spec: WeightSpec, start: float) -> nn.Module:
    """Scales that begin at ``start``; none if that is 0."""
    return FieldScale(spec, start) if start else nn.Identity()
