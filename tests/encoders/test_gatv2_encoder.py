"""GATv2 on neural graphs: against a plain edge list, gradients, options, refusals. Symmetries: test_symmetry.py."""

from __future__ import annotations

import pytest
import torch
from graph_specs import random_batch, spec_named

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.encoders.base import UnsupportedSpecError
from wsl.encoders.gatv2 import GATv2Encoder
from wsl.graphs.geometric import geometric
from wsl.spec import mlp_spec
from wsl.spec.family import SpecFamily
from wsl.symmetry import act, draw

INR = mlp_spec([2, 6, 5, 3], "sine", {"omega": 30.0}, output_offset=0.5)


def networks(size: int = 4, dtype: torch.dtype = torch.float64) -> WeightBatch:
    return WeightBatch(INR, torch.randn(size, INR.numel, 1, dtype=dtype) * 0.1)


@pytest.mark.parametrize("reverse_edges", [False, True])
def test_dense_blocks_equal_pyg_on_the_list_of_edges(reverse_edges: bool) -> None:
    """One network after the other through PyTorch Geometric's layers, edges written out one by one."""
    encoder = GATv2Encoder(
        INR, 4, width=8, layers=2, heads=2, probes=3, reverse_edges=reverse_edges, fourier_features=4
    ).double().eval()  # fmt: skip
    batch = networks()
    encoder.fit_statistics(batch)
    graph = encoder.graph
    edges = []
    for block in graph.blocks:
        rows, columns = block.shape
        for o in range(rows):
            for i in range(columns):
                source, target = (o, i) if block.reverse else (i, o)
                edges.append([source + block.source.start, target + block.target.start])
    edge_index = torch.tensor(edges).T
    x, e = encoder.embed(batch, encoder.standardize(batch.values))
    states = []
    for node_states, edge_states in zip(x, e, strict=True):
        y = node_states
        for layer, norm in zip(encoder.layers, encoder.norms, strict=True):
            other = geometric("nn").GATv2Conv(8, 4, 2, add_self_loops=False, edge_dim=8).double()
            other.load_state_dict(layer.state_dict())
            y = y + torch.relu(norm(other(y, edge_index, edge_states)))
        states.append(torch.cat([nodes.of(y.unsqueeze(0)).flatten() for nodes in encoder.outputs]))
    expected = encoder.readout(torch.stack(states))
    assert (encoder(batch) - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("reverse_edges", [False, True])
def test_blocks_equal_the_edge_list(reverse_edges: bool) -> None:
    options = {"width": 8, "layers": 2, "heads": 2, "probes": 0, "fourier_features": 4, "standardize": False}
    options["reverse_edges"] = reverse_edges
    blocks = GATv2Encoder(INR, 4, **options, form="blocks").double().eval()
    edges = GATv2Encoder(INR, 4, **options, form="edges").double().eval()
    held = edges.state_dict()
    renamed = {"places": "positional.weight", "edge_waves.0": "edge_waves", "lift_edges.0": "lift_edges"}
    renamed["project_edges.0"] = "project_edges"
    for name, value in blocks.state_dict().items():
        for theirs, ours in renamed.items():
            name = name.replace(ours, theirs)
        name = name.replace("embed.", "front.embed.", 1) if name.startswith("embed.") else name
        assert name in held and held[name].shape == value.shape, name
        held[name] = value
    edges.load_state_dict(held)
    batch = networks()
    for encoder in (blocks, edges):
        encoder.fit_statistics(batch)
    expected = blocks(batch)
    assert (edges(batch) - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("readout", ["outputs", "mean", "max", "attention"])
def test_networks_of_mixed_batches_do_not_notice_each_other(readout: str) -> None:
    names = ("lenet", "resnet_a", "resnet_b")
    parts = [random_batch(spec_named(name), 2) for name in names]
    batch = MixedWeightBatch.collate(parts).select(torch.tensor([4, 0, 3, 5, 1, 2]))
    encoder = GATv2Encoder(
        SpecFamily(tuple(spec_named(name) for name in names)), 4, width=8, heads=2, probes=0, readout=readout
    ).double().eval()  # fmt: skip
    together = encoder(batch)
    for number in range(len(batch)):
        alone = encoder(batch.select(torch.tensor([number])))[0]
        assert (alone - together[number]).abs().max() < 1e-10 * together.abs().max()
    spec = parts[1].spec
    moved = act(draw(spec, 2, dtype=torch.float64), parts[1])
    assert (encoder(moved) - encoder(parts[1])).abs().max() < 1e-10 * together.abs().max()


@pytest.mark.parametrize("options", [{"probes": 0, "score": "softplus"}, {"probes": 3, "init": "balanced"}])
def test_gradient_reaches_every_map(options: dict) -> None:
    encoder = GATv2Encoder(INR, 4, width=8, layers=3, heads=2, fourier_features=4, **options).double()
    batch = networks()
    for step in range(2):  # a balanced attention vector starts at 0 and needs one step
        optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
        encoder.zero_grad()
        encoder(batch).square().sum().backward()
        optimizer.step()
        assert step or encoder.layers[0].lin_l.weight.grad.abs().sum() > 0
    # biases of the maps and of the values act through one sum, so single ones may cancel; whole maps may not
    for name, parameter in encoder.named_parameters():
        if parameter.dim() > 1:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_gradients_agree_with_finite_differences() -> None:
    encoder = GATv2Encoder(INR, 2, width=4, layers=2, heads=2, probes=0, fourier_features=2, fourier_std=0.3).double()
    batch = networks(2)
    values = batch.values.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: encoder(batch.with_values(v)), (values,), atol=1e-6)


def test_conserved_pairs_need_neither_norm_nor_residual() -> None:
    plain = {"width": 8, "heads": 2, "layers": 2, "probes": 0}
    assert GATv2Encoder(INR, 2, **plain, norm="none", residual=False).conserved_pairs == (("layers.0", "layers.1"),)
    assert GATv2Encoder(INR, 2, **plain).conserved_pairs == ()


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"heads=3 cannot share encoder\.width=8"):
        GATv2Encoder(INR, 2, width=8, heads=3)
    with pytest.raises(ValueError, match="was built for"):
        GATv2Encoder(INR, 2, width=8, probes=0)(WeightBatch(mlp_spec([2, 3, 1], "relu"), torch.zeros(1, 13, 1)))
    with pytest.raises(UnsupportedSpecError, match="GATv2 cannot take this spec"):
        GATv2Encoder(INR.replace(connections=()), 2)
    with pytest.raises(UnsupportedSpecError, match="dense blocks cannot hold a mixed zoo"):
        GATv2Encoder(SpecFamily((INR,)), 2, form="blocks")
