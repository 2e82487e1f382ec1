"""AdamW for many networks in one vector of parameters, each with its own learning rate and weight decay."""

from __future__ import annotations

import torch
from torch import Tensor

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class AdamW:
    """θ ← θ − η (λ θ + m̂ / (√v̂ + ε)), as torch.optim.AdamW, with η and λ that may differ from value to value.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization". λ = 0 is Adam.

    Args:
        parameters: changed in place; its gradient is read, and cleared, by :meth:`step`.
        learning_rate, weight_decay: η and λ, tensors that broadcast to the parameters.
    """

    def __init__(self, parameters: Tensor, learning_rate: Tensor, weight_decay: Tensor) -> None:
        self.parameters = parameters.requires_grad_()
        self.learning_rate, self.decay = learning_rate, 1 - learning_rate * weight_decay
        self.first, self.second = torch.zeros_like(parameters), torch.zeros_like(parameters)
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """One update."""
        gradient = self.parameters.grad
        assert gradient is not None
        self.steps += 1
        self.first.lerp_(gradient, 1 - BETA1)
        self.second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        size = (self.second / (1 - BETA2**self.steps)).sqrt_().add_(EPS)
        move = (self.first / size).mul_(self.learning_rate / (1 - BETA1**self.steps))
        self.parameters.mul_(self.decay).sub_(move)
        self.parameters.grad = None
