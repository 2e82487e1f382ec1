"""Described networks give what their modules give, in float64, all networks of a batch at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from specs import Describe, attention_spec, gru_spec
from torch import Tensor, nn

from wsl.batch import WeightBatch
from wsl.execute import activations_of, execute, execute_module
from wsl.spec import Connection, SpecError, WeightSpec, mlp_spec
from wsl.trace import trace

NETWORKS, COUNT = 3, 4


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30.0 * x)


class Plus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5


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


def networks_of(module: nn.Module, spec: WeightSpec) -> WeightBatch:
    """Rows with random values, variances positive."""
    batch = WeightBatch(spec, torch.randn(NETWORKS, spec.numel, 1, dtype=torch.float64) * 0.5)
    for tensor in spec.tensors:
        if "running_var" in tensor.name:
            batch[tensor.name].abs_().add_(0.1)
    return batch


def each_forward(module: nn.Module, batch: WeightBatch, inputs: Tensor) -> Tensor:
    """The oracle: load every row into the module and call it."""
    module = module.double().eval()
    outputs = []
    for row in range(len(batch)):
        module.load_state_dict(batch.state_dict(row), strict=False)
        outputs.append(module(inputs if inputs.shape[0] == COUNT else inputs[row]))
    return torch.stack(outputs).detach()


@pytest.mark.parametrize("name", list(CASES))
def test_the_spec_gives_what_the_module_gives(name: str) -> None:
    module, spec, inputs = CASES[name]()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    spec = WeightSpec.from_json(spec.to_json())  # from JSON alone
    batch = networks_of(module, spec)
    expected = each_forward(module, batch, inputs)
    assert expected.std() > 1e-3
    torch.testing.assert_close(execute(batch, inputs), expected, rtol=1e-10, atol=1e-12)
    alone = WeightBatch(spec, batch.values[1:2])
    torch.testing.assert_close(execute(alone, inputs), expected[1:2], rtol=1e-10, atol=1e-12)
    own = torch.stack([inputs] + [inputs.flip(0)] * (NETWORKS - 1))  # inputs of their own for each network
    torch.testing.assert_close(execute(batch, own), each_forward(module, batch, own), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["siren", "lenet", "residual", "separable", "gru", "lstm", "tokens", "attention"])
def test_traced_specs_give_what_the_module_gives(name: str) -> None:
    module, _, inputs = CASES[name]()
    spec = WeightSpec.from_json(trace(module, inputs).to_json())
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    batch = networks_of(module, spec)
    torch.testing.assert_close(execute(batch, inputs), each_forward(module, batch, inputs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "decompose"),
    [(name, None) for name in ("mlp", "residual", "attention", "gru")] + [("lenet", True), ("lstm", True)],
)
def test_the_module_gives_the_same(name: str, decompose: bool | None) -> None:
    module, spec, inputs = CASES[name]()
    inputs = inputs.double()
    batch = networks_of(module, spec)
    before = {n: t.clone() for n, t in module.state_dict().items()}
    outputs = execute_module(module, spec, batch, inputs, decompose=decompose)
    torch.testing.assert_close(outputs, execute(batch, inputs), rtol=1e-10, atol=1e-12)
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    own = torch.stack([inputs, inputs + 1, inputs - 1])
    outputs = execute_module(module, spec, batch, own, shared=False, decompose=decompose)
    torch.testing.assert_close(outputs, execute(batch, own), rtol=1e-10, atol=1e-12)


def test_modules_beyond_the_spec_run_with_the_module() -> None:
    """nn.TransformerEncoderLayer: the spec holds its tensors only, the module knows the rest; gradients flow."""
    module = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    d = Describe(module, 8, 8)
    for s in d.stored:
        d.tensor(s.name, " ".join(f"_{n}" for n in s.shape))
    spec = d.spec()
    batch = networks_of(module, spec)
    inputs = torch.randn(COUNT, 5, 8, dtype=torch.float64)
    values = batch.values.requires_grad_()
    outputs = execute_module(module, spec, batch.with_values(values), inputs)
    torch.testing.assert_close(outputs.detach(), each_forward(module, batch.with_values(values.detach()), inputs))
    (gradient,) = torch.autograd.grad(outputs.square().sum(), values)
    assert gradient.isfinite().all() and (gradient != 0).float().mean() > 0.8


@pytest.mark.parametrize("name", ["lenet", "residual", "gru", "attention"])
def test_gradients_reach_every_weight(name: str) -> None:
    module, spec, inputs = CASES[name]()
    batch = networks_of(module, spec)
    values = batch.values.requires_grad_()
    (gradient,) = torch.autograd.grad(execute(batch.with_values(values), inputs.double()).square().sum(), values)
    assert gradient.isfinite().all() and (gradient != 0).float().mean() > 0.8


def test_activations_by_hand() -> None:
    spec = mlp_spec([1, 2, 1])
    batch = WeightBatch(spec, torch.tensor([1.0, -1, 0, 1, 2, 3, 4]).reshape(1, 7, 1))
    values = activations_of(batch, torch.tensor([[2.0], [-3.0]]))
    assert values["input"].tolist() == [[[2], [-3]]]
    assert values["hidden1"].tolist() == [[[2, 0], [0, 4]]]
    assert values["output"].tolist() == [[[8], [16]]]


def test_reversed_and_started_recurrences() -> None:
    """A bidirectional layer is two connections; ``initial`` hands a state over."""
    module = nn.GRU(3, 5, batch_first=True).double()
    spec = gru_spec()
    inputs = torch.randn(COUNT, 6, 3, dtype=torch.float64)
    batch = networks_of(module, spec)
    (connection, _, head) = spec.connections
    backward = Connection("x", "h", "gru", connection.tensors, {"reverse": True})
    first = Connection("h", "last", "skip", {}, {"step": 0})
    states = activations_of(WeightBatch(spec.replace(connections=(backward, first, head)), batch.values), inputs)
    forward = activations_of(batch, inputs.flip(1))
    torch.testing.assert_close(states["h"], forward["h"].flip(2))
    torch.testing.assert_close(states["last"], forward["last"])


def test_time_first_sequences() -> None:
    spec = gru_spec()
    inputs = torch.randn(COUNT, 6, 3, dtype=torch.float64)
    batch = networks_of(GRU(), spec)
    first = Connection("x", "h", "gru", spec.connections[0].tensors, {"batch_first": False})
    turned = WeightBatch(spec.replace(connections=(first, *spec.connections[1:])), batch.values)
    torch.testing.assert_close(execute(turned, inputs.transpose(0, 1)), execute(batch, inputs))


def _with(spec: WeightSpec, **changes: object) -> WeightSpec:
    old = spec.connections[0]
    fields = {"source": old.source, "target": old.target, "kind": old.kind, "tensors": old.tensors,
              "attributes": old.attributes} | changes  # fmt: skip
    return spec.replace(connections=(Connection(**fields), *spec.connections[1:]))


def test_refusals_name_the_place() -> None:
    spec = mlp_spec([3, 4, 2])
    inputs = torch.randn(COUNT, 3)

    def run(spec: WeightSpec, inputs: Tensor = inputs, networks: int = 2) -> Tensor:
        return execute(WeightBatch(spec, torch.randn(networks, spec.numel, 1)), inputs)

    with pytest.raises(SpecError, match=r"'input' → 'hidden1' of kind 'unknown' \(roll\).*execute_module"):
        run(_with(spec, kind="unknown", attributes={"op": "roll"}))
    with pytest.raises(SpecError, match=r"'input' → 'hidden1' of kind 'linear' lacks 'weight'"):
        run(_with(spec, tensors={}))
    with pytest.raises(SpecError, match=r"'input' → 'hidden1' of kind 'norm' .*norm|norm of kind 'spectral'"):
        run(_with(spec, kind="norm", tensors={}, attributes={"norm": "spectral"}))
    with pytest.raises(SpecError, match=r"kind 'conv' does not fit"):
        run(_with(spec, kind="conv", attributes={"kernel": [3, 3]}), torch.randn(COUNT, 3, 1, 1))
    with pytest.raises(SpecError, match="not listed in the order of execution"):
        run(spec.replace(groups=(spec.groups[2], *spec.groups[:2])))
    with pytest.raises(SpecError, match="'hidden1' has no incoming connection"):
        run(spec.replace(connections=spec.connections[1:]))
    with pytest.raises(SpecError, match=r"vector inputs with 2 dimensions.*\[4, 3, 1, 1\]"):
        run(spec, torch.randn(COUNT, 3, 1, 1))
    with pytest.raises(SpecError, match=r"3 neurons.*\[4, 5\]"):
        run(spec, torch.randn(COUNT, 5))
    with pytest.raises(SpecError, match="inputs for 3 networks, but the batch has 2"):
        run(spec, torch.randn(3, COUNT, 3))
    with pytest.raises(SpecError, match="one channel can be run, this batch has 2"):
        execute(WeightBatch(spec, torch.randn(2, spec.numel, 2)), inputs)
    group = type(spec.groups[1])("hidden1", "hidden1", "unknown")
    with pytest.raises(SpecError, match="'hidden1': activation 'unknown' cannot be executed"):
        bare = spec.replace(labels=[type(x)(x.name, x.size, x.kind) for x in spec.labels])
        run(bare.replace(groups=(spec.groups[0], group, spec.groups[2])))
    with pytest.raises(SpecError, match=r"Sequential: 'seq.0.weight' should be \[4, 3\], is missing"):
        execute_module(nn.Sequential(nn.Linear(3, 2)), spec, WeightBatch(spec, torch.randn(1, spec.numel, 1)), inputs)
    kinds = [type(x)(x.name, x.size, "input" if x.kind == "input" else "output") for x in spec.labels]
    heads = spec.replace(labels=kinds, connections=(spec.connections[0], Connection("input", "output", "linear")))
    with pytest.raises(SpecError, match=r"one output group, this one has \['hidden1', 'output'\]"):
        run(heads)
    with pytest.raises(SpecError, match=r"inputs are given for \['other'\]"):
        activations_of(WeightBatch(spec, torch.randn(1, spec.numel, 1)), {"other": inputs})
