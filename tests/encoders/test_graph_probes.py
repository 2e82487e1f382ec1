"""Probe features on edge lists: what neurons answer in a forward pass; what cannot be run or read is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from execute_networks import Flat
from graph_networks import SINE, built, change, family, mixed
from graph_specs import random_batch, spec_named
from torch import Tensor, nn

from wsl.batch import WeightBatch
from wsl.encoders.base import UnsupportedSpecError
from wsl.encoders.ng_gnn import NGGNN
from wsl.encoders.ng_transformer import NGTransformer
from wsl.execute import activations_of
from wsl.graphs.edge_list import edge_list
from wsl.spec.family import SpecFamily
from wsl.symmetry import act, draw
from wsl.trace import trace


def test_probe_answers_are_those_of_a_direct_forward_pass() -> None:
    encoder, batch = built(family(), probes=4, probe_size=6), mixed()
    probes, graph = encoder.front.probe_features, edge_list(batch, encoder.front.frame)
    answers, neurons = probes.answers(graph, batch)
    assert bool(neurons.all())
    for networks, part in batch.split():
        values = activations_of(part, probes.probes)
        for row, network in enumerate(networks.tolist()):
            start = int(graph.node_offsets[network])
            for nodes in encoder.front.frame.graph(part.spec).nodes:
                value = values[nodes.name][row]
                expected = value.mean((1, 2)).T if value.dim() > 2 else value.T
                here = answers[start + nodes.start : start + nodes.start + nodes.size]
                assert torch.equal(here, expected), nodes.name


class Flattening(nn.Module):
    """A map of ``size``², pooled if wanted, read by a linear layer."""

    def __init__(self, size: int = 4, pooled: bool = False) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 3, 3, padding=1), nn.AvgPool2d(2) if pooled else nn.Identity()
        self.head = nn.Linear(3 * (size // (2 if pooled else 1)) ** 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(torch.relu(self.conv(x))).flatten(1))


@pytest.mark.parametrize("flatten", ["repeat", "layer"])
@pytest.mark.parametrize("pooled", [False, True])
def test_a_node_of_one_position_has_the_answers_at_this_position(pooled: bool, flatten: str) -> None:
    spec = trace(Flattening(pooled=pooled), torch.randn(2, 1, 4, 4))
    encoder, batch = built(spec, flatten=flatten, probes=5, probe_size=4), random_batch(spec)
    probes, graph = encoder.front.probe_features, edge_list(batch, encoder.front.frame)
    answers, _ = probes.answers(graph, batch)
    values = activations_of(batch, probes.probes)
    flat = next(c for c in spec.connections if c.attributes.get("spatial"))
    count = math.prod(flat.attributes["spatial"])
    (nodes,) = (n for n in encoder.front.frame.graph(spec).nodes if n.name.endswith(f"@{count}"))
    for network, start in enumerate(graph.node_offsets[:-1].tolist()):
        expected = values[flat.source][network].movedim(-1, 1).flatten(1).T  # as torch flattens: channel by channel
        assert torch.equal(answers[start + nodes.start : start + nodes.start + nodes.size], expected)
    moved = act(draw(spec, 3, dtype=torch.float64), batch)
    assert change(encoder(moved), encoder(batch)) < 1e-10


def test_an_mlp_that_flattens_images_is_run_on_its_pixels() -> None:
    spec = trace(Flat(), torch.randn(2, 2, 3, 3))
    encoder, batch = built(spec, probes=6), random_batch(spec)
    assert encoder.front.probe_features.probes.shape == (6, 18)
    assert encoder(batch).std() > 0


def test_probes_from_a_file_are_used_as_they_are(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((5, 3, 6, 6), dtype=np.float32)
    np.save(tmp_path / "images.npy", images)
    encoder = built(family(), probes=4, probe_file=str(tmp_path / "images.npy"))
    assert np.array_equal(encoder.front.probe_features.probes.float().numpy(), images[:4])
    assert "front.probe_features.probes" not in dict(encoder.named_parameters())
    with pytest.raises(UnsupportedSpecError, match="probe_file"):
        built(family(), probes=6, probe_file=str(tmp_path / "images.npy"))
    with pytest.raises(UnsupportedSpecError, match="no_file"):
        built(family(), probes=2, probe_file=str(tmp_path / "no_file.npy"))


def test_refuses_probes_of_networks_that_read_sequences() -> None:
    with pytest.raises(UnsupportedSpecError, match=r"probes > 0.*sequence"):
        built(spec_named("lstm"), probes=2)


def test_images_of_a_size_that_some_network_cannot_read_are_refused_at_once() -> None:
    two = SpecFamily(tuple(trace(Flattening(size), torch.randn(2, 1, size, size)) for size in (4, 6)))
    with pytest.raises(UnsupportedSpecError, match=r"4 × 4 \(probe_size\)"):
        built(two, probes=2, probe_size=4)


@pytest.mark.parametrize(
    "array, said",
    [(np.full((4, 2), np.nan), "NaN"), (np.zeros((4, 2), complex), "complex128"), (np.array(["a"]), "U1")],
)
def test_files_that_hold_no_numbers_are_refused(array: Any, said: str, tmp_path: Path) -> None:
    np.save(tmp_path / "probes.npy", array)
    with pytest.raises(UnsupportedSpecError, match=said):
        built(SINE, probes=2, probe_file=str(tmp_path / "probes.npy"))


@pytest.mark.parametrize("options", [{"form": "blocks", "probes": 2}, {"probes": 0}])
def test_a_file_that_would_not_be_read_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedSpecError, match="probe_file"):
        built(SINE, probe_file="probes.npy", **options)


@pytest.mark.parametrize("encoder", [NGGNN, NGTransformer])
def test_a_readout_that_a_field_would_not_use_is_refused(encoder: Any) -> None:
    with pytest.raises(UnsupportedSpecError, match="readout=outputs"):
        encoder(SINE, 1, equivariant=True, readout="attention")


def test_weights_with_several_channels_are_refused() -> None:
    for options in ({"form": "blocks"}, {"form": "edges"}):
        with pytest.raises(ValueError, match="one channel, this batch has 2"):
            built(SINE, **options)(WeightBatch(SINE, torch.zeros(2, SINE.numel, 2, dtype=torch.float64)))
