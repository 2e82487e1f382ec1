"""Invariants of paths: products of consecutive layers telescope, so that neurons know the layers before and after."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wsl.nn.chain import ChainLayer, chain
from wsl.nn.unf.layout import Layout, Member


class Telescope(nn.Module):
    r"""For every hidden neuron of a chain, features that no scale and no sign of any hidden neuron changes.

    With V_i = A_i X_{W_i} and u_i = U_i X_{b_i} (bias-free maps of the channels of an entry, with kernel cells, inputs
    or outputs folded into them), products of consecutive layers from the inputs and from the outputs to neuron j,

    .. math::
        F_1[j] = V_1[j] + u_1[j], \quad F_i[j] = n_{i-1}^{-1/2} Σ_k V_i[j,k] ⊙ F_{i-1}[k] + u_i[j]

        G_{L-1}[k] = V_L[k], \quad G_{i-1}[k] = n_i^{-1/2} Σ_j V_i[j,k] ⊙ G_i[j]

    are multiplied by d_i(j) and by 1/d_i(j): all factors in between cancel. So P_i[j] = F_i[j] ⊙ G_i[j] is invariant,
    and so is Q_i[j], the same with V_i², u_i² for V_i, u_i: squared norms of all rows before the neuron times those of
    all columns behind it, in which nothing cancels. Both grow with the scale of the network to the power of its depth;
    asinh P and asinh Q, which keep order and sign, are returned.

    Source: the cancelling products are those of Tran et al., "Equivariant Polynomial Functional Networks", section 4.

    Args:
        layout: of a chain with at least one hidden group.
        channels: features of an entry; ``paths``: C'.

    Attributes:
        features: 2C', what a neuron gets.

    Shapes: per bundle ``[B, *sizes, slots·C]`` → per hidden label ``[B, n, 2C']``.

    Raises:
        NotAChainError: if the spec is no chain.
        ValueError: if the chain has one layer, its inputs or outputs are permuted, or hidden neurons are not.
    """

    def __init__(self, layout: Layout, channels: int, paths: int) -> None:
        super().__init__()
        self.layout, self.channels, self.features = layout, channels, 2 * paths
        self.layers = chain(layout.spec)
        if len(self.layers) < 2:
            raise ValueError("a chain of one layer has no hidden neurons for paths to meet at")
        self.labels = tuple(layer.out for layer in self.layers[:-1])
        for name in (self.layers[0].into, *self.labels, self.layers[-1].out):
            if (name in self.labels) != (name in layout.permuted):
                raise ValueError(
                    f"paths run between fixed inputs and outputs through permuted neurons; {name!r} is none"
                )
        self._member = {m.tensor.name: (n, m) for n, bundle in enumerate(layout.bundles) for m in bundle.members}
        self.weight, self.bias = nn.ParameterList(), nn.ParameterList()
        for number, layer in enumerate(self.layers):
            hidden = number < len(self.layers) - 1
            self.weight.append(self._map(layer.weight.name, paths))
            self.bias.append(self._map(layer.bias.name if layer.bias and hidden else None, paths))

    def _map(self, tensor: str | None, paths: int) -> nn.Parameter:
        rows = 0 if tensor is None else self._member[tensor][1].cells * self.channels
        return nn.Parameter(torch.randn(rows, paths) / math.sqrt(max(rows, 1)))

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        steps = [self._entries(features, layer, w) for layer, w in zip(self.layers, self.weight, strict=True)]
        biases: list[Tensor | None] = [
            self._entry(features, layer.bias.name, u) if layer.bias and len(u) else None
            for layer, u in zip(self.layers, self.bias, strict=True)
        ]
        squares = [None if u is None else u.square() for u in biases]
        both = zip(_met(steps, biases), _met([v.square() for v in steps], squares), strict=True)
        return {label: torch.asinh(torch.cat(pq, dim=-1)) for label, pq in zip(self.labels, both, strict=True)}

    def _entries(self, features: list[Tensor], layer: ChainLayer, weight: Tensor) -> Tensor:
        """V_i, ``[B, out, in, C']`` (without the axis of inputs or outputs), whatever order the bundle has."""
        found = self._entry(features, layer.weight.name, weight)
        labels = self.layout.bundles[self._member[layer.weight.name][0]].labels
        return found.transpose(1, 2) if labels == (layer.into, layer.out) else found

    def _entry(self, features: list[Tensor], tensor: str, weight: Tensor) -> Tensor:
        number, member = self._member[tensor]
        return self._of(features[number], member) @ weight

    def _of(self, x: Tensor, member: Member) -> Tensor:
        return x[..., member.slots.start * self.channels : member.slots.stop * self.channels]


def _met(steps: list[Tensor], biases: list[Tensor | None]) -> list[Tensor]:
    """F ⊙ G of every hidden label, first to last, ``[B, n, C']``."""
    forward = [_plus(steps[0], biases[0])]
    for step, bias in zip(steps[1:-1], biases[1:-1], strict=True):
        forward.append(_plus(torch.einsum("bokc,bkc->boc", step, forward[-1]) / math.sqrt(step.shape[2]), bias))
    backward = [steps[-1]]
    for step in steps[-2:0:-1]:
        backward.append(torch.einsum("bokc,boc->bkc", step, backward[-1]) / math.sqrt(step.shape[1]))
    return [f * g for f, g in zip(forward, reversed(backward), strict=True)]


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias


class PathGates(nn.Module):
    """Multiplies entries by functions of the paths through their neurons: layers talk to each other, nothing moves.

    x[j, k] ← x[j, k] · 2σ(A P[j] + A' P[k] + a) for every bundle with the labels of j and k.

    Shapes: per bundle ``[B, *sizes, slots·C]``, in and out.
    """

    def __init__(self, layout: Layout, channels: int, paths: int) -> None:
        super().__init__()
        self.telescope = Telescope(layout, channels, paths)
        known = set(self.telescope.labels)
        self.labels = [[label for label in bundle.labels if label in known] for bundle in layout.bundles]
        self.maps = nn.ModuleList(
            nn.ModuleList(
                nn.Linear(self.telescope.features, bundle.slots * channels, bias=n == 0) for n in range(len(labels))
            )
            for bundle, labels in zip(layout.bundles, self.labels, strict=True)
        )
        self.layout = layout

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        paths = self.telescope(features)
        out = []
        for bundle, labels, maps, x in zip(self.layout.bundles, self.labels, self.maps, features, strict=True):
            assert isinstance(maps, nn.ModuleList)
            opened: Tensor | None = None
            for label, linear in zip(labels, maps, strict=True):
                at = linear(paths[label])
                for axis, other in enumerate(bundle.labels):
                    at = at if other == label else at.unsqueeze(1 + axis)
                opened = at if opened is None else opened + at
            out.append(x if opened is None else x * (2 * torch.sigmoid(opened)))
        return out
