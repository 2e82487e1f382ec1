"""Networks for the tests of execution: the module, its spec written by hand, inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from specs import Describe, attention_spec, gru_spec
from torch import Tensor, nn

from wsl.spec import WeightSpec, mlp_spec

NETWORKS, COUNT = 3, 4


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30.0 * x)


class Plus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5


class Flat(nn.Module):
    """An MLP that flattens its images."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(2 * 3 * 3, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(x.flatten(1))))


def mlp() -> tuple[nn.Module, WeightSpec, Tensor]:
    module = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 2))
    spec = mlp_spec([3, 7, 5, 2], "tanh")
    return module, _renamed(spec, ("0", "2", "4")), torch.randn(COUNT, 3)


def siren() -> tuple[nn.Module, WeightSpec, Tensor]:
    module = nn.Sequential(nn.Linear(2, 6), Sine(), nn.Linear(6, 6), Sine(), nn.Linear(6, 1), Plus())
    spec = mlp_spec([2, 6, 6, 1], "sine", {"omega": 30.0}, output_offset=0.5)
    return module, _renamed(spec, ("0", "2", "4")), torch.randn(COUNT, 2)


def _renamed(spec: WeightSpec, layers: tuple[str, ...]) -> WeightSpec:
    text = spec.to_json()
    for number, layer in enumerate(layers):
        text = text.replace(f"seq.{number}.", f"{layer}.")
    return WeightSpec.from_json(text)


def lenet() -> tuple[nn.Module, WeightSpec, Tensor]:
    """Conv with stride and padding, max and average pooling, flatten."""
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=1, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 5, (3, 2), stride=(2, 1), dilation=(1, 2)), nn.GELU(), nn.AvgPool2d(2, 1, padding=1),
        nn.Flatten(), nn.Linear(5 * 3 * 4, 3),
    )  # fmt: skip
    d = Describe(module, 2, 3)
    d.layer("0", "x", "a", "a x _9", kernel=[3, 3], padding=[1, 1], activation="relu")
    d.group("pooled", "a")
    d.connect("a", "pooled", "pool", op="max", kernel=[2, 2], stride=[2, 2])
    d.layer("3", "pooled", "b", "b a _6", kernel=[3, 2], stride=[2, 1], dilation=[1, 2], activation="gelu")
    d.group("averaged", "b")
    d.connect("b", "averaged", "pool", op="avg", kernel=[2, 2], stride=[1, 1], padding=[1, 1])
    d.layer("7", "averaged", "y", "y b _12", "linear", shape=(3, 5, 12), spatial=[3, 4])
    return module, d.spec(), torch.randn(COUNT, 2, 10, 10)


def global_pool() -> tuple[nn.Module, WeightSpec, Tensor]:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, bias=False), nn.LeakyReLU(0.2), nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3), nn.Softmax(dim=-1),
    )  # fmt: skip
    d = Describe(module, 1, 3)
    d.layer("0", "x", "a", "a x _9", kernel=[3, 3], stride=[2, 2])
    d.groups[-1] = type(d.groups[-1])("a", "a", "leaky_relu", {"slope": 0.2})
    d.layer("2", "a", "b", "b a _9", kernel=[3, 3])
    d.norm("3", "b", "normed", "b", "group", "silu", groups=2)
    d.group("pooled", "b")
    d.connect("normed", "pooled", "pool", op="global_avg")
    d.layer("7", "pooled", "y", "y b", "linear", activation="softmax")
    return module, d.spec(), torch.randn(COUNT, 1, 9, 9)


class Residual(nn.Module):
    """One block with BatchNorm, a strided option-A shortcut, and an identity residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv1, self.norm1 = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        inner = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        x = torch.relu(inner + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        x = x + self.mix(x)
        return self.head(x.mean(dim=(2, 3)))


def residual() -> tuple[nn.Module, WeightSpec, Tensor]:
    module = Residual()
    d = Describe(module, 3, 2)
    d.layer("stem", "x", "s", "s x _9", kernel=[3, 3], padding=[1, 1])
    d.norm("norm", "s", "sn", "s", "batch", "relu")
    d.layer("conv1", "sn", "m", "m s _9", kernel=[3, 3], padding=[1, 1], stride=[2, 2])
    d.norm("norm1", "m", "mn", "m", "batch", "relu")
    d.layer("conv2", "mn", "r", "r m _9", kernel=[3, 3], padding=[1, 1])
    d.norm("norm2", "r", "out", "r", "batch", "relu")
    d.connect("sn", "out", "skip", spatial_stride=[2, 2], start=2)
    d.layer("mix", "out", "mixed", "r r2 _1", kernel=[1, 1])
    d.connect("out", "mixed", "skip")
    d.group("pooled", "r")
    d.connect("mixed", "pooled", "pool", op="global_avg")
    d.layer("head", "pooled", "y", "y r", "linear")
    return module, d.spec(), torch.randn(COUNT, 3, 6, 6)


def separable() -> tuple[nn.Module, WeightSpec, Tensor]:
    """Depthwise, pointwise, grouped and transposed convolutions; the output is an image."""
    module = nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.ReLU6(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU(),
        nn.Conv2d(6, 4, 3, groups=2), nn.Tanh(), nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1),
        nn.Upsample(size=(20, 20), mode="bilinear"),
    )  # fmt: skip
    d = Describe(module, 2, 2)
    d.layer("0", "x", "a", "a x _1", kernel=[1, 1], activation="relu6")
    d.layer("2", "a", "b", "a _9", "depthwise", kernel=[3, 3], padding=[1, 1], activation="relu")
    d.label("channel", 4)
    d.layer("4", "b", "c", "g o i _9", shape=(2, 2, 3, 9), label="channel", kernel=[3, 3], groups=2, activation="tanh")
    stored = next(s for s in d.stored if s.name == "6.weight")
    cells = d.tensor("6.weight", "channel y _9")  # stored [in, out, 3, 3]
    tensor = d.tensors.pop()
    order = (1, 0, 2)
    fields = {k: tuple(getattr(tensor, k)[i] for i in order) for k in ("shape", "strides", "axes", "scaling")}
    d.tensors.append(type(tensor)(cells, "weight", stored.offset, **fields))
    d.group("up", "y")
    bias = d.tensor("6.bias", "y")
    attributes = {"kernel": [3, 3], "stride": [2, 2], "padding": [1, 1], "output_padding": [1, 1], "transposed": True}
    d.connect("c", "up", "conv", {"weight": cells, "bias": bias}, **attributes)
    d.group("y", "y")
    d.connect("up", "y", "upsample", size=[20, 20], mode="bilinear")
    return module, d.spec(), torch.randn(COUNT, 2, 8, 8)


class Recurrent(nn.Module):
    """A recurrent layer, a bidirectional one where asked, and a head on the last step."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.rnn = kind(3, 5, batch_first=True, **options)
        self.head = nn.Linear(self.rnn.proj_size or 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


GATES = {"rnn": [""], "gru": ["reset", "update", "new"], "lstm": ["input", "forget", "cell", "output"]}


def recurrent(kind: str, **options: object) -> tuple[nn.Module, WeightSpec, Tensor]:
    module = Recurrent({"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[kind], **options)
    d = Describe(module, 3, 2)
    state = "p" if module.rnn.proj_size else "h"
    parts = {}
    for number, gate in enumerate(GATES[kind]):
        for which, stored, axes in (
            ("input", "weight_ih_l0", "h x"), ("hidden", "weight_hh_l0", f"h {state}"),
            ("input_bias", "bias_ih_l0", "h"), ("hidden_bias", "bias_hh_l0", "h"),
        ):  # fmt: skip
            if f"rnn.{stored}" in {s.name for s in d.stored}:
                name = f"{gate}_{which}" if gate else which
                parts[name] = d.tensor(f"rnn.{stored}", axes, part=number, parts=len(GATES[kind]))
    if module.rnn.proj_size:
        parts["projection"] = d.tensor("rnn.weight_hr_l0", "p h")
    d.group("h", state)
    d.connect("x", "h", kind, parts, **({"nonlinearity": "relu"} if options.get("nonlinearity") else {}))
    d.group("last", state)
    d.connect("h", "last", "skip", step=-1)
    d.layer("head", "last", "y", f"y {state}", "linear")
    return module, d.spec(), torch.randn(COUNT, 6, 3)


class Tokens(nn.Module):
    """Embedding, positions (more than steps), layer norm, gates, and concatenation of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.positions = nn.Parameter(torch.randn(7, 4))
        self.norm = nn.LayerNorm(4)
        self.gate, self.up = nn.Linear(4, 6), nn.Linear(4, 6)
        self.head = nn.Linear(10, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.embedding(tokens) + self.positions[: tokens.shape[1]])
        return self.head(torch.cat([x, F.silu(self.gate(x)) * self.up(x)], dim=-1))


def tokens() -> tuple[nn.Module, WeightSpec, Tensor]:
    module = Tokens()
    d = Describe(module, 9, 3)
    table = d.tensor("embedding.weight", "x d")
    positions = d.tensor("positions", "_t d")
    d.group("e", "d")
    d.connect("x", "e", "embedding", {"weight": table})
    d.connect("e", "e", "parameter", {"value": positions})
    d.norm("norm", "e", "n", "d", "layer")
    d.layer("gate", "n", "gate", "m d", "linear", activation="silu")
    d.layer("up", "n", "up", "m d", "linear")
    d.group("product", "m")
    d.connect("gate", "product", "multiply")
    d.connect("up", "product", "multiply")
    d.label("both", 10)
    d.group("both", "both")
    d.connect("n", "both", "concat", start=0)
    d.connect("product", "both", "concat", start=4)
    d.layer("head", "both", "y", "y both", "linear")
    return module, d.spec(), torch.randint(9, (COUNT, 5))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GRU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])


CASES = {
    "mlp": mlp,
    "siren": siren,
    "lenet": lenet,
    "global_pool": global_pool,
    "residual": residual,
    "separable": separable,
    "elman": lambda: recurrent("rnn"),
    "elman_relu": lambda: recurrent("rnn", nonlinearity="relu"),
    "gru": lambda: (GRU(), gru_spec(), torch.randn(COUNT, 6, 3)),
    "gru_without_bias": lambda: recurrent("gru", bias=False),
    "lstm": lambda: recurrent("lstm"),
    "lstm_projected": lambda: recurrent("lstm", proj_size=2),
    "tokens": tokens,
    "attention": lambda: (Attention(), attention_spec(), torch.randn(COUNT, 5, 6)),
}
