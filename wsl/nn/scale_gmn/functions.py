"""Functions of one vector that a factor d leaves alone (invariant), or passes through (equivariant).

Source: Kalogeropoulos et al., "Scale Equivariant Graph Metanetworks", NeurIPS 2024, section 4.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from wsl.nn.monomial.characters import Action
from wsl.nn.monomial.invariants import normal_form, unit


class Perceptron(nn.Module):
    """Linear, layer norm (if asked for), SiLU, linear: ``[…, n_in]`` → ``[…, n_out]``.

    ``side``: size of a vector that is read beside the first one, as if behind it; it need only broadcast against it.
    """

    def __init__(self, n_in: int, width: int, n_out: int, norm: bool, side: int = 0) -> None:
        super().__init__()
        self.first = nn.Linear(n_in + side, width)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.last = nn.Linear(width, n_out)

    def hidden(self, z: Tensor) -> Tensor:
        """SiLU(norm(z)) of the first map's result."""
        return F.silu(self.norm(z))

    def begin(self, side: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weight of the first map for x, and all that is added to its product: the bias, and the map of ``side``."""
        if side is None:
            return self.first.weight, self.first.bias
        weight, other = self.first.weight.split([self.first.in_features - side.shape[-1], side.shape[-1]], dim=1)
        return weight, F.linear(side, other, self.first.bias)

    def forward(self, x: Tensor, side: Tensor | None = None) -> Tensor:
        return self.last(self.hidden(affine(x, *self.begin(side))))


def affine(x: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    """W x + offset, which is a vector or one for each x, or something that broadcasts."""
    return F.linear(x, weight, offset) if offset.dim() == 1 else F.linear(x, weight) + offset


class Symmetrised(nn.Module):
    """ρ(x) + ρ(−x) with a perceptron ρ that keeps the size: an even function, ``[…, n]`` → ``[…, n]``."""

    def __init__(self, size: int, width: int, norm: bool) -> None:
        super().__init__()
        self.rho = Perceptron(size, width, size, norm)

    def hidden(self, x: Tensor) -> Tensor:
        """The sum before ρ's last map, which is one matrix product for both signs."""
        z = F.linear(x, self.rho.first.weight)
        bias = self.rho.first.bias
        return self.rho.hidden(bias + z) + self.rho.hidden(bias - z)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.hidden(x), self.rho.last.weight, 2 * self.rho.last.bias)

    def then(self, weight: Tensor, offset: Tensor, x: Tensor) -> Tensor:
        """W · result + offset; two linear maps in a row are one."""
        offset = offset + F.linear(2 * self.rho.last.bias, weight)
        return affine(self.hidden(x), weight @ self.rho.last.weight, offset)


class ScaleInv(nn.Module):
    r"""φ of a canonical form, which no factor of the vector changes.

    .. math:: \tilde x = x/‖x‖ \text{ (positive factors)}, \qquad |x| \text{ or } ρ(x) + ρ(−x) \text{ (signs)}

    Both where both are allowed. Nothing is added to the norm, and the zero vector stays zero.

    Args:
        size, width, out: of the vector, the hidden layers, the result.
        norm: layer norm in the perceptrons.
        symmetrised: the sum instead of absolute values.
        side: size of a vector without factors that φ reads, too.
    """

    def __init__(self, size: int, width: int, out: int, norm: bool, symmetrised: bool, side: int = 0) -> None:
        super().__init__()
        self.even = Symmetrised(size, width, norm) if symmetrised else None
        self.phi = Perceptron(size, width, out, norm, side)

    def forward(self, x: Tensor, acted: Action, side: Tensor | None = None) -> Tensor:
        weight, offset = self.phi.begin(side)
        if acted.signed and self.even is not None:
            z = self.even.then(weight, offset, unit(x) if acted.scaled else x)
        else:
            z = affine(normal_form(x, acted), weight, offset)
        return self.phi.last(self.phi.hidden(z))


def keeping_size(n_in: int, n_out: int) -> nn.Linear:
    """A linear map without bias that keeps the mean square of its input at the start."""
    linear = nn.Linear(n_in, n_out, bias=False)
    nn.init.normal_(linear.weight, std=n_in**-0.5)
    return linear


class ScaleEq(nn.Module):
    """(Γx) ⊙ ScaleInv(x): has the factor of x. The gate starts near 1, so that far layers are heard from the start."""

    def __init__(self, size: int, width: int, norm: bool, symmetrised: bool, side: int = 0) -> None:
        super().__init__()
        self.linear = keeping_size(size, width)
        self.gate = ScaleInv(size, width, width, norm, symmetrised, side)
        nn.init.ones_(self.gate.phi.last.bias)

    def forward(self, x: Tensor, acted: Action, side: Tensor | None = None) -> Tensor:
        return self.linear(x) * self.gate(x, acted, side)
