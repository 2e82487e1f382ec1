"""NG-GNN: golden parameter counts, gradients, options, refusals. Its symmetries: test_symmetry.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from wsl.batch import WeightBatch
from wsl.encoders.base import UnsupportedSpecError
from wsl.encoders.ng_gnn import NGGNN
from wsl.execute import activations_of
from wsl.spec import mlp_spec

MNIST_INR = mlp_spec([2, 32, 32, 1], "sine", {"omega": 30.0}, output_offset=0.5)
SMALL = mlp_spec([2, 6, 5, 3], "sine", {"omega": 30.0}, output_offset=0.5)


def networks(spec=SMALL, size: int = 4, dtype: torch.dtype = torch.float32, scale: float = 0.1) -> WeightBatch:
    return WeightBatch(spec, torch.randn(size, spec.numel, 1, dtype=dtype) * scale)


@pytest.mark.parametrize("reverse_edges", [False, True])
@pytest.mark.parametrize(
    "width, probes, parameters", [(64, 64, 348_746), (64, 0, 331_466), (32, 0, 92_010), (32, 64, 100_714)]
)
def test_parameter_counts_of_the_paper(width: int, probes: int, parameters: int, reverse_edges: bool) -> None:
    """Reverse edges widen only the fixed waves, so both variants have the published counts."""
    encoder = NGGNN(MNIST_INR, 10, width=width, probes=probes, reverse_edges=reverse_edges)
    assert sum(p.numel() for p in encoder.parameters()) == parameters


@pytest.mark.parametrize("probes", [0, 4])
def test_gradient_reaches_every_parameter(probes: int) -> None:
    encoder = NGGNN(SMALL, 10, width=8, probes=probes)
    encoder(networks()).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_gradient_reaches_the_weights_of_the_networks() -> None:
    """Attacks, probing and editing need it; waves and probes both pass it on."""
    encoder = NGGNN(SMALL, 2, width=6, layers=2, probes=3, fourier_features=4, fourier_std=0.3).double()
    batch = networks(size=2, dtype=torch.float64)
    values = batch.values.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: encoder(batch.with_values(v)), (values,), atol=1e-6)


def test_equal_weights_give_finite_gradients() -> None:
    """All messages of a node agree: its deviation is at the floor, minimum and maximum are ties."""
    encoder = NGGNN(SMALL, 3, width=8, probes=0)
    batch = WeightBatch(SMALL, torch.full((2, SMALL.numel, 1), 0.1))
    encoder(batch).sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)


def test_statistics_standardise_each_tensor_by_one_scalar() -> None:
    encoder = NGGNN(SMALL, 3, width=8, probes=0)
    batch = networks(size=50, scale=3.0).with_values(torch.randn(50, SMALL.numel, 1) * 3.0 + 1.0)
    encoder.fit_statistics(batch)
    standard = batch.with_values(encoder.standardize(batch.values))
    for tensor in SMALL.tensors:
        assert standard[tensor.name].mean().abs() < 1e-5
        assert standard[tensor.name].std(correction=0) == pytest.approx(1.0, abs=1e-5)
    assert NGGNN(SMALL, 3, width=8, probes=0, standardize=False).standardize is None


def test_state_round_trip_keeps_statistics_and_waves() -> None:
    encoder = NGGNN(SMALL, 3, width=8, probes=2).eval()
    encoder.fit_statistics(networks(size=20))
    copy = NGGNN(SMALL, 3, width=8, probes=2).eval()
    copy.load_state_dict(encoder.state_dict())
    batch = networks()
    assert torch.equal(copy(batch), encoder(batch))


def test_probes_see_raw_weights() -> None:
    encoder = NGGNN(SMALL, 3, width=8, probes=5)
    batch = networks()
    features = encoder.embed.probe_features
    before = features(batch)
    encoder.fit_statistics(networks(size=20, scale=5.0))
    assert torch.equal(features(batch), before)
    output = activations_of(batch, features.probes)["output"].mT
    assert torch.equal(before[:, -3:], features.embed[-1](output))


def test_dropout_is_reproducible_and_off_in_evaluation() -> None:
    encoder = NGGNN(SMALL, 3, width=8, probes=0, dropout=0.5)
    batch = networks()

    def run() -> list[torch.Tensor]:
        torch.manual_seed(3)
        encoder.zero_grad()
        loss = encoder(batch).square().sum()
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in encoder.parameters())]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
    assert not torch.equal(encoder(batch), encoder(batch))
    encoder.eval()
    assert torch.equal(encoder(batch), encoder(batch))


@pytest.mark.parametrize(
    "options", [{"norm": "none"}, {"norm": "layer"}, {"layers": 1}, {"fourier_features": 0}, {"residual": True}]
)
def test_options_train(options: dict) -> None:
    encoder = NGGNN(SMALL, 3, width=8, probes=2, **options)
    encoder(networks()).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_autocast_in_bfloat16() -> None:
    encoder = NGGNN(SMALL, 3, width=8, probes=2)
    batch = networks()
    expected = encoder(batch)
    with torch.autocast("cpu", torch.bfloat16):
        out = encoder(batch)
    out.float().sum().backward()
    assert (out.float() - expected).abs().max() < 0.1 * expected.abs().max()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


def test_an_empty_batch_gives_an_empty_result() -> None:
    assert NGGNN(SMALL, 3, width=8, probes=2)(networks(size=0)).shape == (0, 3)


def test_refuses_another_spec_in_the_batch() -> None:
    with pytest.raises(ValueError, match="was built for"):
        NGGNN(SMALL, 3, width=8, probes=0)(networks(MNIST_INR))


def test_refuses_what_it_cannot_take() -> None:
    conv = SMALL.replace(connections=tuple(dataclasses.replace(c, kind="conv") for c in SMALL.connections))
    with pytest.raises(UnsupportedSpecError, match=r"NG-GNN cannot take this spec: .* kind 'conv'"):
        NGGNN(conv, 3)
    unknown = tuple(
        dataclasses.replace(g, activation="unknown", parameters={}) if "hidden" in g.name else g for g in SMALL.groups
    )
    labels = tuple(
        dataclasses.replace(x, symmetries=("permutation",)) if x.kind == "hidden" else x for x in SMALL.labels
    )
    silent = SMALL.replace(groups=unknown, labels=labels)
    with pytest.raises(UnsupportedSpecError, match=r"with probes > 0.*'unknown'"):
        NGGNN(silent, 3, probes=2)
    assert NGGNN(silent, 3, width=8, probes=0)(networks(silent)).shape == (4, 3)
