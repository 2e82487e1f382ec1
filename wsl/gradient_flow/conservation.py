"""D11 and D12: what gradient flow conserves between neighbouring GATv2 layers, and how evenly it is shared.

Where only channel-wise, positively homogeneous operations (ReLU, dropout) stand between layers ℓ and ℓ + 1, channel r
can be scaled up on one side and down on the other without changing the function. So for any loss, in a backward pass,

    Σ_maps ⟨W[r], dW[r]⟩ + Σ_biases b_r db_r − a_r da_r = Σ_maps' ⟨W'[:, r], dW'[:, r]⟩        (primes: layer ℓ + 1)

Source: Mustafa, Bojchevski, Burkholz, "Are GATs Out of Balance?", NeurIPS 2023, here with edge maps, shared maps,
biases and averaged heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsl.nn.gatv2.balance import imbalance, node_maps, per_channel
from wsl.nn.gatv2_conv import GATv2Conv


@torch.no_grad()
def residual(layer: GATv2Conv, following: GATv2Conv) -> float:
    """D11: ‖left − right‖₁ / (‖left‖₁ + ‖right‖₁) over the channels between two layers, from their gradients.

    0 but for rounding where the law holds; the caller must know that it does (see ``conserved_pairs`` of the encoders).
    """
    left = _leaving(layer)
    right = torch.zeros_like(left)
    for linear in node_maps(following):
        if linear.weight.grad is not None:
            right += (linear.weight * linear.weight.grad).sum(0)
    size = left.abs().sum() + right.abs().sum()
    return float((left - right).abs().sum() / size.clamp_min(torch.finfo(size.dtype).tiny))


def balance_level(layer: GATv2Conv, following: GATv2Conv) -> float:
    """D12: median over the channels of c_r, the conserved difference, relative to the sum of its terms: in [−1, 1].

    Near ±1 one side holds all of the weight, and hardly moves.
    """
    return float(imbalance(layer, following).median())


def _leaving(layer: GATv2Conv) -> Tensor:
    """The left side, one number per output channel of the layer."""
    total = torch.zeros(layer.out_channels * (layer.heads if layer.concat else 1)).to(layer.att)
    for linear in [*node_maps(layer), *([] if layer.lin_edge is None else [layer.lin_edge])]:
        products = _product(linear.weight).sum(1)
        total += per_channel(layer, products if linear.bias is None else products + _product(linear.bias))
    if layer.bias is not None:
        total += _product(layer.bias)
    return total - per_channel(layer, _product(layer.att).flatten())


def _product(parameter: Tensor) -> Tensor:
    """p · dp, 0 without a gradient."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.detach() * parameter.grad
