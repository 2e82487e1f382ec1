"""Recurrent layers, one tensor per gate, on sequences ``[B, N, T, i]``; the only loop is over time.

rnn   h' = σ(W x + b + U h + c)
gru   r, z = sigmoid(W x + b + U h + c),  n = tanh(W x + b + r·(U h + c)),  h' = (1 − z)·n + z·h
lstm  i, f, o = sigmoid(…),  g = tanh(…),  s' = f·s + i·g,  h' = P (o·tanh(s'))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

GATES = {"rnn": ("",), "gru": ("reset_", "update_", "new_"), "lstm": ("input_", "forget_", "cell_", "output_")}


def recurrent(
    kind: str,
    x: Tensor,
    weights: Mapping[str, Tensor],
    attributes: Mapping[str, Any],
    initial: Tensor | None = None,
) -> Tensor:
    """The hidden state at every step, ``[B, N, T, h]``, in the order of the sequence.

    Args:
        initial: state before the first step, ``[B, N, h]``; zeros by default.
    """
    gates = GATES[kind]
    networks, size = weights[f"{gates[0]}hidden"].shape[0], weights[f"{gates[0]}hidden"].shape[-1]
    x = x.expand(networks, *x.shape[1:])
    count, steps = x.shape[1:3]
    w_in = torch.cat([weights[f"{gate}input"] for gate in gates], dim=1)
    w_hidden = torch.cat([weights[f"{gate}hidden"] for gate in gates], dim=1)
    b_in, b_hidden = (_biases(weights, gates, which, w_in) for which in ("input", "hidden"))
    arriving = torch.baddbmm(b_in, x.reshape(networks, count * steps, -1), w_in.mT)
    arriving = arriving.reshape(networks, count, steps, -1)
    hidden = x.new_zeros(networks, count, size) if initial is None else initial.expand(networks, count, size)
    width = weights[f"{gates[0]}input"].shape[1]
    cell = x.new_zeros(networks, count, width)
    states: list[Tensor] = [hidden] * steps
    for step in reversed(range(steps)) if attributes.get("reverse", False) else range(steps):
        recalled = torch.baddbmm(b_hidden, hidden, w_hidden.mT)
        if kind == "rnn":
            total = arriving[:, :, step] + recalled
            hidden = torch.relu(total) if attributes.get("nonlinearity", "tanh") == "relu" else torch.tanh(total)
        elif kind == "gru":
            hidden = _gru(arriving[:, :, step], recalled, hidden)
        else:
            hidden, cell = _lstm(arriving[:, :, step] + recalled, cell)
            if "projection" in weights:
                hidden = torch.bmm(hidden, weights["projection"].mT)
        states[step] = hidden
    return torch.stack(states, dim=2)


def _gru(arriving: Tensor, recalled: Tensor, hidden: Tensor) -> Tensor:
    reset_in, update_in, new_in = arriving.chunk(3, dim=-1)
    reset_hidden, update_hidden, new_hidden = recalled.chunk(3, dim=-1)
    reset = torch.sigmoid(reset_in + reset_hidden)
    update = torch.sigmoid(update_in + update_hidden)
    new = torch.tanh(new_in + reset * new_hidden)
    return (1 - update) * new + update * hidden


def _lstm(total: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    take, forget, new, show = total.chunk(4, dim=-1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(take) * torch.tanh(new)
    return torch.sigmoid(show) * torch.tanh(cell), cell


def _biases(weights: Mapping[str, Tensor], gates: tuple[str, ...], which: str, like: Tensor) -> Tensor:
    """``[B, 1, gates·h]``, zeros where the layer has none."""
    if f"{gates[0]}{which}_bias" not in weights:
        return like.new_zeros(like.shape[0], 1, like.shape[1])
    return torch.cat([weights[f"{gate}{which}_bias"] for gate in gates], dim=-1).unsqueeze(1)
