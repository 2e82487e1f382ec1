"""Specs of every kind that graphs must understand, traced once, and random networks of them."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent / "trace"))

import networks as nets

from wsl.batch import WeightBatch
from wsl.spec import WeightSpec, mlp_spec
from wsl.trace import trace


def _traced(name: str) -> tuple[nn.Module, Any]:
    image, tokens = nets.images, nets.tokens
    sequence = torch.randn(2, 4, 3)
    match name:
        case "lenet":
            return nets.LeNet(), image(1, 8)
        case "seq2seq":
            return nets.Seq2Seq(), (tokens(), tokens())
        case "lstm":
            return nets.Recurrent(nn.LSTM), sequence
        case "bidirectional_gru":
            return nets.Recurrent(nn.GRU, 2, True), sequence
        case "projected_lstm":
            return nets.Projected(), sequence
        case "cross_attention":
            return nets.CrossAttention(), (torch.randn(2, 5, 4), torch.randn(2, 3, 6))
        case "gpt":
            return nets.GPT(), tokens()
        case "gated":
            return nets.GatedMLP(), torch.randn(2, 4)
        case "two_heads":
            return nets.ActorCritic(), torch.randn(2, 6)
        case "unknown":
            return nets.Gather(), torch.randn(3, 4)
        case "resnet_a" | "resnet_b":
            return nets.ResNet(1, 4, name[-1].upper()), image()
        case _:
            return _IMAGES[name](), image()


_IMAGES = {
    "mobile": nets.MobileNet,
    "grouped": nets.GroupedNet,
    "dense": nets.DenseBlock,
    "unet": nets.UNet,
    "group_norm": nets.GroupNormNet,
    "vit": nets.ViT,
}
NAMES = (
    "mlp", "lenet", *_IMAGES, "resnet_a", "resnet_b", "gated", "two_heads", "unknown", "lstm", "bidirectional_gru",
    "projected_lstm", "seq2seq", "gpt", "cross_attention",
)  # fmt: skip


@cache
def spec_named(name: str) -> WeightSpec:
    """One of NAMES."""
    if name == "mlp":
        return mlp_spec([2, 5, 4, 3], "tanh")
    torch.manual_seed(0)
    return trace(*_traced(name))


def random_batch(spec: WeightSpec, size: int = 3, seed: int = 0) -> WeightBatch:
    """Networks in float64; variances are positive."""
    values = torch.randn(size, spec.numel, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for tensor in (t for t in spec.tensors if t.role == "buffer"):
        index = torch.from_numpy(tensor.index().ravel())
        values[:, index] = values[:, index].abs() + 0.1
    return WeightBatch(spec, values * 0.5)
