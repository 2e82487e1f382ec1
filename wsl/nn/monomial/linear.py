"""The equivariant linear layer: one matrix for each character and each set of neurons that a value belongs to."""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from wsl.nn.unf.layout import Character, Layout
from wsl.nn.unf.partitions import Key

Init = Literal["xavier_normal", "kaiming_normal", "uniform"]


class Exchange(NamedTuple):
    """The bundles of one character whose entries, averaged over all labels but those of ``key``, mix linearly."""

    character: Character
    key: Key
    bundles: tuple[int, ...]


def exchanges(layout: Layout) -> tuple[Exchange, ...]:
    """All of them: a label of the character stays (a mean over it would mix factors), any other may be averaged."""
    found: dict[tuple[Character, Key], list[int]] = {}
    for number, bundle in enumerate(layout.bundles):
        bound = {label for label, _ in bundle.character}
        free = [label for label in bundle.labels if label not in bound]
        for count in range(len(free), -1, -1):
            for kept in itertools.combinations(free, count):
                key = tuple(label for label in bundle.labels if label in bound or label in kept)
                found.setdefault((bundle.character, key), []).append(number)
    return tuple(Exchange(character, key, tuple(bundles)) for (character, key), bundles in found.items())


class MonomialLinear(nn.Module):
    r"""Every linear map of the features of a weight space that commutes with permutation, scaling and sign.

    .. math:: Y_l = Σ_{key}\ \mathrm{broadcast}\Big(Σ_{m:\, χ_m = χ_l} \mathrm{mean}_{key}(X_m)\, Θ_{lm}^{key}\Big)
              \quad + \quad t_l \text{ where } χ_l = 1

    On an MLP with ReLU these are, for the first layer, W'₁[j,k] = Σ_q A_{qk} W₁[j,q] + a_k b₁[j] and
    b'₁[j] = Σ_q c_q W₁[j,q] + e b₁[j]; in between W'_i[j,k] = α_i W_i[j,k] and b'_i[j] = β_i b_i[j]; for the last layer
    W'_L[j,k] = Σ_p B_{pj} W_L[p,k] and b'_L[j] = Σ_p C_{pj} b_L[p] + t_j. With signs W_L and b_{L−1} share a character
    and feed each other, and with two layers everything but b_L does. Where neither holds (an unknown activation) the
    row, column and total means of an NFN-HNP layer appear, and all of its biases.

    Source: Tran et al., section 4 and appendices; the list of terms is derived here from the characters.

    Args:
        layout: of :func:`~wsl.nn.monomial.characters.monomial_layout`.
        c_in, c_out: feature channels.
        init: all terms that end in one tensor share its fan-in and fan-out; variance 2 / (fan-in + fan-out),
            2 / fan-in, or uniform on ±fan-in^(−½).

    Shapes: one tensor ``[B, *sizes, slots·C]`` per bundle, in and out.
    """

    def __init__(self, layout: Layout, c_in: int, c_out: int, init: Init = "xavier_normal") -> None:
        super().__init__()
        self.layout, self.c_in, self.c_out = layout, c_in, c_out
        self.plan = exchanges(layout)
        slots = [bundle.slots for bundle in layout.bundles]
        fan_in, fan_out = [0] * len(slots), [0] * len(slots)
        for exchange in self.plan:
            for number in exchange.bundles:
                fan_in[number] += c_in * sum(slots[b] for b in exchange.bundles)
                fan_out[number] += c_out * slots[number]
        self.weight, self.bias = nn.ParameterList(), nn.ParameterList()
        for exchange in self.plan:
            rows = c_in * sum(slots[b] for b in exchange.bundles)
            columns = [_drawn(rows, c_out * slots[b], fan_in[b], fan_out[b], init) for b in exchange.bundles]
            self.weight.append(nn.Parameter(torch.cat(columns, dim=1)))
            if not exchange.key and not exchange.character:
                self.bias.append(nn.Parameter(torch.zeros(self.weight[-1].shape[1])))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        out: list[Tensor | None] = [None] * len(features)
        for weight, exchange in zip(self.weight, self.plan, strict=True):
            parts = [self._mean(features[b], self.layout.bundles[b].labels, exchange.key) for b in exchange.bundles]
            joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
            mixed = joined @ weight
            if not exchange.key and not exchange.character:
                mixed = mixed + self.bias[0]
            widths = [self.layout.bundles[b].slots * self.c_out for b in exchange.bundles]
            for number, part in zip(exchange.bundles, mixed.split(widths, dim=-1), strict=True):
                part = self._broadcast(part, self.layout.bundles[number].labels, exchange.key)
                before = out[number]
                out[number] = part if before is None else before + part
        return [x for x in out if x is not None]  # every bundle is in the exchange of its own labels

    @staticmethod
    def _mean(x: Tensor, labels: Key, key: Key) -> Tensor:
        gone = [1 + axis for axis, label in enumerate(labels) if label not in key]
        return x.mean(dim=gone) if gone else x

    @staticmethod
    def _broadcast(x: Tensor, labels: Key, key: Key) -> Tensor:
        for axis, label in enumerate(labels):
            if label not in key:
                x = x.unsqueeze(1 + axis)
        return x

    def extra_repr(self) -> str:
        return f"{self.c_in} → {self.c_out}, {len(self.plan)} exchanges"


def _drawn(rows: int, columns: int, fan_in: int, fan_out: int, init: Init) -> Tensor:
    if init == "uniform":
        return (torch.rand(rows, columns) * 2 - 1) / math.sqrt(fan_in)
    variance = 2 / (fan_in + fan_out) if init == "xavier_normal" else 2 / fan_in
    return torch.randn(rows, columns) * math.sqrt(variance)
