"""GATv2Conv against PyTorch Geometric's layer: outputs, every gradient, state dicts, attention weights."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wsl.nn.gatv2_conv import GATv2Conv

with warnings.catch_warnings():  # importing torch_geometric scripts a class, which torch calls deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch_geometric.nn import GATv2Conv as PyGConv

NODES, EDGES = 20, 70


def awkward_graph(seed: int) -> Tensor:
    """20 nodes of which the last 3 are isolated, 70 edges with 4 self loops and 6 duplicates, unsorted."""
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(NODES - 3, (2, EDGES), generator=generator)
    edge_index[1, :4] = edge_index[0, :4]
    edge_index[:, 10:16] = edge_index[:, 20:26]
    return edge_index


def twins(in_channels: Any = 7, **options: Any) -> tuple[GATv2Conv, PyGConv]:
    """Both layers in float64 with the same weights, biases away from zero."""
    theirs = PyGConv(in_channels, **options).double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = GATv2Conv(in_channels, **options).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))


def gradients(layer: nn.Module, inputs: list[Tensor], run: Any) -> tuple[Tensor, dict[str, Tensor]]:
    for tensor in inputs:
        tensor.grad = None
        tensor.requires_grad_()
    out = run(layer)
    generator = torch.Generator().manual_seed(1)
    out.backward(torch.randn(out.shape, generator=generator, dtype=out.dtype))
    grads = {f"input {i}": t.grad.clone() for i, t in enumerate(inputs) if t.grad is not None}
    return out.detach(), grads | {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}


def assert_same(ours: nn.Module, theirs: nn.Module, inputs: list[Tensor], run: Any, tolerance: float = 1e-12) -> None:
    out, grads = gradients(ours, inputs, run)
    expected, expected_grads = gradients(theirs, inputs, run)
    assert relative(out, expected) <= tolerance
    assert grads.keys() == expected_grads.keys()
    for name, grad in expected_grads.items():
        assert relative(grads[name], grad) <= tolerance, name


@pytest.mark.parametrize(
    ("heads", "concat", "share", "edge_dim", "loops"),
    list(itertools.product((1, 3), (True, False), (True, False), (None, 3), (True, False))),
)
def test_outputs_and_all_gradients_equal_those_of_pyg(
    heads: int, concat: bool, share: bool, edge_dim: int | None, loops: bool
) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        ours, theirs = twins(
            out_channels=5 if heads == 1 else 4, heads=heads, concat=concat, share_weights=share,
            edge_dim=edge_dim, add_self_loops=loops, residual=seed == 1, bias=seed != 2,
        )  # fmt: skip
        inputs = [torch.randn(NODES, 7, dtype=torch.float64)]
        inputs += [] if edge_dim is None else [torch.randn(EDGES, edge_dim, dtype=torch.float64)]
        edge_index = awkward_graph(seed)
        assert_same(ours, theirs, inputs, lambda layer: layer(inputs[0], edge_index, *inputs[1:]))  # noqa: B023
