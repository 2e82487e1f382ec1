"""NG-GNN against its formulas, node by node and edge by edge, for one network at a time.

The reference shares the parameters with the encoder and nothing else: no blocks, no batch, no spec. Source: Kofinas et
al., section 3, and Corso et al. for the aggregation; positions of the readout are the output neurons.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsl.batch import WeightBatch
from wsl.encoders.ng_gnn import NGGNN
from wsl.spec import mlp_spec

WIDTHS = (2, 4, 3, 2)
SPEC = mlp_spec(WIDTHS, "sine", {"omega": 3.0}, output_offset=0.5)


def waves(values: list[float], frequencies: Tensor) -> Tensor:
    turns = frequencies @ torch.tensor(values, dtype=torch.float64)
    return torch.cat([torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)])


def activations(weights: list[Tensor], biases: list[Tensor], probe: Tensor) -> list[Tensor]:
    x, out = probe, [probe]
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        z = weight @ x + bias
        x = torch.sin(3.0 * z) if layer < len(weights) - 1 else z + 0.5
        out.append(x)
    return out


def reference(model: NGGNN, row: Tensor, norm: str) -> Tensor:
    """The encoder's output for one network, from its row of parameters."""
    state, reverse = model.state_dict(), model.embed.reverse
    offsets = [sum(WIDTHS[:i]) for i in range(len(WIDTHS))]
    weights, biases, position = [], [], 0
    for n_in, n_out in pairwise(WIDTHS):
        weights.append(row[position : position + n_in * n_out].reshape(n_out, n_in))
        biases.append(row[position + n_in * n_out : position + n_in * n_out + n_out])
        position += n_out * (n_in + 1)
    mean, std = state["standardize.mean"], state["standardize.std"]
    edges: dict[tuple[int, int], list[float]] = {}  # (sender, receiver) → features
    node_values = [0.0] * sum(WIDTHS)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        for o in range(WIDTHS[layer + 1]):
            receiver = offsets[layer + 1] + o
            node_values[receiver] = float((bias[o] - mean[2 * layer + 1]) / std[2 * layer + 1])
            for i in range(WIDTHS[layer]):
                w = float((weight[o, i] - mean[2 * layer]) / std[2 * layer])
                edges[offsets[layer] + i, receiver] = [w, 0.0, w] if reverse else [w]
                if reverse:
                    edges[receiver, offsets[layer] + i] = [0.0, w, w]

    embed = model.embed
    x = [embed.lift_nodes(waves([v], embed.node_waves.frequencies)) for v in node_values]
    probed = [activations(weights, biases, p) for p in embed.probe_features.probes]
    for layer, size in enumerate(WIDTHS):
        for n in range(size):
            seen = torch.stack([run[layer][n] for run in probed])
            x[offsets[layer] + n] = x[offsets[layer] + n] + embed.probe_features.embed[layer](seen)
    table, rows = embed.positional.weight, [0, 1, *[2] * 4, *[3] * 3, 4, 5]  # inputs and outputs have their own
    x = [embed.project_nodes(v) + table[rows[n]] for n, v in enumerate(x)]
    e = {k: embed.project_edges(embed.lift_edges(waves(v, embed.edge_waves.frequencies))) for k, v in edges.items()}

    in_forward = {n: sum(1 for s, r in edges if r == n and s < r) for n in range(len(x))}
    delta = sum(math.log(d + 1) for d in in_forward.values()) / len(x)
    for number, layer in enumerate(model.layers):
        if number:
            u = layer.edge_update
            e = {(j, i): u.out(F.silu(u.edge(v) + u.source(x[j]) + u.target(x[i]))) for (j, i), v in e.items()}
        y = []
        for i in range(len(x)):
            messages = []
            for (j, receiver), v in e.items():
                if receiver == i:
                    scale, shift = layer.film(v).chunk(2)
                    messages.append(scale * layer.pair(torch.cat([x[i], x[j]])) + shift)
            h = aggregate(messages, x[i].shape[0])
            amplification = float(layer.amplification[i])  # a constant that is kept in float32
            assert amplification == pytest.approx(math.log(len(messages) + 1) / delta, rel=1e-6)
            y.append(layer.out(layer.combine(torch.cat([x[i], h, amplification * h]))))
        if number < len(model.norms):
            y = [F.silu(v) for v in normalised(torch.stack(y), norm, model.norms[number])]
        x = [a + b for a, b in zip(x, y, strict=True)] if model.residual else y
    return model.readout(torch.cat(x[offsets[-1] :]))


def normalised(y: Tensor, kind: str, norm: nn.Module) -> Tensor:
    """Node states ``[N, C]`` of one network, by one mean and deviation, each node's own, or not."""
    if kind == "none":
        return y
    weight, bias = norm.parameters()
    each = None if kind == "network" else -1
    mean = y.mean() if each is None else y.mean(each, keepdim=True)
    variance = y.var(correction=0) if each is None else y.var(each, correction=0, keepdim=True)
    return (y - mean) / (variance + norm.eps).sqrt() * weight + bias


def aggregate(messages: list[Tensor], width: int) -> Tensor:
    if not messages:
        return torch.cat([torch.zeros(3 * width, dtype=torch.float64), torch.full((width,), math.sqrt(1e-5)).double()])
    m = torch.stack(messages)
    std = (m.square().mean(0) - m.mean(0).square()).clamp_min(1e-5).sqrt()
    return torch.cat([m.mean(0), m.amin(0), m.amax(0), std])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("residual, norm", [(False, "network"), (True, "network"), (True, "layer"), (True, "none")])
def test_the_encoder_is_its_formulas(reverse: bool, residual: bool, norm: str) -> None:
    torch.manual_seed(0)
    model = NGGNN(
        SPEC, 5, width=6, layers=3, probes=4, reverse_edges=reverse, residual=residual, fourier_features=7, norm=norm
    ).double().eval()  # fmt: skip
    batch = WeightBatch(SPEC, torch.randn(3, SPEC.numel, 1, dtype=torch.float64) * 0.3)
    model.fit_statistics(batch)
    with torch.no_grad():
        expected = torch.stack([reference(model, row, norm) for row in batch.values.squeeze(-1)])
        found = model(batch)
    assert (found - expected).abs().max() < 1e-10 * expected.abs().max()
