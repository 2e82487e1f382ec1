"""Balanced initialisation of a stack of attention layers.

With a positively homogeneous activation between the layers, gradient flow keeps for every channel r between layers ℓ
and ℓ + 1

    c_r = ‖W_l[r]‖² + ‖W_r[r]‖² + ‖W_e[r]‖² + biases² − a_r² − ‖W_l'[:, r]‖² − ‖W_r'[:, r]‖²      (primes: layer ℓ + 1)

constant. Where c_r starts far from 0, one side holds almost all of the weight and hardly moves; so start at c_r = 0.
Source: Mustafa, Bojchevski, Burkholz, "Are GATs Out of Balance?", NeurIPS 2023, arXiv 2310.07235.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from wsl.nn.gatv2.scores import LeakyReLUScore
from wsl.nn.gatv2_conv import GATv2Conv


@torch.no_grad()
def balance_(layers: Sequence[GATv2Conv], first_norm: float = 2.0, beta: float = 1.0) -> None:
    """Set all parameters of consecutive layers so that every c_r is 0, with mirrored ("looks-linear") orthogonal maps.

    Args:
        layers: in order; each reads what the one before it returns, through ReLU, LeakyReLU or nothing.
        first_norm: squared norm of the rows of the first layer, over all its maps together.
        beta: share of a channel's squared norm that the next layer's columns get; the attention vector gets the rest,
            so 1 starts with uniform attention.

    Raises:
        ValueError: if the widths do not fit or are odd, a layer's score is not homogeneous, or beta is not in [0, 1].
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta is a share in [0, 1], got {beta}")
    _check(layers)
    for number, layer in enumerate(layers):
        for linear in node_maps(layer):
            nn.init.orthogonal_(linear.weight)
            _mirror_(linear.weight, rows=number < len(layers) - 1, columns=number > 0)
        for parameter in (layer.bias, *(linear.bias for linear in node_maps(layer))):
            if parameter is not None:
                parameter.zero_()
    if layers:
        rows = _row_norms(layers[0])
        _scale_rows_(layers[0], (first_norm / rows.clamp_min(torch.finfo(rows.dtype).tiny)).sqrt())
    for layer, following in pairwise(layers):
        wanted = _row_norms(layer) * beta
        factor = (wanted / _column_norms(following)).sqrt()
        for linear in node_maps(following):
            linear.weight *= factor
        rest = (_row_norms(layer) - wanted).clamp_min(0.0)
        att = layer.att[0]
        share = rest.view(att.shape) if layer.concat else (rest / layer.heads).expand(att.shape)
        att.copy_(share.sqrt() * att.sign())
    if layers:
        layers[-1].att.zero_()


@torch.no_grad()
def imbalance(layer: GATv2Conv, following: GATv2Conv) -> Tensor:
    """c_r divided by the sum of its terms, per channel between two layers: in [−1, 1], 0 is balanced."""
    ours = _row_norms(layer)
    if layer.bias is not None:
        ours = ours + layer.bias.square()
    att = layer.att[0].square()
    theirs = (att.flatten() if layer.concat else att.sum(0)) + _column_norms(following)
    return (ours - theirs) / (ours + theirs).clamp_min(torch.finfo(ours.dtype).tiny)


def node_maps(layer: GATv2Conv) -> list[nn.Linear]:
    """Every map of node features, a shared one once."""
    maps = (layer.lin_l, None if layer.share_weights else layer.lin_r, layer.res, layer.lin_n)
    return [linear for linear in maps if linear is not None]


def _maps(layer: GATv2Conv) -> list[nn.Linear]:
    return [*node_maps(layer), *([] if layer.lin_edge is None else [layer.lin_edge])]


def per_channel(layer: GATv2Conv, rows: Tensor) -> Tensor:
    """Values of a map's rows → of the layer's output channels."""
    return rows if layer.concat or len(rows) == layer.out_channels else rows.view(layer.heads, -1).sum(0)


def _row_norms(layer: GATv2Conv) -> Tensor:
    """Squared norm of what feeds each output channel, biases of the maps included."""
    total = layer.att.new_zeros(layer.out_channels * (layer.heads if layer.concat else 1))
    for linear in _maps(layer):
        rows = linear.weight.square().sum(1)
        total += per_channel(layer, rows if linear.bias is None else rows + linear.bias.square())
    return total


def _column_norms(layer: GATv2Conv) -> Tensor:
    """Squared norm of what reads each input channel."""
    return torch.stack([linear.weight.square().sum(0) for linear in node_maps(layer)]).sum(0)


def _scale_rows_(layer: GATv2Conv, factor: Tensor) -> None:
    for linear in _maps(layer):
        repeats = len(linear.weight) // len(factor)
        linear.weight *= factor.repeat(repeats).unsqueeze(-1)


def _mirror_(weight: Tensor, rows: bool, columns: bool) -> None:
    """[δ; −δ], [δ, −δ] or both, from the δ in the upper left corner."""
    if rows:
        half = len(weight) // 2
        weight[half:] = -weight[:half]
    if columns:
        half = weight.shape[1] // 2
        weight[:, half:] = -weight[:, :half]


def _check(layers: Sequence[GATv2Conv]) -> None:
    for number, layer in enumerate(layers):
        if not isinstance(layer.score, LeakyReLUScore):
            raise ValueError(f"layer {number}: balance needs a positively homogeneous score, not {layer.score}")
    for number, (layer, following) in enumerate(pairwise(layers)):
        width = layer.out_channels * (layer.heads if layer.concat else 1)
        for linear in node_maps(following):
            if linear.weight.shape[1] != width:
                raise ValueError(f"layer {number} returns {width} features, the next reads {linear.weight.shape[1]}")
        if width % 2:
            raise ValueError(f"layer {number} returns {width} features, mirrored maps need an even number")
