"""Balanced initialisation, and the conservation law behind it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from wsl.nn.gatv2.balance import balance_, imbalance
from wsl.nn.gatv2_conv import GATv2Conv


def stack(concat: bool = True, **options: object) -> list[GATv2Conv]:
    width = 4 * (2 if concat else 1)
    more = {"heads": 2, "concat": concat, "add_self_loops": False} | options
    return [GATv2Conv(n, 4, **more).double() for n in (6, width, width)]


@pytest.mark.parametrize("concat", [True, False])
@pytest.mark.parametrize("beta", [1.0, 0.6])
@pytest.mark.parametrize("options", [{}, {"share_weights": True}, {"residual": True, "edge_dim": 3}])
def test_every_channel_is_balanced(concat: bool, beta: float, options: dict[str, object]) -> None:
    layers = stack(concat, **options)
    before = max(float(imbalance(a, b).abs().max()) for a, b in pairwise(layers))
    balance_(layers, first_norm=2.0, beta=beta)
    assert before > 0.05
    for layer, following in pairwise(layers):
        assert float(imbalance(layer, following).abs().max()) < 1e-12
        assert bool(layer.att.any()) == (beta < 1.0)
    assert not layers[-1].att.any() and not layers[0].bias.any()
    if not options:
        rows = sum(linear.weight.square().sum(1) for linear in (layers[0].lin_l, layers[0].lin_r))
        rows = rows if concat else rows.view(2, -1).sum(0)
        torch.testing.assert_close(rows, torch.full_like(rows, 2.0))


def test_mirrored_maps_make_the_stack_linear_in_its_features() -> None:
    """[δ; −δ] through a ReLU into [δ', −δ'] is δ'δ: with uniform attention nothing is lost at a zero."""
    layers = [GATv2Conv(6, 8, add_self_loops=False, bias=False).double() for _ in range(1)]
    layers.append(GATv2Conv(8, 4, add_self_loops=False, bias=False).double())
    balance_(layers)
    nodes = torch.arange(10)
    itself = torch.stack([nodes, nodes])

    def net(x: Tensor) -> Tensor:
        return layers[1](layers[0](x, itself).relu(), itself)

    a, b = torch.randn(2, 10, 6, dtype=torch.float64).unbind()
    torch.testing.assert_close(net(a + 2 * b), net(a) + 2 * net(b))
    nn.init.normal_(layers[0].lin_l.weight)
    assert not torch.allclose(net(a + 2 * b), net(a) + 2 * net(b))


def test_conservation_law_holds_with_relu_and_fails_with_elu() -> None:
    """Σ⟨W, dW⟩ + Σ b db − a da over a channel's inputs equals Σ⟨W', dW'⟩ over its outputs."""
    torch.manual_seed(0)
    edge_index = torch.randint(20, (2, 80))
    x, edge_attr = torch.randn(20, 6, dtype=torch.float64), torch.randn(80, 3, dtype=torch.float64)
    residuals = []
    for activation in (nn.ReLU(), nn.LeakyReLU(0.1), nn.ELU()):
        first, second = stack(edge_dim=3)[:2]
        for parameter in (*first.parameters(), *second.parameters()):
            nn.init.normal_(parameter, std=0.5)
        second(activation(first(x, edge_index, edge_attr)), edge_index, edge_attr).square().sum().backward()
        lhs = sum((p * p.grad).sum(1) for p in (m.weight for m in (first.lin_l, first.lin_r, first.lin_edge)))
        lhs = lhs + sum(b * b.grad for b in (first.lin_l.bias, first.lin_r.bias, first.bias))
        lhs = lhs - (first.att * first.att.grad).flatten()
        rhs = sum((m.weight * m.weight.grad).sum(0) for m in (second.lin_l, second.lin_r))
        residuals.append(float(((lhs - rhs).abs().sum() / (lhs.abs().sum() + rhs.abs().sum())).detach()))
    assert residuals[0] < 1e-12 and residuals[1] < 1e-12
    assert residuals[2] > 1e-3


def test_what_cannot_be_balanced_is_refused() -> None:
    with pytest.raises(ValueError, match="homogeneous"):
        balance_([GATv2Conv(6, 4, score="softplus")])
    with pytest.raises(ValueError, match="reads 6"):
        balance_([GATv2Conv(6, 4), GATv2Conv(6, 4)])
    with pytest.raises(ValueError, match="even"):
        balance_([GATv2Conv(6, 3), GATv2Conv(3, 4)])
    with pytest.raises(ValueError, match="share"):
        balance_(stack(), beta=1.5)
