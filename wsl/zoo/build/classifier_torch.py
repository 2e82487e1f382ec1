"""Train small classifiers in torch, all at once: the networks are the groups of one convolution.

Slower than :mod:`wsl.zoo.build.classifier_native` on a processor; for machines without a compiler, and for GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from wsl.zoo.build.classifier_fit import Architecture, LabelledImages, Training

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "tanh": torch.tanh, "gelu": F.gelu}
BETA1, BETA2, ALPHA, EPS = 0.9, 0.999, 0.9, 1e-7
IMAGES_AT_ONCE = 256  # in evaluation
WORD = 0xFFFFFFFF


def train_rows(
    architecture: Architecture,
    trainings: Sequence[Training],
    images: LabelledImages,
    test: LabelledImages,
    checkpoints: Sequence[int],
    device: str = "cpu",
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Train networks together; see :func:`wsl.zoo.build.classifier_fit.train`."""
    state = _Networks(architecture, trainings, device)
    x, y = _tensors(images, device)
    kept = [{epoch * t.order.shape[1]: place for place, epoch in enumerate(checkpoints)} for t in trainings]
    rows = torch.full((len(trainings), len(checkpoints), architecture.numel), math.nan, dtype=x.dtype, device=device)
    orders = [
        torch.from_numpy(t.order[: checkpoints[-1]]).to(device).reshape(-1, t.order.shape[2]).long() for t in trainings
    ]
    last = [len(order) for order in orders]
    for step in range(max(last) + 1):
        for network, places in enumerate(kept):
            if step in places:
                rows[network, places[step]] = state.values[network]
        active = torch.tensor([step < end for end in last], device=device)
        if active.any():
            batch = torch.stack([order[min(step, len(order) - 1)] for order in orders])
            state.step(x[batch], y[batch], step, active)
    return [
        (rows[b].cpu().numpy(), state.evaluate(b, rows[b], (x, y), torch.from_numpy(t.used), _tensors(test, device)))
        for b, t in enumerate(trainings)
    ]


def _tensors(images: LabelledImages, device: str) -> tuple[Tensor, Tensor]:
    pixels, labels = torch.from_numpy(images.pixels), torch.from_numpy(images.labels)
    return pixels.movedim(-1, 1).contiguous().to(device), labels.long().to(device)


class _Networks:
    """B networks ``[B, P]`` with their optimisers."""

    def __init__(self, architecture: Architecture, trainings: Sequence[Training], device: str) -> None:
        self.architecture, self.device = architecture, device
        self.values = torch.from_numpy(np.stack([t.start for t in trainings])).to(device)
        self.mean, self.square = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self.activations = [t.activation for t in trainings]

        def column(numbers: list[float]) -> Tensor:
            return torch.tensor(numbers, dtype=self.values.dtype, device=device).unsqueeze(1)

        self.rate, self.l2 = column([t.learning_rate for t in trainings]), column([t.l2 for t in trainings])
        self.is_adam = column([t.optimizer == "adam" for t in trainings]).bool()
        self.decay = column([BETA2 if t.optimizer == "adam" else ALPHA for t in trainings])
        self.is_rmsprop = column([t.optimizer == "rmsprop" for t in trainings]).bool()
        self.key = torch.tensor([t.key for t in trainings], dtype=torch.int64, device=device)
        self.threshold = torch.tensor([t.threshold for t in trainings], dtype=torch.int64, device=device)
        penalised = [torch.full((math.prod(s),), float(len(s) > 1)) for s in architecture.shapes]
        self.penalised = torch.cat(penalised).to(self.values)

    def step(self, x: Tensor, y: Tensor, step: int, active: Tensor) -> None:
        """One update of the active networks, on images ``[B, N, C, H, W]`` and labels ``[B, N]``."""
        values = self.values.detach().requires_grad_()
        logits = self.forward(values, x, self.activations, step if self.threshold.any() else None)
        losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
        (gradient,) = torch.autograd.grad(losses.reshape(y.shape).mean(1).sum(), values)
        gradient = gradient + 2 * self.l2 * self.penalised * self.values
        self.mean = BETA1 * self.mean + (1 - BETA1) * gradient
        self.square = self.decay * self.square + (1 - self.decay) * gradient.square()
        root = self.square.sqrt()
        adam = self.mean / (1 - BETA1 ** (step + 1)) / (root / math.sqrt(1 - BETA2 ** (step + 1)) + EPS)
        change = torch.where(self.is_adam, adam, torch.where(self.is_rmsprop, gradient / (root + EPS), gradient))
        self.values = torch.where(active.unsqueeze(1), self.values - self.rate * change, self.values)

    def forward(self, values: Tensor, x: Tensor, activations: Sequence[str], step: int | None = None) -> Tensor:
        """Logits ``[B, N, classes]``; with dropout in step number ``step``, None: without."""
        networks = len(x)
        parts = iter(values.split([math.prod(s) for s in self.architecture.shapes], 1))
        shapes = self.architecture.shapes
        h = x.transpose(0, 1).flatten(1, 2)
        for layer in range(len(shapes) // 2 - 1):
            weight, bias = next(parts).reshape(-1, *shapes[2 * layer][1:]), next(parts).flatten()
            h = F.conv2d(h, weight, bias, self.architecture.stride, groups=networks)
            h = h.unflatten(1, (networks, -1))
            h = torch.stack([ACTIVATIONS[name](h[:, b]) for b, name in enumerate(activations)], 1)
            h = (h if step is None else h * self._dropout(step, layer, h)).flatten(1, 2)
        pooled = h.unflatten(1, (networks, -1)).mean((3, 4)).transpose(0, 1)
        weight, bias = next(parts).reshape(networks, *shapes[-2]), next(parts)
        return torch.baddbmm(bias.unsqueeze(1), pooled, weight.mT)

    def _dropout(self, step: int, layer: int, h: Tensor) -> Tensor:
        """0 or 1 / (1 − share), of the shape of ``h [N, B, C, H, W]``: the hash of ``conv_layer.h``."""
        size, _, channels, height, width = h.shape
        key = _mixed(_mixed(self.key + step * (len(self.architecture.channels) - 1)) + layer)
        element = torch.arange(size * height * width * channels, device=self.device)
        element = element.reshape(size, 1, height, width, channels).movedim(-1, 2)
        kept = (_mixed(key.reshape(-1, 1, 1, 1) + element) >> 8) >= self.threshold.reshape(-1, 1, 1, 1)
        return kept / (1 - self.threshold.to(h).reshape(-1, 1, 1, 1) / 2**24)

    @torch.no_grad()
    def evaluate(
        self, network: int, rows: Tensor, images: tuple[Tensor, Tensor], used: Tensor, test: tuple[Tensor, Tensor]
    ) -> np.ndarray:
        """Accuracy and loss on the used images and on the test images, of each checkpoint of a network."""
        found, activations = [], [self.activations[network]] * len(rows)
        for pixels, labels in ((images[0][used.long()], images[1][used.long()]), test):
            right, loss = torch.zeros(2, len(rows), dtype=torch.float64, device=self.device)
            for start in range(0, len(labels), IMAGES_AT_ONCE):
                part, label = pixels[start : start + IMAGES_AT_ONCE], labels[start : start + IMAGES_AT_ONCE]
                logits = self.forward(rows, part.expand(len(rows), *part.shape), activations)
                right += (logits.argmax(2) == label).sum(1)
                each = F.cross_entropy(logits.double().flatten(0, 1), label.repeat(len(rows)), reduction="none")
                loss += each.reshape(len(rows), -1).sum(1)
            found += [right / len(labels), loss / len(labels)]
        return torch.stack(found, 1).cpu().numpy()


def _mixed(x: Tensor) -> Tensor:
    """A hash of 32 bits, in int64; products lose only bits above the lowest 64."""
    x = x & WORD
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & WORD
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & WORD
    return x ^ (x >> 16)
