"""The nonlinearity inside the attention score: ``logit_e = Σ_c a_c σ(xl_j + xr_i + v_e)_c``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Score(Protocol):
    """σ and its derivative, elementwise."""

    def value(self, u: Tensor) -> Tensor:
        """z = σ(u)."""

    def backward(self, grad: Tensor, u: Tensor) -> Tensor:
        """grad · σ'(u); may be called under no_grad only."""


@dataclass(frozen=True)
class LeakyReLUScore:
    """σ(u) = u for u > 0, else slope · u: the score of GATv2 (Brody, Alon, Yahav, 2022)."""

    slope: float = 0.2

    def value(self, u: Tensor) -> Tensor:
        return F.leaky_relu(u, self.slope)

    def backward(self, grad: Tensor, u: Tensor) -> Tensor:
        return torch.ops.aten.leaky_relu_backward(grad, u, self.slope, False)


@dataclass(frozen=True)
class SoftplusScore:
    """σ(u) = log(1 + e^u): the score of GAT+ (Neumeier et al., IEEE IV 2023).

    σ' differs from edge to edge, so that the target map learns even where all incoming edges of a node agree in sign,
    which is where LeakyReLU gives it no gradient.
    """

    def value(self, u: Tensor) -> Tensor:
        return F.softplus(u)

    def backward(self, grad: Tensor, u: Tensor) -> Tensor:
        # beta 1, threshold 20: the defaults of F.softplus
        return torch.ops.aten.softplus_backward(grad, u, 1.0, 20.0)
