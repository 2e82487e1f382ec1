"""Train many CNNs of different architectures at once: layers of the same shape are the groups of one convolution.

Padding all networks to the largest (32 channels, kernels of 7×7) would multiply the work of the drawn architectures by
nine. So nothing is padded: at each depth, the layers with the same channels and kernel size form a bucket and run as
one grouped convolution; the networks that take no part at a depth have ended before. Channels of all networks lie side
by side, so that an activation or a skip is one operation on all channels that have it.

Axis letters: N images, S channels of all networks at one depth, O and I channels of a layer, B networks of a bucket.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsl.activations import ACTIVATION_PARAMETERS, activate
from wsl.zoo.build.wild_cnn import NO_SKIP, WildCNN


@dataclass(frozen=True)
class _Bucket:
    """Layers of one shape: their networks, where their weights and biases lie, and the channels that they read."""

    networks: list[int]
    weight_shape: tuple[int, ...]  # [B·O, I, k, k], of the head [B, O, I]
    bias_shape: tuple[int, ...]
    sources: Tensor  # channels of the layer before, int64
    groups: int  # B; 1 at the first depth, where all networks read the image


@dataclass(frozen=True)
class _Depth:
    """The layers at one depth: buckets; skips (source depth, source channels, target channels); activations by channel.

    ``buckets`` give the pre-activations in their order; ``activations`` regroup them, one after the other.
    """

    buckets: list[_Bucket]
    skips: list[tuple[int, Tensor, Tensor]]
    activations: list[tuple[str, Tensor]]


class _Head(NamedTuple):
    """The linear layers on networks of one depth and last width."""

    depth: int
    bucket: _Bucket


class Scores(NamedTuple):
    """Mean cross-entropy and share of right answers of each network, float64 ``[networks]``."""

    loss: np.ndarray
    accuracy: np.ndarray


class WildNetworks:
    """Networks of different architectures with one vector of parameters.

    Args:
        cnns: the architectures; they read the same images and have the same classes.
        rows: the networks' weights one after the other, float ``[ΣP]``, each in the order of its state dict.

    Attributes:
        parameters: ``[ΣP]``, in the order in which the buckets read them.
        row_order: ``parameters[row_order]`` are the rows. owner: the network of each parameter.
    """

    def __init__(self, cnns: Sequence[WildCNN], rows: Tensor) -> None:
        self.cnns = list(cnns)
        sizes = [sum(int(np.prod(shape)) for shape in cnn.shapes.values()) for cnn in self.cnns]
        starts = np.cumsum([0, *sizes])
        self._offsets = [
            dict(zip(cnn.shapes, start + np.cumsum([0, *(int(np.prod(s)) for s in cnn.shapes.values())]), strict=False))
            for cnn, start in zip(self.cnns, starts, strict=False)
        ]
        self._places: list[np.ndarray] = []
        self.depths: list[_Depth] = []
        self.heads: list[_Head] = []
        self._lay_out(rows.device)
        place = torch.from_numpy(np.concatenate(self._places)).to(rows.device)
        self.parameters = rows[place].clone()
        self.row_order = torch.empty_like(place).scatter_(0, place, torch.arange(len(place), device=rows.device))
        self.owner = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(rows.device)[place]
        order = [number for head in self.heads for number in head.bucket.networks]
        self._network_order = torch.tensor(np.argsort(order), device=rows.device)

    @property
    def rows(self) -> Tensor:
        """The networks' weights one after the other, ``[ΣP]``."""
        return self.parameters.detach()[self.row_order]

    def logits(self, images: Tensor) -> Tensor:
        """``[networks, N, classes]`` of images ``[N, channels, height, width]``."""
        parts = iter(self.parameters.split([int(np.prod(s)) for s in self._shapes()]))
        tensors = (part.view(shape) for part, shape in zip(parts, self._shapes(), strict=True))
        values: list[Tensor] = []
        for depth in self.depths:
            x = torch.cat([_convolve(b, values[-1] if values else images, tensors) for b in depth.buckets], 1)
            for source, read, written in depth.skips:
                x = x.index_add(1, written, values[source].index_select(1, read))
            values.append(
                torch.cat([_activated(x.index_select(1, index), name) for name, index in depth.activations], 1)
            )
        pooled = [value.mean((2, 3)) for value in values]
        found = []
        for head in self.heads:
            weight, bias = next(tensors), next(tensors)
            features = pooled[head.depth].index_select(1, head.bucket.sources).unflatten(1, (len(weight), -1))
            found.append(torch.baddbmm(bias.unsqueeze(1), features.transpose(0, 1), weight.mT))
        return torch.cat(found).index_select(0, self._network_order)

    @torch.no_grad()
    def scores(self, images: Tensor, labels: Tensor, at_once: int = 256) -> Scores:
        """Loss and accuracy of every network on all images."""
        loss = torch.zeros(len(self.cnns), dtype=torch.float64, device=images.device)
        right = torch.zeros_like(loss)
        for x, y in zip(images.split(at_once), labels.split(at_once), strict=True):
            logits = self.logits(x)
            loss += losses(logits, y).double() * len(y)
            right += (logits.argmax(2) == y).sum(1)
        return Scores((loss / len(labels)).cpu().numpy(), (right / len(labels)).cpu().numpy())

    # -- lay-out ------------------------------------------------------------------------------------------------------

    def _shapes(self) -> Iterator[tuple[int, ...]]:
        for bucket in [b for depth in self.depths for b in depth.buckets] + [head.bucket for head in self.heads]:
            yield bucket.weight_shape
            yield bucket.bias_shape

    def _lay_out(self, device: torch.device) -> None:
        channels: list[dict[int, np.ndarray]] = []  # at each depth, where a network's channels lie
        image = torch.arange(self.cnns[0].inputs, device=device)
        for depth in range(max(cnn.depth for cnn in self.cnns)):
            alive = [number for number, cnn in enumerate(self.cnns) if cnn.depth > depth]
            shape_of = {n: (*self.cnns[n].shapes[f"layers.{depth}.weight"],) for n in alive}
            buckets, before, start = [], dict[int, np.ndarray](), 0
            for shape in sorted(set(shape_of.values())):
                networks = [n for n in alive if shape_of[n] == shape]
                sources = _index([channels[-1][n] for n in networks], device) if depth else image
                buckets.append(self._bucket(f"layers.{depth}", networks, sources, len(networks) if depth else 1))
                for number in networks:
                    before[number] = np.arange(start, start + shape[0])
                    start += shape[0]
            after, activations = self._activations(depth, alive, before, device)
            self.depths.append(_Depth(buckets, self._skips(depth, alive, before, channels, device), activations))
            channels.append(after)
        for depth, width in sorted({(cnn.depth, cnn.widths[-1]) for cnn in self.cnns}):
            networks = [n for n, cnn in enumerate(self.cnns) if (cnn.depth, cnn.widths[-1]) == (depth, width)]
            sources = _index([channels[depth - 1][n] for n in networks], device)
            self.heads.append(_Head(depth - 1, self._bucket("fc", networks, sources, len(networks))))

    def _bucket(self, layer: str, networks: list[int], sources: Tensor, groups: int) -> _Bucket:
        shapes = []
        for part in ("weight", "bias"):
            one = self.cnns[networks[0]].shapes[f"{layer}.{part}"]
            shapes.append((len(networks), *one) if layer == "fc" else (len(networks) * one[0], *one[1:]))
            for number in networks:
                start = self._offsets[number][f"{layer}.{part}"]
                self._places.append(np.arange(start, start + int(np.prod(one))))
        return _Bucket(networks, shapes[0], shapes[1], sources, groups)

    def _activations(
        self, depth: int, alive: Sequence[int], before: dict[int, np.ndarray], device: torch.device
    ) -> tuple[dict[int, np.ndarray], list[tuple[str, Tensor]]]:
        """Channels by activation, and where that puts each network's."""
        of_name: dict[str, list[int]] = defaultdict(list)
        for number in alive:
            of_name[self.cnns[number].activations[depth]].append(number)
        after, found, start = dict[int, np.ndarray](), [], 0
        for name, networks in sorted(of_name.items()):
            found.append((name, _index([before[n] for n in networks], device)))
            for number in networks:
                after[number] = np.arange(start, start + len(before[number]))
                start += len(before[number])
        return after, found

    def _skips(
        self,
        depth: int,
        alive: Sequence[int],
        before: dict[int, np.ndarray],
        channels: Sequence[dict[int, np.ndarray]],
        device: torch.device,
    ) -> list[tuple[int, Tensor, Tensor]]:
        of_source: dict[int, list[int]] = defaultdict(list)
        for number in alive:
            if (source := self.cnns[number].skips[depth]) != NO_SKIP:
                of_source[source].append(number)
        found = []
        for source, networks in sorted(of_source.items()):
            shared = [min(len(channels[source][n]), len(before[n])) for n in networks]
            read = _index([channels[source][n][:m] for n, m in zip(networks, shared, strict=True)], device)
            written = _index([before[n][:m] for n, m in zip(networks, shared, strict=True)], device)
            found.append((source, read, written))
        return found


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each network, ``[networks]``, from ``[networks, N, classes]``."""
    picked = F.log_softmax(logits, dim=2).gather(2, labels.expand(len(logits), -1).unsqueeze(2))
    return -picked.mean((1, 2))


def _convolve(bucket: _Bucket, x: Tensor, tensors: Iterator[Tensor]) -> Tensor:
    weight, bias = next(tensors), next(tensors)
    padding = bucket.weight_shape[-1] // 2
    return F.conv2d(x.index_select(1, bucket.sources), weight, bias, padding=padding, groups=bucket.groups)


def _activated(x: Tensor, name: str) -> Tensor:
    return activate(x, name, ACTIVATION_PARAMETERS.get(name, {}))


def _index(parts: Sequence[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(device)
