"""Multi-head attention on tokens ``[B, N, *positions, d]``; heads and channels are axes of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(x: Tensor, memory: Tensor, weights: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> Tensor:
    """Σ_heads O·softmax(s·q kᵀ)·v with q from ``x``, k and v from ``memory``; s is ``scale``, by default k^(−1/2)."""
    networks = weights["query"].shape[0]
    queries, keys, values = (
        _heads(source.expand(networks, *source.shape[1:]).flatten(2, -2), weights[part], weights.get(f"{part}_bias"))
        for source, part in ((x, "query"), (memory, "key"), (memory, "value"))
    )
    scale = attributes.get("scale")
    mixed = F.scaled_dot_product_attention(
        queries, keys, values, is_causal=bool(attributes.get("causal", False)), scale=scale
    )
    y = torch.einsum("bnhtv,bdhv->bntd", mixed, weights["output"])
    if "output_bias" in weights:
        y = y + weights["output_bias"][:, None, None]
    return y.reshape(networks, *x.shape[1:-1], -1)


def _heads(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``[B, N, T, d]`` and ``[B, H, k, d]`` → ``[B, N, H, T, k]``."""
    y = torch.einsum("bntd,bhkd->bnhtk", tokens, weight)
    return y if bias is None else y + bias[:, None, :, None]
