"""Traced specs: the neurons found, their symmetries and exponents, and what is reported as free or frozen.

``trace`` itself checks every spec in float64 on the module; the tables below were worked out by hand.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import networks as n
import pytest
import torch
from torch import nn

from wsl.batch import WeightBatch
from wsl.execute import execute
from wsl.spec import SpecError, WeightSpec, mlp_spec
from wsl.trace import TraceReport, trace, trace_report
from wsl.verify import random_weights, run_of_module, verify

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
P, SCALE, SIGN, PHASE = "permutation", "scaling", "sign", "phase"

torch.manual_seed(0)
#: network → (hidden labels: size and symmetries, in order; free directions)
EXPECTED: dict[str, tuple[nn.Module, Any, list[tuple[Any, ...]], set[tuple[str, int]]]] = {
    "mlp": (n.mlp(3, 5, 6, 2), torch.randn(4, 3), [(5, P, SCALE), (6, P, SCALE)], set()),
    "mlp-tanh": (n.mlp(3, 5, 2, activation=nn.Tanh), torch.randn(4, 3), [(5, P, SIGN)], set()),
    "mlp-gelu": (n.mlp(3, 5, 2, activation=nn.GELU), torch.randn(4, 3), [(5, P)], set()),
    "siren": (n.Siren(), torch.randn(4, 2), [(8, P, SIGN, PHASE), (9, P, SIGN, PHASE)], set()),
    "lenet": (n.LeNet(), n.images(1), [(4, P, SIGN), (6, P, SCALE), (12, P, SCALE)], set()),
    "global-pool": (n.GlobalPoolNet(), n.images(1), [(5, P, SCALE), (7, P, SCALE)], set()),
    "resnet-option-a": (
        n.ResNet(1, 4, "A"),
        n.images(),
        [(s, P, SCALE) for s in (4, 4, 8, 2, 2, 16, 4, 4)],  # stage 2 is (2, stage 1, 2), stage 3 (4, stage 2, 4)
        set(),
    ),
    "resnet-option-b": (n.ResNet(1, 4, "B"), n.images(), [(s, P, SCALE) for s in (4, 4, 8, 8, 16, 16)], set()),
    "mobilenet": (n.MobileNet(), n.images(), [(6, P, SCALE, SIGN), (12, P)], set()),
    "grouped": (n.GroupedNet(), n.images(), [(4, P), (2, P, SCALE), (3, P, SCALE)], set()),
    "densenet": (
        n.DenseBlock(),
        n.images(),
        [(4, P, SCALE), (3, P, SCALE), (3, P, SCALE), (3, P, SCALE, SIGN)],
        set(),
    ),
    "unet": (n.UNet(), n.images(), [(4, P, SCALE), (6, P, SCALE), (5, P, SCALE)], set()),
    "group-norm": (n.GroupNormNet(), n.images(), [(2, P), (4, P), (6, P)], {("b.bias", 0)}),
    "rnn": (n.Recurrent(nn.RNN), torch.randn(2, 4, 3), [(5, P, SIGN)], set()),
    "rnn-relu": (n.Recurrent(nn.RNN, nonlinearity="relu"), torch.randn(2, 4, 3), [(5, P, SCALE)], set()),
    "gru-2": (n.Recurrent(nn.GRU, 2), torch.randn(2, 4, 3), [(5, P, SIGN), (5, P, SIGN)], set()),
    "lstm-projected": (
        n.Projected(),
        torch.randn(2, 4, 3),
        [(4, P, SCALE, SIGN), (6, P)],
        set(),
    ),
    "lstm-bidirectional": (n.Tagger(), torch.randn(2, 4, 3), [(5, P, SIGN)] * 4, set()),
    "seq2seq": (n.Seq2Seq(), (n.tokens(), n.tokens()), [(4, P, SCALE, SIGN), (6, P, SIGN)], set()),
    "encoder-layer": (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        torch.randn(2, 5, 8),
        [(16, P, SCALE), (2, P), (4, P, SCALE, SIGN), (4, P, SCALE, SIGN)],
        {("self_attn.in_proj_bias[8:16]", 0), ("self_attn.in_proj_bias[8:16]", 1)},
    ),
    "encoder-layer-pre-norm": (
        nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, activation="gelu"),
        torch.randn(5, 2, 8),
        [(16, P), (2, P), (4, P, SCALE, SIGN), (4, P, SCALE, SIGN)],
        {("self_attn.in_proj_bias[8:16]", 0), ("self_attn.in_proj_bias[8:16]", 1)},
    ),
    "gpt": (
        n.GPT(),
        n.tokens(),
        [(12, P), (48, P), (3, P), (4, P, SCALE, SIGN), (4, P, SCALE, SIGN)],
        {("blocks.0.qkv.bias[12:24]", 0), ("blocks.0.qkv.bias[12:24]", 1)},
    ),
    "vit": (
        n.ViT(),
        n.images(),
        [(8, P), (20, P), (2, P), (4, P, SCALE, SIGN), (4, P, SCALE, SIGN)],
        {("qkv.bias[8:16]", 0), ("qkv.bias[8:16]", 1)},
    ),
    "cross-attention": (
        n.CrossAttention(),
        (torch.randn(2, 3, 4), torch.randn(2, 5, 6)),
        [(8, P), (7, P, SCALE, SIGN), (2, P), (4, P, SCALE, SIGN), (4, P, SCALE, SIGN)],
        {("attention.in_proj_bias[8:16]", 0), ("attention.in_proj_bias[8:16]", 1)},
    ),
    "gates": (n.GatedMLP(), torch.randn(3, 4), [(6, P, SIGN), (9, P), (7, P)], set()),
    "actor-critic": (n.ActorCritic(), torch.randn(3, 6), [(10, P, SCALE), (8, P, SIGN)], set()),
    "unknown-operation": (n.Gather(), torch.randn(3, 4), [(7, P, SCALE)], set()),
}

#: networks with two outputs, a class token, or an operation that nothing but the module can run
NOT_FROM_SPEC = {"actor-critic", "vit", "unknown-operation"}


@pytest.fixture(scope="module")
def reports() -> dict[str, TraceReport]:
    return {}


def report_of(name: str, reports: dict[str, TraceReport]) -> TraceReport:
    if name not in reports:
        torch.manual_seed(0)
        reports[name] = trace_report(*EXPECTED[name][:2])
    return reports[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_labels_symmetries_and_free_directions(name: str, reports: dict[str, TraceReport]) -> None:
    report, expected, free = report_of(name, reports), EXPECTED[name][2], EXPECTED[name][3]
    spec = report.spec
    print(f"{name}: {spec}", *spec.labels, *spec.tensors, *spec.connections, sep="\n  ")  # shown by pytest -s
    hidden = [(label.size, *label.symmetries) for label in spec.labels if label.kind == "hidden"]
    assert spec.verified
    assert hidden == expected, spec.labels
    assert {(f.tensor, f.axis) for f in report.free} == free
    assert WeightSpec.from_json(spec.to_json()) == spec
    used = {tensor for c in spec.connections for tensor in c.tensors.values()}
    assert used == set(spec.tensor), "every tensor is on a connection"


@pytest.mark.parametrize("name", ["mlp", "resnet-option-a", "gru-2", "gpt", "unet", "group-norm"])
def test_a_missed_tie_is_noticed(name: str, reports: dict[str, TraceReport]) -> None:
    """Negative control: give one axis of one label a label of its own, and the check must fail."""
    network, inputs, *_ = EXPECTED[name]
    spec = report_of(name, reports).spec
    for label in spec.labels_with(P):
        tensor = next(t for t in spec.tensors if label.name in t.axes)
        axes = tuple("torn" if axis == label.name else axis for axis in tensor.axes)
        torn = spec.replace(
            tensors=[t if t.name != tensor.name else _with(t, axes=axes) for t in spec.tensors],
            labels=[*spec.labels, _with(label, name="torn", symmetries=(P,))],
        )
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        with pytest.raises(SpecError, match="torn|" + label.name):
            verify(torn, inputs=arguments, module=network)


@pytest.mark.parametrize(("name", "symmetry"), [("mlp", SIGN), ("mlp-tanh", SCALE), ("resnet-option-b", SIGN)])
def test_a_false_symmetry_is_noticed(name: str, symmetry: str, reports: dict[str, TraceReport]) -> None:
    network, inputs, *_ = EXPECTED[name]
    spec = report_of(name, reports).spec
    labels = [_with(la, symmetries=(P, symmetry)) if la.kind == "hidden" else la for la in spec.labels]
    groups = [_with(g, activation="identity", parameters={}) for g in spec.groups]  # the spec would refuse the claim
    with pytest.raises(SpecError, match=symmetry):
        verify(spec.replace(labels=labels, groups=groups), inputs=(inputs,), module=network)


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - NOT_FROM_SPEC))
def test_the_spec_alone_runs_the_network(name: str, reports: dict[str, TraceReport]) -> None:
    """Connections and attributes are right: the executor and the module agree on random weights."""
    network, inputs, *_ = EXPECTED[name]
    spec = report_of(name, reports).spec
    batch = random_weights(spec, network, torch.Generator().manual_seed(1))
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    expected = run_of_module(network, arguments, {})(batch)[0]
    doubles = [x.double() if x.is_floating_point() else x for x in arguments]
    groups = [g.name for g in spec.groups_of_kind("input") if not spec.incoming(g.name)]
    given = dict(zip(groups, doubles, strict=False)) if len(doubles) > 1 else doubles[0]
    result = execute(batch, given)[0]
    assert (result - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_what_the_spec_cannot_run_is_named(reports: dict[str, TraceReport]) -> None:
    spec = report_of("unknown-operation", reports).spec
    with pytest.raises(SpecError, match="gather"):
        execute(WeightBatch(spec, torch.randn(1, spec.numel, 1)), torch.randn(3, 4))


def test_exponents_of_batch_norm_undo_a_factor_exactly(reports: dict[str, TraceReport]) -> None:
    spec = report_of("resnet-option-b", reports).spec
    powers = {t.name: t.scaling for t in spec.tensors if t.name.startswith(("layers.0.conv1", "layers.0.bn1"))}
    assert powers == {
        "layers.0.conv1.weight": (1, -1, 0),
        "layers.0.bn1.weight": (0,),
        "layers.0.bn1.bias": (1,),
        "layers.0.bn1.running_mean": (1,),
        "layers.0.bn1.running_var": (0,),
    }


def test_gates_of_a_gru_are_tensors_of_their_own(reports: dict[str, TraceReport]) -> None:
    spec = report_of("gru-2", reports).spec
    (first,) = (c for c in spec.connections if c.kind == "gru" and c.source == "x")
    hidden = {part: spec.tensor[name] for part, name in first.tensors.items() if part.endswith("hidden")}
    assert {part: t.scaling for part, t in hidden.items()} == {
        "reset_hidden": (0, -1),
        "update_hidden": (0, -1),
        "new_hidden": (1, -1),
    }
    assert [t.offset - hidden["reset_hidden"].offset for t in hidden.values()] == [0, 25, 50]
    assert all(t.axes == (spec.group[first.target].label,) * 2 for t in hidden.values())


def test_flatten_gives_channel_and_pixel(reports: dict[str, TraceReport]) -> None:
    spec = report_of("lenet", reports).spec
    weight = spec.tensor["fc1.weight"]
    assert weight.shape == (12, 6, 4) and weight.axes == ("fc1", "conv2", "fixed:4")
    (connection,) = (c for c in spec.connections if "fc1.weight" in c.tensors.values())
    assert connection.kind == "linear" and connection.attributes["spatial"] == [2, 2]


def test_tied_embedding_is_stored_once(reports: dict[str, TraceReport]) -> None:
    report = report_of("gpt", reports)
    assert report.aliases == {"head.weight": "wte.weight"}
    assert "head.weight" not in {s.name for s in report.spec.stored}
    assert report.spec.tensor["wte.weight"].role == "embedding"
    uses = [c.kind for c in report.spec.connections if "wte.weight" in c.tensors.values()]
    assert sorted(uses) == ["embedding", "linear"]


def test_counters_are_left_out_and_buffers_kept(reports: dict[str, TraceReport]) -> None:
    report = report_of("mobilenet", reports)
    assert "block.1.num_batches_tracked" in report.left_out
    assert report.spec.tensor["block.1.running_var"].role == "buffer"


def test_unknown_operation_freezes_with_a_reason(reports: dict[str, TraceReport]) -> None:
    report = report_of("unknown-operation", reports)
    reasons = {(f.tensor, f.axis): f.reasons for f in report.frozen}
    assert reasons["a.weight", 0] == ("enters gather, which has no rule",)
    assert reasons["b.weight", 1] == ("comes from gather",)
    assert report.spec.label[report.spec.tensor["a.weight"].axes[0]].kind == "fixed"


def test_a_frozen_axis_that_could_be_permuted_is_reported() -> None:
    class Summed(nn.Module):
        """A sum of sines by an operation without a rule: it does not depend on the order of the neurons."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.cumsum(self.bias.sin(), 0)[-1]

    report = trace_report(Summed(), torch.randn(3, 1))
    assert [(f.tensor, f.reasons) for f in report.frozen] == [("bias", ("enters cumsum, which has no rule",))]
    assert [(f.tensor, f.axis) for f in report.free] == [("bias", 0)]


def test_traced_mlp_is_the_hand_written_one() -> None:
    spec = trace(n.mlp(3, 5, 6, 2), torch.randn(4, 3))
    by_hand = mlp_spec([3, 5, 6, 2], "relu")
    rename = dict(zip([g.name for g in spec.groups], [g.name for g in by_hand.groups], strict=True))
    for ours, theirs in zip(spec.tensors, by_hand.tensors, strict=True):
        assert (ours.shape, ours.strides, ours.offset, ours.scaling) == (
            theirs.shape,
            theirs.strides,
            theirs.offset,
            theirs.scaling,
        )
        assert tuple(rename.get(a, a) for a in ours.axes) == theirs.axes
    for ours, theirs in zip(spec.groups, by_hand.groups, strict=True):
        assert (ours.activation, ours.parameters) == (theirs.activation, theirs.parameters)


def test_siren_has_its_frequency_and_offset(reports: dict[str, TraceReport]) -> None:
    spec = report_of("siren", reports).spec
    assert [(g.activation, dict(g.parameters)) for g in spec.groups] == [
        ("identity", {}),
        ("sine", {"omega": 30.0}),
        ("sine", {"omega": 30.0}),
        ("identity", {"offset": 0.5}),
    ]


def test_module_is_left_as_it_was() -> None:
    network = n.MobileNet().train()
    network.block[1].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    spec = trace(network, n.images())
    assert network.training and not network.block[1].training
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert WeightBatch.from_state_dicts(spec, [network.state_dict()]).values.shape == (1, spec.numel, 1)


def test_tracing_twice_gives_the_same_spec() -> None:
    assert trace(n.UNet(), n.images()).digest == trace(n.UNet(), n.images()).digest


def _with(item: Any, **changes: Any) -> Any:
    return dataclasses.replace(item, **changes)
