"""Fit many SIRENs at once, each to its own image: one forward and backward pass written out by hand, and Adam.

    h_0 = coordinates,   z_l = W_l h_{l-1} + b_l,   h_l = sin(ω z_l)  (l < L),   y = z_L + offset
    loss of a network = mean over pixels and channels of (y − target)²

Two kernels do the same: ``native``, compiled C, is the default; ``torch`` needs no compiler, runs on any device and is
what the C is tested against. A network stops, and its weights freeze, once its error is small enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsl.zoo.build import siren_native

Kernel = Literal["native", "torch"]
Convention = Literal["dwsnets", "nfn"]
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
PIXELS_AT_ONCE = 8 * 28 * 28  # of the torch kernel: more leave the cache, fewer leave the matmuls too small


@dataclass(frozen=True)
class Siren:
    """Shape and constants of the networks: widths d_0 … d_L, ω of every sine, and what is added to the output."""

    widths: tuple[int, ...]
    omega: float = 30.0
    output_offset: float = 0.5

    @property
    def numel(self) -> int:
        """P: values of a row, ``[W_1 | b_1 | W_2 | …]`` with W_l ``[d_l, d_{l-1}]``."""
        return sum(o * (i + 1) for i, o in pairwise(self.widths))


class Schedule(NamedTuple):
    """Adam's learning rate, the largest number of steps, and the error at which a network is done."""

    learning_rate: float
    steps: int
    stop_mse: float = 0.0


class Fit(NamedTuple):
    """Fitted rows ``[B, P]``, their mean squared errors ``[B]`` float64, and the updates each took ``[B]`` int32."""

    values: np.ndarray
    mse: np.ndarray
    steps: np.ndarray


def default_kernel() -> Kernel:
    """``native`` where a C compiler works, else ``torch``."""
    return "native" if siren_native.available() else "torch"


def initial_values(siren: Siren, seeds: Sequence[Sequence[int]], convention: Convention = "dwsnets") -> np.ndarray:
    """Fresh networks in the convention of published INR sets, float32 ``[B, P]``.

    ``dwsnets``: weights, those of the first layer too, are uniform within ±√(6 / fan_in) / ω; biases are zero.
    ``nfn``: weights of the first layer are uniform within ±1 / fan_in, others as above, as Sitzmann et al. start a
    SIREN; biases are uniform within ±1 / √fan_in.

    Args:
        seeds: for each network the numbers that its values are a function of, and of nothing else.
    """
    rows = np.zeros((len(seeds), siren.numel), dtype=np.float32)
    for row, seed in zip(rows, seeds, strict=True):
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(list(seed))))
        start = 0
        for n_in, n_out in pairwise(siren.widths):
            bound = 1 / n_in if convention == "nfn" and start == 0 else math.sqrt(6 / n_in) / siren.omega
            row[start : start + n_in * n_out] = generator.uniform(-bound, bound, n_in * n_out)
            start += n_out * (n_in + 1)
            if convention == "nfn":
                row[start - n_out : start] = generator.uniform(-(n_in**-0.5), n_in**-0.5, n_out)
    return rows


def fit(
    siren: Siren,
    values: np.ndarray,
    coordinates: np.ndarray,
    targets: np.ndarray,
    schedule: Schedule,
    kernel: Kernel | None = None,
) -> Fit:
    """Fit each network to its image.

    Args:
        values: ``[B, P]``, where the networks start; not changed.
        coordinates: ``[N, d_0]``, where the pixels lie. ``targets``: ``[B, N, d_L]``, their values. All of one type.
        kernel: None chooses by :func:`default_kernel`.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    pixels = (len(values), len(coordinates), siren.widths[-1])
    inputs = (len(coordinates), siren.widths[0])
    if values.shape[1:] != (siren.numel,) or targets.shape != pixels or coordinates.shape != inputs:
        raise ValueError(
            f"values {values.shape}, coordinates {coordinates.shape} and targets {targets.shape} do not fit {siren}: "
            f"[B, {siren.numel}], {inputs} and {pixels} do"
        )
    if (kernel or default_kernel()) == "torch":
        size = max(1, PIXELS_AT_ONCE // len(coordinates))
        chunks = [slice(start, start + size) for start in range(0, len(values), size)]
        parts = [_fit_torch(siren, values[c], coordinates, targets[c], schedule) for c in chunks]
        return Fit(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    rows = np.array(values, order="C")
    x, y = np.ascontiguousarray(coordinates), np.ascontiguousarray(targets)
    rates = (schedule.learning_rate, BETA1, BETA2, EPS)
    constants = (siren.widths, siren.omega, siren.output_offset)
    mse, steps = siren_native.fit_rows(*constants, rows, x, y, rates, schedule.steps, schedule.stop_mse)
    return Fit(rows, mse, steps)


def _fit_torch(
    siren: Siren, values: np.ndarray, coordinates: np.ndarray, targets: np.ndarray, schedule: Schedule
) -> Fit:
    state = _State(siren, torch.from_numpy(values), torch.from_numpy(coordinates), torch.from_numpy(targets))
    alive = torch.ones(len(values), 1, dtype=torch.bool)
    used = torch.zeros(len(values), 1, dtype=torch.int32)
    for step in range(schedule.steps + 1):
        mse = state.forward()
        still = alive & ~(mse.unsqueeze(1) <= schedule.stop_mse)
        if step == schedule.steps or not still.any():
            break
        if not torch.equal(still, alive):
            alive = still
            state.freeze(~alive)
        used += alive
        state.backward()
        state.adam(step + 1, schedule.learning_rate)
    return Fit(state.rows(), mse.double().numpy(), used.squeeze(1).numpy())


class _State:
    """Preallocated buffers of one batch; features are rows and pixels columns, so sums over pixels are matmuls.

    Each layer's weight and bias are one matrix ``[B, O, I + 1]``, and the values that it reads, ``[B, I + 1, N]``, end
    with a row of ones. All layers lie one after the other in one flat vector, which Adam runs over.
    """

    def __init__(self, siren: Siren, values: Tensor, coordinates: Tensor, targets: Tensor) -> None:
        self.siren, self.size, pixels = siren, len(values), len(coordinates)
        self.shapes = [(self.size, n_out, n_in + 1) for n_in, n_out in pairwise(siren.widths)]
        flat = []
        for part, (_, n_out, n_in) in zip(
            values.split([o * i for _, o, i in self.shapes], 1), self.shapes, strict=True
        ):
            weight, bias = part.split([n_out * (n_in - 1), n_out], 1)
            flat.append(torch.cat([weight.reshape(-1, n_out, n_in - 1), bias.unsqueeze(2)], 2).flatten())
        self.parameters = torch.cat(flat)
        self.gradient, self.scratch = torch.zeros_like(self.parameters), torch.zeros_like(self.parameters)
        self.mean, self.square = torch.zeros_like(self.parameters), torch.zeros_like(self.parameters)
        self.moving = torch.ones_like(self.parameters)
        self.weights, self.gradients = self._layers(self.parameters), self._layers(self.gradient)
        self.targets = targets.mT.contiguous()
        ones = values.new_ones
        self.h = [ones(self.size, d + 1, pixels) for d in siren.widths[:-1]]
        self.h[0][:, :-1] = coordinates.T
        self.slope = [values.new_empty(self.size, d, pixels) for d in siren.widths[1:-1]]
        self.arriving = [torch.empty_like(s) for s in self.slope[:-1]]
        self.error = torch.empty_like(self.targets)

    def forward(self) -> Tensor:
        """Run the networks; the mean squared error of each, ``[B]``."""
        omega = self.siren.omega
        for layer, z in enumerate(self.slope):
            torch.baddbmm(z, self.weights[layer], self.h[layer], beta=0, alpha=omega, out=z)
            torch.sin(z, out=self.h[layer + 1][:, :-1])
            torch.cos(z, out=z)
        torch.bmm(self.weights[-1], self.h[-1], out=self.error)
        self.error.add_(self.siren.output_offset).sub_(self.targets)
        return (self.error * self.error).mean((1, 2))

    def backward(self) -> None:
        """Gradients of the losses, from what :meth:`forward` left (which is used up)."""
        d = self.error.mul_(2 / self.error[0].numel())
        torch.bmm(d, self.h[-1].mT, out=self.gradients[-1])
        for layer in reversed(range(len(self.slope))):
            slope = self.slope[layer]
            if layer == len(self.slope) - 1:
                slope.mul_(torch.bmm(self.weights[layer + 1][:, :, :-1].mT, d))
            else:
                torch.bmm(self.weights[layer + 1][:, :, :-1].mT, d, out=self.arriving[layer])
                slope.mul_(self.arriving[layer])
            d = slope.mul_(self.siren.omega)
            torch.bmm(d, self.h[layer].mT, out=self.gradients[layer])

    def adam(self, step: int, rate: float) -> None:
        """One update, as ``torch.optim.Adam`` makes it; frozen networks stay."""
        self.mean.lerp_(self.gradient, 1 - BETA1)
        self.square.mul_(BETA2).addcmul_(self.gradient, self.gradient, value=1 - BETA2)
        torch.sqrt(self.square, out=self.scratch)
        self.scratch.div_(math.sqrt(1 - BETA2**step)).add_(EPS)
        torch.div(self.mean, self.scratch, out=self.scratch)
        self.parameters.sub_(self.scratch.mul_(self.moving), alpha=rate / (1 - BETA1**step))

    def freeze(self, done: Tensor) -> None:
        """Stop updating the networks of the mask ``done [B, 1]``."""
        for layer in self._layers(self.moving):
            layer.masked_fill_(done.unsqueeze(2), 0)

    def rows(self) -> np.ndarray:
        parts = [part for w in self.weights for part in (w[:, :, :-1].flatten(1), w[:, :, -1])]
        return torch.cat(parts, 1).numpy()

    def _layers(self, flat: Tensor) -> list[Tensor]:
        return [
            part.view(s) for part, s in zip(flat.split([math.prod(s) for s in self.shapes]), self.shapes, strict=True)
        ]
