"""Activation functions of input networks, and the neuron symmetries that each of them allows.

A neuron with activation σ may be multiplied by d on its incoming side and by 1/d on its outgoing side if
σ(d·x) = d·σ(x). Which d are allowed decides the symmetry (Tran et al., "Monomial Matrix Group Equivariant Neural
Functional Networks", section 3):

=============  ========================  ==========================================================
symmetry       holds when                for
=============  ========================  ==========================================================
``scaling``    σ(d·x) = d·σ(x), d > 0    ReLU, leaky ReLU, identity
``sign``       σ(−x) = −σ(x)             tanh, sine, identity
``phase``      σ(x + kπ/ω) = (−1)^k σ(x) sine
=============  ========================  ==========================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

#: activation name → the symmetries (beside permutation) that it allows
SYMMETRIES_OF_ACTIVATION: dict[str, frozenset[str]] = {
    "identity": frozenset({"scaling", "sign"}),
    "relu": frozenset({"scaling"}),
    "leaky_relu": frozenset({"scaling"}),
    "tanh": frozenset({"sign"}),
    "sine": frozenset({"sign", "phase"}),
    "sigmoid": frozenset(),
    "gelu": frozenset(),
    "gelu_tanh": frozenset(),
    "silu": frozenset(),
    "elu": frozenset(),
    "softplus": frozenset(),
    "hardtanh": frozenset({"sign"}),
    "relu6": frozenset(),
    "softmax": frozenset(),
    "unknown": frozenset(),
}

#: activation name → its parameters with their defaults
ACTIVATION_PARAMETERS: dict[str, dict[str, float]] = {
    "sine": {"omega": 1.0},
    "leaky_relu": {"slope": 0.01},
    "elu": {"alpha": 1.0},
}


def symmetries_of(activation: str, parameters: Mapping[str, float]) -> frozenset[str]:
    """Symmetries that an activation followed by ``+ offset`` allows: an offset other than 0 leaves none."""
    return frozenset() if parameters.get("offset", 0.0) else SYMMETRIES_OF_ACTIVATION[activation]


def activate(x: Tensor, activation: str, parameters: Mapping[str, float]) -> Tensor:
    """σ(x) + offset, element-wise (softmax: over the last axis).

    Raises:
        ValueError: if the activation is not one that can be computed (``unknown``, or a name not in the table).
    """
    match activation:
        case "identity":
            y = x
        case "sine":
            y = torch.sin(parameters.get("omega", 1.0) * x)
        case "relu":
            y = F.relu(x)
        case "leaky_relu":
            y = F.leaky_relu(x, parameters.get("slope", 0.01))
        case "tanh":
            y = torch.tanh(x)
        case "sigmoid":
            y = torch.sigmoid(x)
        case "gelu":
            y = F.gelu(x)
        case "gelu_tanh":
            y = F.gelu(x, approximate="tanh")
        case "silu":
            y = F.silu(x)
        case "elu":
            y = F.elu(x, parameters.get("alpha", 1.0))
        case "softplus":
            y = F.softplus(x)
        case "hardtanh":
            y = F.hardtanh(x)
        case "relu6":
            y = F.relu6(x)
        case "softmax":
            y = torch.softmax(x, dim=-1)
        case _:
            known = ", ".join(name for name in SYMMETRIES_OF_ACTIVATION if name != "unknown")
            raise ValueError(f"activation {activation!r} cannot be executed; known activations: {known}")
    offset = parameters.get("offset", 0.0)
    return y + offset if offset else y


def half_period(parameters: Mapping[str, float]) -> float:
    """π/ω: the shift of a sine's pre-activation that flips its sign."""
    return math.pi / parameters.get("omega", 1.0)
