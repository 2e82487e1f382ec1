"""Connections that mix or hand on channels: linear, embedding, parameter, multiply, skip, concat, slice.

Values are ``[B, N, *positions, C]``; B is 1 where all networks see the same. Weights are ``[B, …]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weights: Mapping[str, Tensor], outputs: int, spatial: Any = None) -> Tensor:
    """W·x + b at every position, or on the flattened feature map (channel-major) where ``spatial`` is given.

    Out axes come first, and neurons of several labels are one axis here: ``[B, a, b, i]`` is ``[B, a·b, i]``.
    """
    weight = weights["weight"].flatten(1).unflatten(1, (outputs, -1))
    bias = weights["bias"].flatten(1) if "bias" in weights else None
    if spatial is not None:
        x = x.movedim(-1, 2).flatten(2)
    networks, _, inputs = weight.shape
    rows = x.reshape(x.shape[0], -1, inputs)
    if x.shape[0] == 1 and networks > 1:  # shared inputs: one product for all networks
        y = (rows[0] @ weight.reshape(-1, inputs).mT).reshape(-1, networks, outputs).transpose(0, 1)
        y = y if bias is None else y + bias.unsqueeze(1)
    elif bias is None:
        y = torch.bmm(rows, weight.mT)
    else:
        y = torch.baddbmm(bias.unsqueeze(1), rows, weight.mT)
    return y.reshape(networks, *x.shape[1:-1], outputs)


def embedding(tokens: Tensor, weight: Tensor) -> Tensor:
    """Rows of the table ``[B, V, d]`` named by tokens ``[B, N, *positions]``."""
    weight = weight.flatten(2)
    if tokens.shape[0] == 1:
        return weight[:, tokens[0]]
    networks, vocabulary, width = weight.shape
    shift = torch.arange(networks, device=tokens.device) * vocabulary
    return weight.reshape(-1, width)[tokens + shift.reshape(-1, *(1 for _ in tokens.shape[1:]))]


def parameter(value: Tensor, others: Sequence[Tensor]) -> Tensor:
    """A learned vector ``[B, d]`` or table ``[B, K, d]``, the same for every input.

    Of a table of positions, a sequence of T ≤ K steps (the values that it is added to) takes the first T rows.
    """
    value = value.unsqueeze(1)
    steps = [x.shape[2] for x in others if x.dim() == value.dim() == 4]
    return value[:, :, : steps[0]] if steps else value


def multiply(x: Tensor, value: Tensor | None) -> Tensor:
    """x, or x times a learned vector ``[B, d]``."""
    return x if value is None else x * aligned(value.unsqueeze(1), x.dim())


def skip(x: Tensor, size: int, attributes: Mapping[str, Any]) -> Tensor:
    """The identity; option A: every ``spatial_stride``-th position, placed among zero channels at ``start``.

    ``step`` takes one position of a sequence (−1: the last) and hands it on without positions.
    """
    if "step" in attributes:
        return x.select(2, int(attributes["step"]))
    stride = attributes.get("spatial_stride", 1)
    rank = x.dim() - 3
    steps = [stride] * rank if isinstance(stride, int) else list(stride)
    for axis, step in enumerate(steps):
        if step > 1:
            x = x[(slice(None),) * (2 + axis) + (slice(None, None, step),)]
    return placed(x, size, int(attributes.get("start", 0)))


def concat(x: Tensor, size: int, attributes: Mapping[str, Any]) -> Tensor:
    """The source's channels at ``start`` among zeros; flattened first where ``spatial`` is given."""
    if "spatial" in attributes:
        x = x.movedim(-1, 2).flatten(2)
    return placed(x, size, int(attributes.get("start", 0)))


def placed(x: Tensor, size: int, start: int) -> Tensor:
    """x padded with zero channels to ``size``, its own from ``start`` on."""
    return x if x.shape[-1] == size else F.pad(x, (start, size - start - x.shape[-1]))


def aligned(x: Tensor, dims: int) -> Tensor:
    """``[B, N, C]`` as ``[B, N, 1, …, C]`` with as many dimensions as asked for."""
    missing = dims - x.dim()
    return x.reshape(*x.shape[:2], *(1 for _ in range(missing)), *x.shape[2:]) if missing > 0 else x
