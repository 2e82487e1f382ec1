"""The coefficients of a UNF layer: how they are tied, how they start, and the matrix of every exchange.

A *unit* is one matrix c_in × c_out. In the full basis an exchange without gaps holds its units as one dense matrix;
where some terms are left out, or several terms share a unit, the units lie in one list and the matrix is gathered from
it.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from wsl.nn.unf.basis import BasisOptions, Exchange
from wsl.nn.unf.layout import Layout
from wsl.nn.unf.tying import tie, tie_biases

#: share of an entry's variance that comes from the same entry of the input tensors; the other ports divide the rest
IDENTITY_SHARE = 0.5


class Coefficients(nn.Module):
    """Matrices of all exchanges of a layer, and its biases.

    Args:
        layout, plan, options: the weight space, its exchanges, and how their coefficients are tied.
        c_in, c_out: feature channels.
        gain: variance of an output entry for inputs of unit second moment: 2 before a ReLU, 1 otherwise.
        init: ``balanced``: each port contributes a fixed share of the variance, divided evenly between the terms that
            end in it, so that an entry's own value is not drowned by hundreds of means, nor a mean by it; ``flat``:
            all coefficients of an output tensor have the variance gain / fan-in (the official code, with gain 1).
    """

    def __init__(
        self,
        layout: Layout,
        plan: tuple[Exchange, ...],
        options: BasisOptions,
        c_in: int,
        c_out: int,
        gain: float = 1.0,
        init: Literal["balanced", "flat"] = "balanced",
    ) -> None:
        super().__init__()
        self.c_in, self.c_out, self.options = c_in, c_out, options
        self.dense = nn.ParameterDict()
        tied, units = tie(layout, plan, options)
        rows, columns = _variances(layout, plan, init)
        start = np.zeros(units)
        for number, (ties, row, column) in enumerate(zip(tied, rows, columns, strict=True)):
            row, column = np.sqrt(row * gain / c_in), np.sqrt(column)
            if ties is None:
                self._add_dense(number, row, column)
                continue
            index, multiplicity = ties
            held = index >= 0
            start[index[held]] = (np.outer(row, column) * np.sqrt(multiplicity))[held]
            self.register_buffer(f"index{number}", torch.from_numpy(index), persistent=False)
            factor = torch.from_numpy(1 / multiplicity).to(torch.get_default_dtype())
            self.register_buffer(f"factor{number}", factor if (multiplicity > 1).any() else None, persistent=False)
        scale = torch.from_numpy(start).to(torch.get_default_dtype())
        drawn = torch.randn(units, c_in, c_out) * scale[:, None, None]
        self.units = nn.Parameter(drawn) if units else None
        index, biases = tie_biases(layout, plan, options)
        self.bias = nn.Parameter(torch.zeros(biases, c_out)) if biases else None
        self.register_buffer("bias_index", torch.from_numpy(index), persistent=False)

    def _add_dense(self, number: int, rows: np.ndarray, columns: np.ndarray) -> None:
        """One matrix of standard deviations rows ⊗ columns, or two factors whose product has them."""
        left = torch.from_numpy(rows.repeat(self.c_in)).to(torch.get_default_dtype()).unsqueeze(1)
        right = torch.from_numpy(columns.repeat(self.c_out)).to(torch.get_default_dtype())
        rank, n, m = self.options.rank, len(left), len(right)
        if self.options.theta == "low_rank" and rank * (n + m) < n * m:
            self.dense[f"left{number}"] = nn.Parameter(torch.randn(n, rank) * left)
            self.dense[f"right{number}"] = nn.Parameter(torch.randn(rank, m) * right / rank**0.5)
        else:
            self.dense[f"full{number}"] = nn.Parameter(torch.randn(n, m) * left * right)

    def matrix(self, number: int) -> Tensor:
        """The matrix of exchange ``number``: ``[source slots · c_in, sink slots · c_out]``."""
        if f"full{number}" in self.dense:
            return self.dense[f"full{number}"]
        if f"left{number}" in self.dense:
            return self.dense[f"left{number}"] @ self.dense[f"right{number}"]
        assert self.units is not None
        index, factor = self.get_buffer(f"index{number}"), getattr(self, f"factor{number}")
        gathered = _with_zero(self.units).index_select(0, index.flatten() % (len(self.units) + 1))
        gathered = gathered.view(*index.shape, self.c_in, self.c_out)
        if factor is not None:
            gathered = gathered * factor[:, :, None, None]
        return gathered.transpose(1, 2).reshape(index.shape[0] * self.c_in, index.shape[1] * self.c_out)

    def apply_to(self, number: int, bank: Tensor) -> Tensor:
        """``bank [..., source slots · c_in]`` times the matrix of exchange ``number``."""
        if f"left{number}" in self.dense:
            return bank @ self.dense[f"left{number}"] @ self.dense[f"right{number}"]
        return bank @ self.matrix(number)

    def biases(self) -> Tensor | float:
        """Biases of all sinks of the exchange without labels, ``[sink slots · c_out]``, or 0."""
        if self.bias is None:
            return 0.0
        return _with_zero(self.bias).index_select(0, self.get_buffer("bias_index") % (len(self.bias) + 1)).flatten()


def _with_zero(units: Tensor) -> Tensor:
    """The units and one zero unit behind them, which index −1 (modulo the length) stands for."""
    return torch.cat([units, units.new_zeros(1, *units.shape[1:])])


def _variances(layout: Layout, plan: tuple[Exchange, ...], init: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Per exchange the factors (per source slot, per sink slot) of the variance of a coefficient times c_in."""
    shares = _shares(layout, plan)
    rows, columns, fan = [], [], [np.zeros(bundle.slots) for bundle in layout.bundles]
    for exchange in plan:
        cells = np.concatenate([layout.bundles[s.bundle].cells_of_slot for s in exchange.sources])
        row = 1 / cells if init == "balanced" else np.ones_like(cells)
        slots = sum(layout.bundles[s.bundle].slots for s in exchange.sinks)
        total = np.full(slots, row.sum()) if exchange.allowed is None else row @ exchange.allowed
        rows.append(row)
        columns.append(total)
        for sink, part in zip(exchange.sinks, _parts(layout, exchange, total), strict=True):
            fan[sink.bundle] += part
    for exchange, total in zip(plan, columns, strict=True):
        for sink, part in zip(exchange.sinks, _parts(layout, exchange, total), strict=True):
            if init == "balanced":
                part[:] = shares[sink.bundle, sink.port.on_diagonal, len(exchange.key)] / np.maximum(part, 1e-12)
            else:
                part[:] = 1 / fan[sink.bundle]
    return rows, columns


def _parts(layout: Layout, exchange: Exchange, per_slot: np.ndarray) -> list[np.ndarray]:
    """Views of the sinks' slots, one per sink."""
    ends = np.cumsum([layout.bundles[s.bundle].slots for s in exchange.sinks])
    return np.split(per_slot, ends[:-1])


def _shares(layout: Layout, plan: tuple[Exchange, ...]) -> dict[tuple[int, bool, int], float]:
    """(bundle, on a diagonal, number of connected blocks) → the port's share of the variance of an entry."""
    ports: Counter[tuple[int, bool, int]] = Counter()
    for exchange in plan:
        for sink in exchange.sinks:
            ports[sink.bundle, sink.port.on_diagonal, len(exchange.key)] += 1
    out: dict[tuple[int, bool, int], float] = {}
    for bundle, diagonal, connected in ports:
        full = not diagonal and connected == len(layout.bundles[bundle].labels)
        alike = sum(n for (b, d, c), n in ports.items() if b == bundle and d == diagonal)
        if diagonal:
            out[bundle, diagonal, connected] = (1 - IDENTITY_SHARE) / alike
        elif full:
            out[bundle, diagonal, connected] = IDENTITY_SHARE if alike > 1 else 1.0
        else:
            out[bundle, diagonal, connected] = (1 - IDENTITY_SHARE) / (alike - 1)
    return out
