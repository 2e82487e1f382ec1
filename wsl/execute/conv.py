"""Connections over positions: conv, transposed and depthwise conv, pooling, upsampling.

The networks of a batch are folded into the groups of one convolution. Values are ``[B, N, *positions, C]``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from wsl.execute.linear import aligned
from wsl.spec import SpecError

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
POOL: dict[str, dict[int, Any]] = {
    "max": {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d},
    "avg": {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d},
    "adaptive_avg": {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d},
    "adaptive_max": {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d},
}


def conv(
    x: Tensor,
    weights: Mapping[str, Tensor],
    attributes: Mapping[str, Any],
    outputs: int,
    depthwise: bool = False,
    in_first: bool = False,
) -> Tensor:
    """Convolution with weight ``[B, o, i, K]``, ``[B, g, o, i, K]`` (groups) or ``[B, c, K]`` (depthwise).

    Out axes come first, then in axes, then cells; neurons of several labels are one axis here. ``in_first``: a
    transposed convolution's weight is ``[B, i, o, K]`` or ``[B, g, i, o, K]``, as PyTorch stores it.
    """
    kernel = list(attributes["kernel"])
    rank, groups = len(kernel), outputs if depthwise else int(attributes.get("groups", 1))
    networks = weights["weight"].shape[0]
    x = aligned(x, 3 + rank).movedim(-1, 2)
    options = {
        name: _sizes(attributes.get(name, default), rank)
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    }
    bias = weights["bias"].reshape(-1) if "bias" in weights else None
    if attributes.get("transposed", False):
        if in_first:
            cells = weights["weight"].reshape(-1, outputs // groups, *kernel)
        else:
            cells = weights["weight"].reshape(networks, groups, outputs // groups, -1, math.prod(kernel))
            cells = cells.transpose(2, 3).reshape(-1, outputs // groups, *kernel)
        options["output_padding"] = _sizes(attributes.get("output_padding", 0), rank)
        y = TRANSPOSED[rank](_folded(x, networks), cells, bias, groups=networks * groups, **options)
    else:
        cells = weights["weight"].reshape(networks * outputs, -1, *kernel)
        if x.shape[0] == 1 and groups == 1:  # shared inputs: the networks' kernels are one wide layer
            y = CONV[rank](x[0], cells, bias, **options)
        else:
            y = CONV[rank](_folded(x, networks), cells, bias, groups=networks * groups, **options)
    y = y.reshape(y.shape[0], networks, outputs, *y.shape[2:])
    return y.transpose(0, 1).movedim(2, -1)


def pool(x: Tensor, attributes: Mapping[str, Any]) -> Tensor:
    """Pooling over positions; ``global_avg`` leaves no positions."""
    op, rank = attributes["op"], x.dim() - 3
    if op == "global_avg":
        return x.flatten(2, -2).mean(dim=2) if rank else x
    if op not in POOL:
        raise SpecError(f"pooling of kind {op!r} cannot be executed; known: {sorted(POOL)}, global_avg")
    images = x.movedim(-1, 2).flatten(0, 1)
    if op.startswith("adaptive"):
        pooled = POOL[op][rank](images, _sizes(attributes["size"], rank))
    else:
        kernel = _sizes(attributes["kernel"], rank)
        options: dict[str, Any] = {"padding": _sizes(attributes.get("padding", 0), rank)}
        options["ceil_mode"] = bool(attributes.get("ceil", False))
        if op == "avg":
            options["count_include_pad"] = bool(attributes.get("count_include_pad", True))
        elif "dilation" in attributes:
            options["dilation"] = _sizes(attributes["dilation"], rank)
        pooled = POOL[op][rank](images, kernel, _sizes(attributes.get("stride", kernel), rank), **options)
    return pooled.unflatten(0, x.shape[:2]).movedim(2, -1)


def upsample(x: Tensor, attributes: Mapping[str, Any]) -> Tensor:
    """Interpolation to ``size``."""
    mode = attributes.get("mode", "nearest")
    corners = {"align_corners": bool(attributes.get("align_corners", False))} if mode.endswith("linear") else {}
    images = x.movedim(-1, 2).flatten(0, 1)
    resized = F.interpolate(images, size=_sizes(attributes["size"], x.dim() - 3), mode=mode, **corners)
    return resized.unflatten(0, x.shape[:2]).movedim(2, -1)


def _folded(x: Tensor, networks: int) -> Tensor:
    """``[B, N, C, *positions]`` as ``[N, B·C, *positions]``."""
    return x.expand(networks, *x.shape[1:]).transpose(0, 1).flatten(1, 2)


def _sizes(value: int | str | Sequence[int], rank: int) -> Any:
    return [value] * rank if isinstance(value, int) else value if isinstance(value, str) else list(value)
