"""What entries say once scales and signs are forgotten, and functions that leave scales and signs as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsl.nn.monomial.characters import Action, action
from wsl.nn.unf.layout import Bundle, Layout, Member
from wsl.spec import WeightSpec

#: how a vector of features that are all multiplied by one positive number is made independent of it
Normal = Literal["scaled_l2", "l2", "l1", "squared_l2", "joint"]
Positive = Literal["relu", "leaky_relu", "abs", "identity"]
Odd = Literal["sine", "tanh", "identity"]

POSITIVE: dict[Positive, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "abs": torch.abs,
    "identity": lambda x: x,
}
ODD: dict[Odd, Callable[[Tensor], Tensor]] = {"sine": torch.sin, "tanh": torch.tanh, "identity": lambda x: x}


def unit(x: Tensor, order: int = 2) -> Tensor:
    """x / ‖x‖ over the last axis; the zero vector stays zero. Nothing is added to the norm: the scale cancels.

    The largest entry is divided out first, so that squares neither overflow nor vanish.
    """
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    x = x / largest.masked_fill(largest == 0, 1)
    return x / torch.linalg.vector_norm(x, ord=order, dim=-1, keepdim=True).masked_fill(largest == 0, 1)


def normal_form(x: Tensor, acted: Action, normal: Normal = "l2") -> Tensor:
    """A function of the vectors along the last axis that the action does not change.

    Positive factors: x / ‖x‖₂, x / ‖x‖₁, or (x / ‖x‖₂)²; signs: |x|; both: their composition; neither: x.
    """
    if acted.scaled:
        x = unit(x, 1 if normal == "l1" else 2)
        x = x.square() if normal == "squared_l2" else x
    return x.abs() if acted.signed else x


class PerSpec(nn.Module):
    """Applies to each network of a batch what the group of its own spec allows; at most a few cases per bundle.

    Args:
        layout: of all specs; ``specs``: in the order that ``spec_ids`` counts.
    """

    def __init__(self, layout: Layout, specs: Sequence[WeightSpec]) -> None:
        super().__init__()
        self.layout = layout
        self.actions = [[action(spec, bundle.members[0].tensor) for spec in specs] for bundle in layout.bundles]

    def apply_to(
        self, number: int, x: Tensor, spec_ids: Tensor | None, function: Callable[[Tensor, Action], Tensor]
    ) -> Tensor:
        """``function`` of the features of bundle ``number``; ``spec_ids [B]`` is None where there is one spec."""
        actions = self.actions[number]
        first, *others = dict.fromkeys(actions)
        out = function(x, first)
        for acted in others:
            assert spec_ids is not None, "networks of several specs come with the numbers of their specs"
            chosen = torch.tensor([a == acted for a in actions], device=x.device)[spec_ids]
            out = torch.where(chosen.view(-1, *(1,) * (out.dim() - 1)), function(x, acted), out)
        return out


class Nonlinearity(PerSpec):
    """Element-wise functions that commute with the group: homogeneous under scaling, odd under sign.

    Entries that may be scaled by positive numbers, and those that nothing moves, pass through ``positive``; those that
    may change sign through ``odd``; those that may do both stay as they are, since only linear functions of one
    variable commute with that. Gated, every entry is multiplied by a function of invariants instead: with v the
    features of all entries in its place (the same row and column),

        x ← x · 2σ(A n(v) + a),   n(v) the normal form of v.
    """

    def __init__(
        self,
        layout: Layout,
        specs: Sequence[WeightSpec],
        channels: int,
        positive: Positive = "relu",
        odd: Odd = "sine",
        gated: bool = False,
    ) -> None:
        super().__init__(layout, specs)
        self.positive, self.odd = POSITIVE[positive], ODD[odd]
        widths = [bundle.slots * channels for bundle in layout.bundles] if gated else []
        self.gates = nn.ModuleList(nn.Linear(width, width) for width in widths)

    def forward(self, features: list[Tensor], spec_ids: Tensor | None = None) -> list[Tensor]:
        if self.gates:
            normal = [self.apply_to(n, x, spec_ids, normal_form) for n, x in enumerate(features)]
            return [x * (2 * torch.sigmoid(gate(v))) for x, v, gate in zip(features, normal, self.gates, strict=True)]
        return [self.apply_to(n, x, spec_ids, self._element_wise) for n, x in enumerate(features)]

    def _element_wise(self, x: Tensor, acted: Action) -> Tensor:
        if acted.signed:
            return x if acted.scaled else self.odd(x)
        return self.positive(x)


class InvariantMap(PerSpec):
    """The diagonal-invariant map, entry by entry: normal forms of the vector of an entry's channels and kernel cells.

    ``scaled_l2``: y = w ⊙ x/‖x‖₂ + b with w, b ~ N(0, 1), one pair of vectors for each tensor, also where there is
    nothing to divide by; ``l2``, ``l1``, ``squared_l2``: without w and b; ``joint``: like ``scaled_l2``, but one norm
    for all entries in one place (the whole row and bias of a first-layer neuron), which keeps their ratios.

    Shapes: one tensor ``[B, *sizes, slots·C]`` per bundle, in and out.
    """

    def __init__(self, layout: Layout, specs: Sequence[WeightSpec], channels: int, normal: Normal) -> None:
        super().__init__(layout, specs)
        self.channels, self.normal = channels, normal
        members = [m for bundle in layout.bundles for m in bundle.members] if normal in ("scaled_l2", "joint") else []
        widths = [channels * m.cells // m.ends for m in members]
        self.weight = nn.ParameterList(nn.Parameter(torch.randn(width)) for width in widths)
        self.bias = nn.ParameterList(nn.Parameter(torch.randn(width)) for width in widths)

    def forward(self, features: list[Tensor], spec_ids: Tensor | None = None) -> list[Tensor]:
        affine = list(zip(self.weight, self.bias, strict=True))
        out = []
        for number, (bundle, x) in enumerate(zip(self.layout.bundles, features, strict=True)):
            if self.normal == "joint":
                x = self.apply_to(number, x, spec_ids, normal_form)
            parts = [self._entries(bundle, m, x) for m in bundle.members]
            if self.normal != "joint":
                parts = [self.apply_to(number, p, spec_ids, self._normal_form) for p in parts]
            if affine:
                own, affine = affine[: len(parts)], affine[len(parts) :]
                parts = [p * w + b for p, (w, b) in zip(parts, own, strict=True)]
            out.append(torch.cat([p.flatten(-2) for p in parts], dim=-1))
        return out

    def _normal_form(self, x: Tensor, acted: Action) -> Tensor:
        return normal_form(x, acted, self.normal)

    def _entries(self, bundle: Bundle, member: Member, x: Tensor) -> Tensor:
        """The features of one tensor, ``[B, *sizes, ends, cells·C]``."""
        first, last = member.slots.start * self.channels, member.slots.stop * self.channels
        return x[..., first:last].unflatten(-1, (member.ends, -1))
