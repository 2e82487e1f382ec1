"""Plain NFN layers, written from their formulas with one coefficient for every summand.

Weights ``W[i] [B, n_i, n_(i−1), C]`` and biases ``b[i] [B, n_i, C]``, i = 1 … L. A coefficient is asked for by the
tensors it connects and by how their axes correspond; axes are "row" (n_i) and "col" (n_(i−1)).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: (output, input, {(output axis, input axis), …}) → matrix [c_in, c_out]
Coefficient = Callable[[str, str, frozenset[tuple[str, str]]], Tensor]


def np_layer(w: dict[int, Tensor], b: dict[int, Tensor], theta: Coefficient) -> tuple[dict, dict]:
    """NP: all neuron layers are permuted."""

    def everywhere(out: str) -> Tensor:
        total = sum(w[j].mean((1, 2)) @ theta(out, f"w{j}", frozenset()) for j in w)
        return total + sum(b[j].mean(1) @ theta(out, f"b{j}", frozenset()) for j in b)

    def over(out: str, axis: str, i: int) -> Tensor:
        """The summands that depend on the neuron of layer i that the output's ``axis`` ranges over."""
        total = torch.zeros(())
        if i in w:
            total = total + w[i].mean(2) @ theta(out, f"w{i}", frozenset({(axis, "row")}))
            total = total + b[i] @ theta(out, f"b{i}", frozenset({(axis, "row")}))
        if i + 1 in w:
            total = total + w[i + 1].mean(1) @ theta(out, f"w{i + 1}", frozenset({(axis, "col")}))
        return total

    new_w, new_b = {}, {}
    for i in w:
        out = f"w{i}"
        rows, columns = over(out, "row", i).unsqueeze(2), over(out, "col", i - 1).unsqueeze(1)
        pointwise = w[i] @ theta(out, out, frozenset({("row", "row"), ("col", "col")}))
        new_w[i] = pointwise + rows + columns + everywhere(out)[:, None, None]
        new_b[i] = over(f"b{i}", "row", i) + everywhere(f"b{i}")[:, None]
    return new_w, new_b


def hnp_layer(w: dict[int, Tensor], b: dict[int, Tensor], theta: Coefficient) -> tuple[dict, dict]:
    """HNP: only layers 1 … L−1 are permuted; inputs and outputs are folded into channels.

    ``w[1] [B, n_1, n_0·C]`` is a vector over layer 1, ``w[L] [B, n_(L−1), n_L·C]`` one over layer L−1, and
    ``b[L] [B, n_L·C]`` a scalar. L ≥ 3.
    """
    last = max(w)

    def mean(x: Tensor) -> Tensor:
        return x.mean(tuple(range(1, x.dim() - 1))) if x.dim() > 2 else x

    def everywhere(out: str) -> Tensor:
        return sum(mean(x[j]) @ theta(out, f"{k}{j}", frozenset()) for k, x in (("w", w), ("b", b)) for j in x)

    def over(out: str, axis: str, i: int) -> Tensor:
        rows = w[i] if i == 1 else w[i].mean(2)
        total = rows @ theta(out, f"w{i}", frozenset({(axis, "row")}))
        total = total + b[i] @ theta(out, f"b{i}", frozenset({(axis, "row")}))
        columns = w[i + 1] if i + 1 == last else w[i + 1].mean(1)
        return total + columns @ theta(out, f"w{i + 1}", frozenset({(axis, "col")}))

    new_w, new_b = {}, {}
    for i in w:
        out = f"w{i}"
        if i == 1:
            new_w[i] = over(out, "row", 1) + everywhere(out)[:, None]
        elif i == last:
            new_w[i] = over(out, "col", last - 1) + everywhere(out)[:, None]
        else:
            rows, columns = over(out, "row", i).unsqueeze(2), over(out, "col", i - 1).unsqueeze(1)
            pointwise = w[i] @ theta(out, out, frozenset({("row", "row"), ("col", "col")}))
            new_w[i] = pointwise + rows + columns + everywhere(out)[:, None, None]
        scalar = everywhere(f"b{i}")
        new_b[i] = scalar if i == last else over(f"b{i}", "row", i) + scalar[:, None]
    return new_w, new_b
