"""Operations that fewer networks use: what is shared stays sound, and what cannot be shared is frozen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import GPT, ResNet, tokens
from torch import Tensor, nn

from wsl.trace import trace, trace_report

P, SCALE, SIGN = "permutation", "scaling", "sign"


class ChannelShuffle(nn.Module):
    """ShuffleNet: channels of two groups are interleaved between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        x = x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        return self.c(x).mean((2, 3))


class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(F.pixel_shuffle(self.b(F.relu(self.a(x))), 2)))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up, self.c = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(4, 8), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return self.c(x * gate[:, :, None, None]).mean((2, 3))


class Cells(nn.Module):
    """GRU and LSTM cells in a Python loop."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.lstm, self.head = nn.GRUCell(3, 5), nn.LSTMCell(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, state = x.new_zeros(len(x), 5), (x.new_zeros(len(x), 4), x.new_zeros(len(x), 4))
        for step in range(x.shape[1]):
            h = self.gru(x[:, step], h)
            state = self.lstm(h, state)
        return self.head(state[0])


class LearnedState(nn.Module):
    """Both layers of a GRU start from one learned tensor, which ties them."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.head = nn.Parameter(torch.randn(2, 1, 5)), nn.Linear(5, 2)
        self.gru = nn.GRU(3, 5, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        steps, last = self.gru(x, self.start.expand(-1, len(x), -1).contiguous())
        return self.head(last[-1] + steps.mean(1))


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.bias = nn.Linear(6, 4), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.encode(x)), self.encode.weight.t(), self.bias)


class Causal(nn.Module):
    """A temporal convolution padded on one side, a learned PReLU, the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.slope = nn.Conv1d(3, 6, 3, dilation=2), nn.Conv1d(6, 6, 3, padding=1), nn.PReLU(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.a(F.pad(x, (4, 0))))
        return self.head((x + F.elu(self.b(x)))[:, :, -1])


class HeadsByEinsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.q, self.k = nn.Parameter(torch.randn(2, 4, 8)), nn.Parameter(torch.randn(2, 4, 8))
        self.v, self.o = nn.Parameter(torch.randn(2, 5, 8)), nn.Parameter(torch.randn(8, 2, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        q, k, v = (torch.einsum("btd,hkd->bhtk", x, w) for w in (self.q, self.k, self.v))
        mixed = torch.einsum("bhts,bhsv->bthv", torch.einsum("bhtk,bhsk->bhts", q, k).softmax(-1), v)
        return self.head(x + torch.einsum("bthv,dhv->btd", mixed, self.o))


class MaskedScores(nn.Module):
    """Attention by hand, with learned relative positions and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out, self.head = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.relative = nn.Parameter(torch.randn(2, 5, 5))
        self.register_buffer("mask", torch.tril(torch.ones(5, 5)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        q, k, v = (m(x).unflatten(-1, (2, 4)).transpose(1, 2) for m in (self.q, self.k, self.v))
        scores = (q @ k.transpose(-1, -2) / 2 + self.relative).masked_fill(self.mask == 0, float("-inf"))
        return self.head(x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))


class Rotary(nn.Module):
    """Rotary positions pair the channels of queries and keys: these are frozen, heads and values are not."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8, bias=False) for _ in range(4))

    @staticmethod
    def rotated(x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2])[:, None] / 10.0 ** torch.arange(2)
        cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        q, k, v = (m(x).unflatten(-1, (2, 4)).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v)
        return self.head(x + self.o(y.transpose(1, 2).flatten(2)))


class Mixer(nn.Module):
    """MLP-Mixer: one layer mixes tokens, the next channels."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head, self.norm = nn.Linear(4, 8), nn.Linear(8, 3), nn.LayerNorm(8)
        self.t1, self.t2, self.c1, self.c2 = nn.Linear(6, 10), nn.Linear(10, 6), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + self.t2(F.gelu(self.t1(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        return self.head((x + self.c2(F.gelu(self.c1(x)))).mean(1))


class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).sort(-1).values)


CASES = {
    "channel-shuffle": (ChannelShuffle(), (2, 3, 5, 5), [(2, P), (4, P, SCALE), (4, P, SCALE)]),
    "pixel-shuffle": (PixelShuffle(), (2, 3, 4, 4), [(8, P, SCALE)]),
    "squeeze-excite": (SqueezeExcite(), (2, 3, 5, 5), [(8, P), (4, P, SCALE)]),
    "cells": (Cells(), (2, 3, 3), [(5, P, SIGN), (4, P, SIGN)]),
    "learned-state": (LearnedState(), (2, 4, 3), [(5, P, SIGN)]),
    "tied-autoencoder": (TiedAutoencoder(), (4, 6), [(4, P)]),
    "causal": (Causal(), (2, 3, 7), [(6, P)]),
    "einsum-heads": (
        HeadsByEinsum(),
        (2, 5, 3),
        [(2, P), (4, P, SCALE, SIGN), (5, P, SCALE, SIGN), (8, P, SCALE, SIGN)],
    ),
    "masked-scores": (
        MaskedScores(),
        (2, 5, 3),
        [(2, P), (4, P, SCALE, SIGN), (4, P, SCALE, SIGN), (8, P, SCALE, SIGN)],
    ),
    "rotary": (Rotary(), (2, 5, 3), [(2, P), (4, P, SCALE, SIGN), (8, P, SCALE, SIGN)]),
    "mixer": (Mixer(), (2, 6, 4), [(8, P), (10, P), (12, P)]),
    "sort": (Sorted(), (4, 3), []),
}


@pytest.mark.parametrize("name", CASES)
def test_sound_and_as_much_shared_as_expected(name: str) -> None:
    network, shape, expected = CASES[name]
    report = trace_report(network, torch.randn(shape))
    hidden = [(label.size, *label.symmetries) for label in report.spec.labels if label.kind == "hidden"]
    assert sorted(hidden) == sorted(expected)
    assert report.spec.verified
    assert {t for c in report.spec.connections for t in c.tensors.values()} == set(report.spec.tensor)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["A", "B"])
def test_resnet_20_at_its_published_size(option: str) -> None:
    spec = trace(ResNet(option=option), torch.randn(2, 3, 32, 32))
    hidden = [label.size for label in spec.labels if label.kind == "hidden"]
    streams = [8, 8, 16, 16] if option == "A" else [32, 64]  # option A: the zeros around each smaller stream
    assert sorted(hidden) == sorted([16, *[16] * 3, *[32] * 3, *[64] * 3, *streams])
    assert all(SCALE in label.symmetries for label in spec.labels if label.kind == "hidden")


@pytest.mark.slow
def test_a_transformer_of_12_layers() -> None:
    spec = trace(GPT(12, 48, 4, 50), tokens())
    hidden = [label.size for label in spec.labels if label.kind == "hidden"]
    assert sorted(hidden) == sorted([48, *[192, 4, 12, 12] * 12])
    assert sum(c.kind == "attention" for c in spec.connections) == 12
