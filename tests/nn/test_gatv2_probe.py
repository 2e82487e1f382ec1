"""Gradient-flow readings on graphs whose diagnosis is known, and against plain definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wsl.graphs.blocks import block_graph
from wsl.nn.gatv2.probe import FlowProbe
from wsl.nn.gatv2_conv import GATv2Conv
from wsl.spec import mlp_spec


def layer_with_probe(**options: object) -> tuple[GATv2Conv, FlowProbe]:
    layer = GATv2Conv(6, 4, heads=2, add_self_loops=False, **options).double()
    layer.probe = probe = FlowProbe()
    return layer, probe


def read(layer: GATv2Conv, x: Tensor, edge_index: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(1)
    layer.zero_grad()
    y = layer(x, edge_index)
    y.backward(torch.randn_like(y))
    return layer.probe.readings


def random_graph(nodes: int = 60, degree: int = 5) -> Tensor:
    return torch.stack([torch.randint(nodes, (nodes * degree,)), torch.arange(nodes).repeat_interleave(degree)])


def test_one_edge_per_node_leaves_the_attention_without_gradient() -> None:
    layer, _ = layer_with_probe()
    edge_index = torch.stack([torch.randperm(30), torch.arange(30)])
    readings = read(layer, torch.randn(30, 6, dtype=torch.float64), edge_index)
    assert readings["low_degree_share"] == 1.0
    assert float(layer.att.grad.abs().max()) < 1e-14 and float(layer.lin_r.weight.grad.abs().max()) < 1e-14
    assert float(layer.lin_l.weight.grad.abs().max()) > 0.1
    for name in ("entropy_mean", "entropy_p10", "saturated_share", "same_sign_share", "path_ratio", "value_contrast"):
        assert readings[name].isnan().all(), name


def test_shifted_scores_show_as_one_sign() -> None:
    layer, _ = layer_with_probe()
    x, edge_index = torch.randn(60, 6, dtype=torch.float64), random_graph()
    assert float(read(layer, x, edge_index)["same_sign_share"]) < 0.7
    layer.lin_r.bias.data += 100.0
    assert read(layer, x, edge_index)["same_sign_share"] == 1.0
    assert float(layer.lin_r.weight.grad.abs().max()) < 1e-10 * float(layer.lin_l.weight.grad.abs().max())


def test_identical_features_show_as_no_contrast() -> None:
    layer, _ = layer_with_probe()
    x = torch.randn(1, 6, dtype=torch.float64).expand(60, -1)
    readings = read(layer, x, random_graph())
    assert float(readings["value_contrast"]) < 1e-20
    assert float(readings["path_ratio"]) < 1e-10
    torch.testing.assert_close(readings["entropy_mean"], torch.ones(2, dtype=torch.float64))
    assert float(layer.att.grad.abs().max()) < 1e-12


def test_scaled_attention_shows_as_saturation() -> None:
    layer, _ = layer_with_probe()
    x, edge_index = torch.randn(400, 6, dtype=torch.float64), random_graph(400)
    layer.att.data.normal_()
    entropy, saturated = [], []
    for factor in (1, 10, 10):
        layer.att.data *= factor
        readings = read(layer, x, edge_index)
        entropy.append(float(readings["entropy_mean"].mean()))
        saturated.append(float(readings["saturated_share"]))
    assert entropy[0] > 0.6 and 0.02 < entropy[1] < 0.4 and entropy[2] < 0.05
    assert saturated[0] < 0.01 and 0.05 < saturated[1] < saturated[2] and saturated[2] > 0.7


def test_readings_equal_their_definitions() -> None:
    layer, probe = layer_with_probe()
    x, edge_index = torch.randn(12, 6, dtype=torch.float64), torch.randint(10, (2, 40))
    _, (_, alpha) = layer(x, edge_index, return_attention_weights=True)
    read(layer, x, edge_index)
    with torch.no_grad():
        xl, xr = layer.lin_l(x).view(-1, 2, 4), layer.lin_r(x).view(-1, 2, 4)
        torch.manual_seed(1)
        grad = torch.randn(12, 8, dtype=torch.float64).view(-1, 2, 4)
        into = [(edge_index[1] == node).nonzero().squeeze(-1) for node in range(12)]
        choosing = [edges for edges in into if len(edges) >= 2]
        entropy = torch.stack([-(alpha[e] * alpha[e].log()).sum(0) / math.log(len(e)) for e in choosing])
        spread = size = 0.0
        one_sign, messages, scores = [], torch.zeros_like(xl), torch.zeros_like(xl)
        for edges in choosing:
            node, source = int(edge_index[1, edges[0]]), edge_index[0, edges]
            weight = alpha[edges].unsqueeze(-1)
            mean = (weight * xl[source]).sum(0)
            spread += float((weight * (xl[source] - mean).square()).sum())
            size += float((weight * xl[source].square()).sum())
            positive = xl[source] + xr[node] > 0
            one_sign.append((positive.all(0) | ~positive.any(0)).double())
            gain = (grad[node] * xl[source]).sum(-1)
            grad_logit = alpha[edges] * (gain - (alpha[edges] * gain).sum(0))
            slope = torch.where(positive, 1.0, 0.2)
            messages.index_add_(0, source, weight * grad[node])
            scores.index_add_(0, source, grad_logit.unsqueeze(-1) * layer.att[0] * slope)
    readings = probe.readings
    torch.testing.assert_close(readings["entropy_mean"], entropy.mean(0))
    torch.testing.assert_close(readings["entropy_p10"], entropy.sort(0).values[(len(choosing) - 1) // 10])
    torch.testing.assert_close(readings["value_contrast"], torch.tensor(spread / size, dtype=torch.float64))
    torch.testing.assert_close(readings["same_sign_share"], torch.stack(one_sign).mean())
    torch.testing.assert_close(readings["path_ratio"], scores.norm() / messages.norm())
    torch.testing.assert_close(readings["low_degree_share"], torch.tensor(1 - len(choosing) / 12, dtype=torch.float64))
    assert 0.0 <= float(readings["shift_residual"]) < 1e-12


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_all_forms_read_the_same_and_gradients_do_not_change(dropout: float) -> None:
    layer, probe = layer_with_probe(dropout=dropout)
    blocks = block_graph(mlp_spec([3, 5, 4, 2]), reverse_edges=True)
    x = torch.randn(3 * blocks.num_nodes, 6, dtype=torch.float64)
    _, (edge_index, _) = layer(x, blocks, return_attention_weights=True)
    read(layer, x, blocks)
    expected, grads = probe.readings, [p.grad.clone() for p in layer.parameters()]
    for form in ("edge_list", "csr"):
        layer.form = form
        readings = read(layer, x, edge_index.contiguous())
        assert readings.keys() == expected.keys()
        for name in set(readings) - {"shift_residual"}:
            torch.testing.assert_close(readings[name], expected[name], msg=name)
    layer.form, layer.probe = "auto", None
    torch.manual_seed(1)
    layer.zero_grad()
    y = layer(x, blocks)
    y.backward(torch.randn_like(y))
    assert probe.readings.keys() == expected.keys()
    for parameter, grad in zip(layer.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_a_graph_without_edges_reads_as_having_no_choice() -> None:
    layer, _ = layer_with_probe()
    readings = read(layer, torch.randn(5, 6, dtype=torch.float64), torch.zeros(2, 0, dtype=torch.int64))
    assert readings["low_degree_share"] == 1.0 and readings["entropy_mean"].isnan().all()
