"""Encodings that break false symmetries: neurons that nothing really permutes are told where they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsl.nn.unf.layout import Layout
from wsl.spec import WeightSpec


def positions_along(spec: WeightSpec, labels: Sequence[str]) -> Tensor:
    """For every position of the row and every label its index along the axis of that label, or −1: ``[P, labels]``.

    A tensor with several axes of one label counts the first.
    """
    out = torch.full((spec.numel, len(labels)), -1, dtype=torch.int64)
    for tensor in spec.tensors:
        for column, name in enumerate(labels):
            if name in tensor.axes:
                axis = tensor.axes.index(name)
                steps = torch.arange(tensor.shape[axis]).reshape(
                    [-1 if a == axis else 1 for a in range(len(tensor.axes))]
                )
                out[torch.from_numpy(tensor.index()).flatten(), column] = steps.expand(tensor.shape).flatten()
    return out


def sinusoidal_positions(spec: WeightSpec, labels: Sequence[str], bands: int, max_frequency: float) -> Tensor:
    """Waves of the position along labelled axes, ``[P, E]``; zero in tensors without such an axis.

    For an index k of n, x = 2k/(n−1) − 1 gives x, sin(πfx) and cos(πfx) with f in ``bands`` steps from 1 to
    ``max_frequency`` (Zhou et al., "Permutation Equivariant Neural Functionals", appendix). Labels that never meet in
    one tensor share channels, apart from inputs and outputs, which have their own.
    """
    kinds = ("input", "output", "fixed", "hidden")
    slots: dict[str, tuple[str, int]] = {}
    for tensor in spec.tensors:
        chosen = [a for a in dict.fromkeys(tensor.axes) if a in labels]
        for kind in kinds:
            for rank, name in enumerate(a for a in chosen if spec.label[a].kind == kind):
                slots[name] = (kind, max(rank, slots.get(name, (kind, 0))[1]))
    columns = sorted(set(slots.values()))
    frequencies = torch.logspace(0, math.log10(max_frequency), bands) if bands else torch.zeros(0)
    width = 1 + 2 * bands
    out = torch.zeros(spec.numel, len(columns) * width)
    index = positions_along(spec, list(slots))
    for column, (name, slot) in enumerate(slots.items()):
        held = index[:, column] >= 0
        x = 2 * index[held, column].float() / max(spec.label[name].size - 1, 1) - 1
        phase = math.pi * x.unsqueeze(1) * frequencies
        start = columns.index(slot) * width
        out[held, start : start + width] = torch.cat([x.unsqueeze(1), phase.sin(), phase.cos()], dim=1)
    return out


class AxisEmbedding(nn.Module):
    """Adds one learned vector per neuron of the given labels, drawn from N(0, 1), to all entries of that neuron.

    Zhou et al., "Permutation Equivariant Neural Functionals", section 3.2, for the inputs and outputs of a network.

    Shapes: one tensor ``[B, *sizes, slots·C]`` per bundle, in and out.
    """

    def __init__(self, layout: Layout, labels: Sequence[str], channels: int) -> None:
        super().__init__()
        sizes = [layout.sizes[a] for a in labels]
        starts = torch.tensor([0, *sizes]).cumsum(0)[:-1]
        self.vectors = nn.Parameter(torch.randn(sum(sizes), channels))
        along = positions_along(layout.spec, labels)
        index = torch.where(along >= 0, along + starts, sum(sizes))
        self.number = len(layout.bundles)
        for number, where in enumerate(layout.pack(index.unsqueeze(0))):
            rows = where[0].unflatten(-1, (-1, len(labels)))
            used = bool((rows < sum(sizes)).any())
            self.register_buffer(f"index{number}", rows if used else None, persistent=False)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        table = torch.cat([self.vectors, self.vectors.new_zeros(1, self.vectors.shape[1])])
        out = []
        for number, x in enumerate(features):
            index = getattr(self, f"index{number}")
            out.append(x if index is None else x + table[index].sum(-2).flatten(-2))
        return out
