"""NG-GNN's fields over the parameters of mixed and traced networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graph_networks import SINE, built, change, family, mixed
from graph_specs import random_batch, spec_named

from wsl.batch import MixedWeightBatch
from wsl.encoders.base import UnsupportedSpecError
from wsl.graphs.edge_list import edge_list
from wsl.mixed_symmetry import act_mixed, draw_mixed
from wsl.symmetry import act, draw


@pytest.mark.parametrize("options", [{"probes": 3, "probe_size": 6}, {"reverse_edges": False, "linear_layers": "own"}])
def test_fields_of_mixed_networks_move_with_their_neurons(options: dict[str, Any]) -> None:
    """Weights and biases alike: the published code reads the biases from other nodes, and fails here."""
    encoder, batch = built(family(), equivariant=True, field_scale=1.0, **options), mixed()
    encoder.fit_statistics(batch)
    element = draw_mixed(batch)
    field = encoder(batch)
    assert field.shape == (len(batch.values), 4)
    expected = act_mixed(element, batch.with_values(field)).values
    assert change(expected, field) > 1e-2, "the element moves nothing"
    assert change(encoder(act_mixed(element, batch)), expected) < 1e-10
    biases = edge_list(batch, encoder.front.frame).node_cells.positions
    assert change(field[biases].roll(3, 0), field[biases]) > 1e-2, "the biases' part would pass shifted too"


@pytest.mark.parametrize("name", ["mlp", "gpt", "lstm", "resnet_a"])
def test_fields_of_traced_networks_move_with_their_neurons(name: str) -> None:
    spec = spec_named(name)
    encoder, batch = built(spec, equivariant=True, field_scale=1.0), random_batch(spec)
    element = draw(spec, len(batch), dtype=torch.float64)
    field = encoder(batch)
    expected = act(element, batch.with_values(field)).values
    assert field.shape == (3, spec.numel, 4)
    assert change(expected, field) > 1e-2
    assert change(encoder(act(element, batch)), expected) < 1e-10


def test_gradient_of_a_field_reaches_every_parameter() -> None:
    encoder = built(family(), equivariant=True, probes=3, probe_size=6).train()
    encoder(mixed()).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("_scale"):  # a class of which no network has values has a scale all the same
            assert parameter.grad.abs().sum() > 0, name


def test_a_field_starts_small_and_is_no_matter_of_blocks() -> None:
    batch = mixed()
    assert encoder_size(batch, 0.01) == pytest.approx(encoder_size(batch, 1.0) / 100, rel=1e-6)
    with pytest.raises(UnsupportedSpecError, match="edge lists"):
        built(SINE, equivariant=True, form="blocks")


def encoder_size(batch: MixedWeightBatch, scale: float) -> float:
    return float(built(family(), equivariant=True, field_scale=scale)(batch).detach().abs().max())
