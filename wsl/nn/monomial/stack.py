"""A deep equivariant network: linear layers with functions that commute with the group between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from wsl.nn.monomial.invariants import Nonlinearity, Odd, Positive
from wsl.nn.monomial.linear import Init, MonomialLinear
from wsl.nn.monomial.telescope import PathGates
from wsl.nn.unf.layout import Layout
from wsl.spec import WeightSpec


@dataclass(frozen=True)
class StackOptions:
    """What stands between the linear layers; see :class:`~wsl.encoders.monomial.Monomial`."""

    positive: Positive = "relu"
    odd: Odd = "sine"
    gated: bool = False
    paths: int = 0
    init: Init = "xavier_normal"


class MonomialStack(nn.Module):
    """linear, (function, path gates, linear) × n through the given channels; nothing follows the last linear layer.

    A ReLU there would send whole vectors to zero, where their direction, all that an invariant keeps, jumps.

    Shapes: one tensor ``[B, *sizes, slots·C]`` per bundle, in and out.
    """

    def __init__(
        self, layout: Layout, specs: Sequence[WeightSpec], channels: Sequence[int], options: StackOptions
    ) -> None:
        super().__init__()
        self.linear = nn.ModuleList(MonomialLinear(layout, a, b, options.init) for a, b in pairwise(channels))
        between = channels[1:-1]
        self.functions = nn.ModuleList(
            Nonlinearity(layout, specs, c, options.positive, options.odd, options.gated) for c in between
        )
        self.gates = nn.ModuleList(
            PathGates(layout, c, options.paths) if options.paths else nn.Identity() for c in between
        )

    def forward(self, features: list[Tensor], spec_ids: Tensor | None = None) -> list[Tensor]:
        features = self.linear[0](features)
        for function, gate, linear in zip(self.functions, self.gates, self.linear[1:], strict=True):
            features = linear(gate(function(features, spec_ids)))
        return features
