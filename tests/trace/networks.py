"""Small networks of every family that tracing must understand, with example inputs."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def images(channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(2, channels, size, size)


def tokens(vocabulary: int = 17, steps: int = 6) -> Tensor:
    return torch.randint(vocabulary, (3, steps))


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for d_in, d_out in pairwise(widths):
        layers += [nn.Linear(d_in, d_out), activation()]
    return nn.Sequential(*layers[:-1])


class Siren(nn.Module):
    """sin(30 (W x + b)) twice, a linear layer, + 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 8), nn.Linear(8, 9), nn.Linear(9, 1)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.sin(30.0 * layer(x))
        return self.layers[-1](x) + 0.5


class LeNet(nn.Module):
    """Two convolutions with tanh and average pooling, flatten, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3)
        self.fc1, self.fc2 = nn.Linear(6 * 4, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(torch.tanh(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 1)
        return self.fc2(F.leaky_relu(self.fc1(x.flatten(1)), 0.2))


class GlobalPoolNet(nn.Sequential):
    """The Small CNN Zoo's shape: convolutions, global average pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 5, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(5, 7, 3, padding=1, bias=False),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(7, 4),
        )


class BasicBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.extra, self.option = c_out - c_in, option
        if stride != 1 and option == "B":
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.extra and self.option == "A":
            half = self.extra // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))
        elif self.extra:
            x = self.shortcut(x)
        return F.relu(x + y)


class ResNet(nn.Module):
    """ResNet for CIFAR (He et al., 2016): 3 stages of ``blocks`` basic blocks; 3 blocks and width 16 is ResNet-20."""

    def __init__(self, blocks: int = 3, width: int = 16, option: str = "A") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        layers, c_in = [], width
        for stage in range(3):
            for block in range(blocks):
                c_out = width * 2**stage
                layers.append(BasicBlock(c_in, c_out, 2 if stage and not block else 1, option))
                c_in = c_out
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(c_in, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(F.relu(self.bn(self.conv(x))))
        return self.fc(x.mean((2, 3)))


class MobileNet(nn.Module):
    """An inverted residual: expand 1×1, depthwise 3×3, project 1×1, with batch norm and ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.block = nn.Sequential(
            nn.Conv2d(6, 12, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU6(),
            nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU6(),
            nn.Conv2d(12, 6, 1, bias=False),
            nn.BatchNorm2d(6),
        )
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class GroupedNet(nn.Module):
    """A convolution in groups between two plain ones (ResNeXt)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x))))).mean((2, 3))


class DenseBlock(nn.Module):
    """Each layer reads all before it, through a batch norm over the concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4 + 3 * k) for k in range(3)])
        self.convs = nn.ModuleList([nn.Conv2d(4 + 3 * k, 3, 3, padding=1, bias=False) for k in range(3)])
        self.head = nn.Linear(13, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.head(x.mean((2, 3)))


class UNet(nn.Module):
    """Down, up by a transposed convolution, and a skip by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.up, self.leave = nn.ConvTranspose2d(6, 5, 2, stride=2), nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.enter(x))
        y = F.relu(self.down(F.max_pool2d(x, 2)))
        return self.leave(torch.cat([x, F.relu(self.up(y))], 1))


class GroupNormNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 3)
        self.instance, self.head = nn.InstanceNorm2d(6, affine=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x)))
        return self.head(F.relu(self.instance(self.b(x))).mean((2, 3)))


class Recurrent(nn.Module):
    """An nn.RNN, nn.GRU or nn.LSTM and a linear layer on its last step."""

    def __init__(self, kind: type[nn.RNNBase], layers: int = 1, bidirectional: bool = False, **kwargs: object) -> None:
        super().__init__()
        self.rnn = kind(3, 5, layers, batch_first=True, bidirectional=bidirectional, **kwargs)  # type: ignore[arg-type]
        self.head = nn.Linear(10 if bidirectional else 5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Seq2Seq(nn.Module):
    """A GRU encoder whose last state starts a GRU decoder; both read one embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(17, 4)
        self.encoder, self.decoder = nn.GRU(4, 6, batch_first=True), nn.GRU(4, 6, batch_first=True)
        self.head = nn.Linear(6, 11)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        _, state = self.encoder(self.embedding(source))
        return self.head(self.decoder(self.embedding(target), state)[0])


class GPTBlock(nn.Module):
    """Pre-LN attention with fused qkv, then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.ln1(x)).split(d, dim=2)
        q, k, v = (z.view(b, t, self.heads, d // self.heads).transpose(1, 2) for z in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, d))
        return x + self.out(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


class GPT(nn.Module):
    """Token and position embeddings, blocks, and an output layer tied to the token embedding."""

    def __init__(self, blocks: int = 1, width: int = 12, heads: int = 3, vocabulary: int = 17) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(8, width)
        self.blocks = nn.ModuleList([GPTBlock(width, heads) for _ in range(blocks)])
        self.ln, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.wte(x) + self.wpe(torch.arange(x.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))


class ViT(nn.Module):
    """Patches by a convolution, class token, learned positions, attention with qkv viewed as (3, heads, …)."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.cls, self.positions = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 5, width))
        self.ln1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ln2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 20), nn.Linear(20, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions
        b, n, d = x.shape
        qkv = self.qkv(self.ln1(x)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + self.proj(y)
        x = x + self.fc2(F.gelu(self.fc1(self.ln2(x))))
        return self.head(x[:, 0])


class GatedMLP(nn.Module):
    """SwiGLU: W₃(silu(W₁x) · W₂x), then nn.GLU."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gate, self.up, self.down = (
            nn.Linear(4, 6),
            nn.Linear(6, 9),
            nn.Linear(6, 9),
            nn.Linear(9, 6),
        )
        self.norm, self.halves, self.head = nn.RMSNorm(6, eps=1e-6), nn.Linear(6, 14), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y = self.norm(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(F.glu(self.halves(x), -1))


class ActorCritic(nn.Module):
    """A shared trunk with a policy head and a value head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.actor, self.critic = mlp(6, 10, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.tanh(self.trunk(x))
        return self.actor(x).log_softmax(-1), self.critic(x)


class Gather(nn.Module):
    """Reads its hidden neurons in an order that depends on their values: no rule knows that."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = torch.gather(x, 1, torch.tensor([[3, 1, 2, 0, 4, 6, 5, 7]]).expand(len(x), -1))
        return self.c(torch.relu(self.b(x)))


class Projected(nn.Module):
    """An LSTM whose hidden state is a projection of its cell output, read at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 6, proj_size=4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class Tagger(nn.Module):
    """A bidirectional two-layer LSTM read at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 5, 2, batch_first=True, bidirectional=True), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class CrossAttention(nn.Module):
    """Queries from one sequence, keys and values from another (nn.MultiheadAttention)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.memory = nn.Linear(4, 8), nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 8))
        self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x, memory = self.enter(x), self.norm(self.memory(memory))
        return self.head(self.norm(x + self.attention(x, memory, memory, need_weights=False)[0]))
