"""Described networks give what their modules give, in float64, all networks of a batch at once."""

from __future__ import annotations

import pytest
import torch
from execute_networks import (
    CASES,
    COUNT,
    GRU,
    NETWORKS,
    Flat,
)
from specs import Describe, gru_spec
from torch import Tensor, nn

from wsl.batch import WeightBatch
from wsl.execute import activations_of, execute, execute_module
from wsl.spec import Connection, SpecError, WeightSpec, mlp_spec
from wsl.trace import trace


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


def test_images_that_are_flattened_first() -> None:
    module, images = Flat(), torch.randn(COUNT, 2, 3, 3, dtype=torch.float64)
    spec = trace(module, images[:2].float())
    batch = networks_of(module, spec)
    expected = each_forward(module, batch, images)
    torch.testing.assert_close(execute(batch, images), expected)
    torch.testing.assert_close(execute(batch, images.flatten(1)), expected)
    own = torch.stack([images] * NETWORKS)
    torch.testing.assert_close(execute(batch, own), expected)
    with pytest.raises(SpecError, match="dimensions"):
        execute(batch, images[:, :1])


def test_networks_are_run_in_full_precision_under_autocast() -> None:
    """What they answer is what the reader learns from: it is not to depend on the reader's precision."""
    spec = mlp_spec([2, 16, 16, 1], "sine", {"omega": 30.0})
    batch, inputs = WeightBatch(spec, torch.randn(3, spec.numel, 1) * 0.2), torch.rand(COUNT, 2)
    expected = execute(batch, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(execute(batch, inputs), expected)
        low = batch.with_values(batch.values.bfloat16())  # of an editor
        assert torch.equal(execute(low, inputs), execute(low.with_values(low.values.float()), inputs))


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
