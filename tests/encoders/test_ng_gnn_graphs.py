"""NG-GNN on edge lists: equal to dense blocks, symmetric, and blind to what else is in a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graph_networks import ACTIVATIONS, CNNS, SINE, built, change, family, mixed
from graph_specs import random_batch, spec_named
from torch import nn

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.encoders.base import UnsupportedSpecError
from wsl.encoders.ng_gnn import NGGNN
from wsl.graphs.edge_list import edge_list
from wsl.graphs.network.attention import tied_attention
from wsl.mixed_symmetry import act_mixed, draw_mixed
from wsl.spec import mlp_spec
from wsl.spec.family import SpecFamily
from wsl.symmetry import GroupElement, act, draw
from wsl.zoo.build.wild_cnn import WildCNN

# -- the two forms ---------------------------------------------------------------------------------------------------

RENAMED = {
    "embed.positional.weight": "front.embed.places",
    "embed.edge_waves.": "front.embed.edge_waves.0.",
    "embed.lift_edges.": "front.embed.lift_edges.0.",
    "embed.project_edges.": "front.embed.project_edges.0.",
    "embed.probe_features.": "front.probe_features.",
    "embed.": "front.embed.",
}


def renamed(name: str) -> str:
    return next((new + name[len(old) :] for old, new in RENAMED.items() if name.startswith(old)), name)


def without_rounding(blocks: NGGNN, edges: NGGNN) -> None:
    """Degree scalers in float64: the buffers were filled in float32."""
    assert blocks.graph is not None
    mean = blocks.graph.degrees(reverse=False).double().log1p().mean()
    assert float(edges.front.log_degree) == pytest.approx(float(mean), rel=1e-6)
    edges.front.log_degree.copy_(mean)
    for layer in blocks.layers:
        exact = blocks.graph.degrees().double().log1p().unsqueeze(-1) / mean
        assert torch.allclose(layer.amplification, exact, rtol=1e-6)
        layer.amplification.copy_(exact)


@pytest.mark.parametrize("readout", ["outputs", "mean", "max", "attention"])
@pytest.mark.parametrize(
    "options",
    [
        {"reverse_edges": True, "probes": 5},
        {"reverse_edges": False, "standardize": False, "residual": True},
        {"reverse_edges": True, "fourier_features": 0},
    ],
)
def test_blocks_equal_edges(readout: str, options: dict[str, Any]) -> None:
    blocks, edges = (built(SINE, readout=readout, form=form, **options) for form in ("blocks", "edges"))
    state = {renamed(k): v for k, v in blocks.state_dict().items() if not k.startswith("standardize.")}
    missing, unexpected = edges.load_state_dict(state, strict=False)
    assert not unexpected and all("_mean" in k or "_std" in k or k == "front.log_degree" for k in missing)
    training, batch = random_batch(SINE, 20), random_batch(SINE, 4, seed=1)
    for encoder in (blocks, edges):
        encoder.fit_statistics(training)
    without_rounding(blocks, edges)
    values = [batch.values.clone().requires_grad_() for _ in range(2)]
    out = [e(batch.with_values(v)) for e, v in zip((blocks, edges), values, strict=True)]
    grads = [torch.autograd.grad(o.sin().sum(), v)[0] for o, v in zip(out, values, strict=True)]
    for a, b in (out, grads):
        assert (a - b).abs().max() < 1e-12 * a.abs().max()


def test_auto_takes_blocks_for_mlps_and_edges_for_the_rest() -> None:
    assert built(SINE).graph is not None
    assert built(SpecFamily((SINE,))).graph is None
    assert built(CNNS[0].spec()).graph is None
    with pytest.raises(UnsupportedSpecError, match="blocks"):
        built(family(), form="blocks")


# -- parameter counts of the paper -----------------------------------------------------------------------------------


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_count_of_the_published_wild_park_model() -> None:
    """The published table has seven activations and five hidden layers."""
    cnn = WildCNN(3, (4,) * 5, (7,) * 5, ACTIVATIONS[:5], (-1,) * 5)
    other = WildCNN(3, (4,) * 2, (3,) * 2, ACTIVATIONS[5:], (-1,) * 2)
    encoder = NGGNN(SpecFamily((cnn.spec(), other.spec())), 1, probes=0, reverse_edges=False)
    assert parameters(encoder) == 369_025


def test_parameter_count_of_the_published_model_for_the_small_cnn_zoo() -> None:
    """Linear layers have maps of their own there, and the seven activations are held though not used."""
    specs = [
        WildCNN(1, (16,) * 3, (3,) * 3, (a, b, b), (-1,) * 3).spec()
        for a, b in zip(*[iter((*ACTIVATIONS, "relu"))] * 2, strict=True)
    ]
    encoder = NGGNN(SpecFamily(tuple(specs)), 1, width=256, probes=0, reverse_edges=False, linear_layers="own")
    assert parameters(encoder) == 5_587_969


# -- symmetry --------------------------------------------------------------------------------------------------------

READOUTS = ("outputs", "mean", "max", "attention", "class_token")


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(
    "options",
    [
        {"reverse_edges": True, "probes": 3, "probe_size": 6},
        {"reverse_edges": False, "linear_layers": "own"},
        {"reverse_edges": True, "standardize": False, "residual": True},
    ],
)
def test_mixed_networks_permuted_give_the_same(readout: str, options: dict[str, Any]) -> None:
    encoder, batch = built(family(), readout=readout, **options), mixed()
    encoder.fit_statistics(batch)
    moved = act_mixed(draw_mixed(batch), batch)
    assert not torch.equal(moved.values, batch.values)
    before = encoder(batch)
    assert change(encoder(moved), before) < 1e-10
    turned = batch.with_values(batch.values.roll(1, 0))  # negative control: no symmetry
    assert change(encoder(turned), before) > 1e-4


@pytest.mark.parametrize("name", ["resnet_a", "dense", "gpt", "lstm", "unknown", "grouped"])
def test_traced_networks_permuted_give_the_same(name: str) -> None:
    spec = spec_named(name)
    encoder, batch = built(spec, reverse_edges=True, readout="mean"), random_batch(spec)
    encoder.readout = nn.Sequential()  # an untrained head may be dead, and outputs are many layers away
    encoder.fit_statistics(batch)
    moved = act(draw(spec, len(batch), dtype=torch.float64), batch)
    before = encoder(batch)
    assert change(encoder(moved), before) < 1e-10
    weight = max((t for t in spec.tensors if t.role == "weight"), key=lambda t: t.numel)
    index = torch.from_numpy(weight.index())
    values = batch.values.clone()
    values[:, index.flatten()] = batch.values[:, index.roll(1, 0).flatten()]
    assert change(encoder(batch.with_values(values)), before) > 1e-6


def test_triple_attention_respects_the_tied_group() -> None:
    spec = spec_named("gpt")
    encoder, batch = built(spec, attention_nodes="triple", readout="mean"), random_batch(spec)
    encoder.readout = nn.Sequential()
    moved = act(
        draw(tied_attention(spec), len(batch), dtype=torch.float64), WeightBatch(tied_attention(spec), batch.values)
    )
    assert change(encoder(batch.with_values(moved.values)), encoder(batch)) < 1e-10
    order = torch.tensor([1, 2, 3, 0]).expand(len(batch), -1)
    alone = act(GroupElement(permutation={"blocks.0.qkv.value": order}), batch)
    assert change(encoder(alone), encoder(batch)) > 1e-6


@pytest.mark.parametrize("flatten", ["kernel", "repeat", "layer"])
def test_flattened_maps(flatten: str) -> None:
    spec = spec_named("lenet")
    encoder, batch = built(spec, flatten=flatten), random_batch(spec)
    before = encoder(batch)
    assert change(encoder(act(draw(spec, 3, dtype=torch.float64), batch)), before) < 1e-10
    index = torch.from_numpy(spec.tensor["fc1.weight"].index())  # positions are no channels: turning them is noticed
    values = batch.values.clone()
    values[:, index.flatten()] = batch.values[:, index.roll(1, 2).flatten()]
    assert change(encoder(batch.with_values(values)), before) > 1e-6


@pytest.mark.parametrize("kind", ["input", "output"])
def test_inputs_and_outputs_are_not_interchangeable(kind: str) -> None:
    spec = CNNS[1].spec()
    encoder, batch = built(spec), random_batch(spec)
    order = torch.arange(spec.label[kind].size).roll(1).expand(len(batch), -1)
    assert change(encoder(act(GroupElement(permutation={kind: order}), batch)), encoder(batch)) > 1e-6


# -- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", READOUTS)
def test_a_network_alone_gives_what_it_gives_in_any_batch(readout: str) -> None:
    """Neither batch mates nor padding leak, whatever their architectures."""
    encoder, batch = built(family(), readout=readout, probes=3, probe_size=6, reverse_edges=True), mixed()
    encoder.fit_statistics(batch)
    together = encoder(batch)
    alone = torch.cat([encoder(batch.select(torch.tensor([n]))) for n in range(len(batch))])
    assert change(alone, together) < 1e-10
    order = torch.randperm(len(batch))
    assert change(encoder(batch.select(order)), together[order]) < 1e-10


def test_an_empty_batch_gives_an_empty_result() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert built(family())(mixed().select(none)).shape == (0, 4)
    for batch in (random_batch(SINE).select(none), random_batch(SINE).flat().select(none)):
        for form in ("blocks", "edges"):
            assert built(SINE, form=form)(batch).shape == (0, 4)


def test_a_deeper_architecture_counts_as_the_deepest() -> None:
    encoder = built(family())
    deeper = WildCNN(3, (4, 4, 4, 4, 4, 4), (3,) * 6, ("relu",) * 6, (-1,) * 6, 5).spec()
    out = encoder(MixedWeightBatch.collate([random_batch(deeper)]))
    assert out.isfinite().all()
    wider = WildCNN(3, (4, 4), (7, 3), ("relu",) * 2, (-1,) * 2, 5).spec()
    with pytest.raises(ValueError, match=r"\[7, 7\]"):
        encoder(MixedWeightBatch.collate([random_batch(wider)]))


# -- statistics and probes -------------------------------------------------------------------------------------------


def test_blocks_take_statistics_from_any_batch_of_their_networks() -> None:
    batch = random_batch(SINE, 9)
    one, other = built(SINE, form="blocks"), built(SINE, form="blocks")
    one.fit_statistics(batch)
    other.fit_statistics(batch.flat())
    assert torch.allclose(one.standardize.std, other.standardize.std) and not bool((one.standardize.std == 1).all())


def test_statistics_are_those_of_the_training_networks_and_are_kept() -> None:
    encoder, batch = built(family()), mixed(5)
    batch = batch.with_values(batch.values * 3 + 1)
    encoder.fit_statistics(batch)
    graph = edge_list(batch, encoder.front.frame)
    nodes, edges = encoder.front.standardize(graph, batch.values)
    for values, cells in ((nodes, graph.node_cells), (edges, graph.edge_cells)):
        for number in cells.classes.unique():
            of_class = values[cells.classes == number]
            assert of_class.mean().abs() < 1e-6 and of_class.std(correction=0) == pytest.approx(1, abs=1e-5)
    degrees = graph.row_pointer.diff().double().log1p().mean()
    assert float(encoder.front.log_degree) == pytest.approx(float(degrees), rel=1e-6)
    copy = built(family())
    copy.load_state_dict(encoder.state_dict())
    assert torch.equal(copy(batch), encoder(batch))


# -- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", READOUTS)
def test_gradient_reaches_every_parameter(readout: str) -> None:
    encoder = built(family(), readout=readout, probes=3, probe_size=6, reverse_edges=True, layers=4).train()
    encoder(mixed()).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_equal_weights_give_finite_gradients() -> None:
    """Zero variance of all messages, and inputs that no edge reaches."""
    encoder = built(family(), reverse_edges=False)
    batch = mixed()
    encoder(batch.with_values(torch.full_like(batch.values, 0.1))).sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)


def test_a_spec_without_output_neurons_needs_another_readout() -> None:
    spec = mlp_spec([2, 4, 3])
    open_end = spec.replace(connections=spec.connections[:1], groups=spec.groups[:2], labels=spec.labels[:2],
                            tensors=spec.tensors[:2], stored=spec.stored[:2])  # fmt: skip
    with pytest.raises(UnsupportedSpecError, match="another readout"):
        built(open_end)
    assert built(open_end, readout="mean")(random_batch(open_end)).shape == (3, 4)
