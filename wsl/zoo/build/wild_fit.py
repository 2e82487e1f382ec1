"""Train many CNNs of different architectures at once: layers of the same shape are the groups of one convolution.

Padding all networks to the largest (32 channels, kernels of 7×7) would multiply the work of the drawn architectures by
eight. So nothing is padded: at each depth, the layers with the same channels and kernel size form a bucket and run as
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
    """Layers of one shape, and the networks that they belong to."""

    networks: list[int]
    weight_shape: tuple[int, ...]  # [B·O, I, k, k], of the linear layers at the end [B, O, I]
    bias_shape: tuple[int, ...]
    layer: str  # in the state dict

    @property
    def inputs(self) -> int:
        """Channels that the bucket reads."""
        return len(self.networks) * self.weight_shape[1 if len(self.weight_shape) == 4 else 2]


@dataclass(frozen=True)
class _Depth:
    """The layers at one depth.

    Attributes:
        buckets: give the pre-activations, in their order.
        skips: source depth, channels read there, channels written here.
        order: the channels regrouped by ``activations``, each with the number of its channels.
        leaving: the channels that the buckets of the next depth read, then those of networks that end here.
        sizes: how ``leaving`` is cut: for each of these buckets, and for the end.
    """

    buckets: list[_Bucket]
    skips: list[tuple[int, Tensor, Tensor]]
    order: Tensor
    activations: list[tuple[str, int]]
    leaving: Tensor
    sizes: list[int]


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
        self.heads: list[_Bucket] = []
        self._lay_out(rows.device)
        place = torch.from_numpy(np.concatenate(self._places)).to(rows.device)
        self.parameters = rows[place].clone()
        self.row_order = torch.empty_like(place).scatter_(0, place, torch.arange(len(place), device=rows.device))
        self.owner = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(rows.device)[place]
        order = [number for head in self.heads for number in head.networks]
        self._network_order = torch.tensor(np.argsort(order), device=rows.device)

    @property
    def rows(self) -> Tensor:
        """The networks' weights one after the other, ``[ΣP]``."""
        return self.parameters.detach()[self.row_order]

    def logits(self, images: Tensor) -> Tensor:
        """``[networks, N, classes]`` of images ``[N, channels, height, width]``."""
        parts = iter(self.parameters.split([int(np.prod(s)) for s in self._shapes()]))
        tensors = (part.view(shape) for part, shape in zip(parts, self._shapes(), strict=True))
        read: Sequence[Tensor] = [images] * len(self.depths[0].buckets)
        values: list[Tensor] = []
        pooled: list[Tensor] = []
        for number, depth in enumerate(self.depths):
            x = torch.cat([_convolve(b, r, number > 0, tensors) for b, r in zip(depth.buckets, read, strict=True)], 1)
            for source, from_there, to_here in depth.skips:
                x = x.index_add(1, to_here, values[source].index_select(1, from_there))
            regrouped = x.index_select(1, depth.order).split([count for _, count in depth.activations], 1)
            active = [_activated(part, name) for part, (name, _) in zip(regrouped, depth.activations, strict=True)]
            values.append(torch.cat(active, 1))
            *read, ended = values[-1].index_select(1, depth.leaving).split(depth.sizes, 1)
            pooled.append(ended.mean((2, 3)))
        found = []
        for features in torch.cat(pooled, 1).split([head.inputs for head in self.heads], 1):
            weight, bias = next(tensors), next(tensors)
            by_network = features.unflatten(1, (len(weight), -1)).transpose(0, 1)
            found.append(torch.baddbmm(bias.unsqueeze(1), by_network, weight.mT))
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
        for bucket in [b for depth in self.depths for b in depth.buckets] + self.heads:
            yield bucket.weight_shape
            yield bucket.bias_shape

    def _lay_out(self, device: torch.device) -> None:
        deepest = max(cnn.depth for cnn in self.cnns)
        ends = [self._ending(depth) for depth in range(deepest)]
        buckets = [self._buckets(depth) for depth in range(deepest)]
        self.heads = [head for heads in ends for head in heads]
        for bucket in [b for at_depth in buckets for b in at_depth] + self.heads:
            self._places += self._places_of(bucket)
        channels: list[dict[int, np.ndarray]] = []  # at each depth, where a network's channels lie
        for depth in range(deepest):
            written = [n for bucket in buckets[depth] for n in bucket.networks]
            before = _side_by_side(written, [self.cnns[n].widths[depth] for n in written])
            name_of = {n: self.cnns[n].activations[depth] for n in sorted(written)}
            by_name = {name: [n for n in name_of if name_of[n] == name] for name in sorted(set(name_of.values()))}
            regrouped = [n for networks in by_name.values() for n in networks]
            after = _side_by_side(regrouped, [len(before[n]) for n in regrouped])
            following, ending = buckets[depth + 1] if depth + 1 < deepest else [], ends[depth]
            self.depths.append(
                _Depth(
                    buckets[depth],
                    self._skips(depth, sorted(written), before, channels, device),
                    _index([before[n] for n in regrouped], device),
                    [(name, sum(len(before[n]) for n in networks)) for name, networks in by_name.items()],
                    _index([after[n] for bucket in (*following, *ending) for n in bucket.networks], device),
                    [*(bucket.inputs for bucket in following), sum(bucket.inputs for bucket in ending)],
                )
            )
            channels.append(after)

    def _buckets(self, depth: int) -> list[_Bucket]:
        """The convolutions at one depth by shape."""
        name = f"layers.{depth}"
        shape_of = {n: cnn.shapes[f"{name}.weight"] for n, cnn in enumerate(self.cnns) if cnn.depth > depth}
        found = []
        for shape in sorted(set(shape_of.values())):
            networks = [n for n in shape_of if shape_of[n] == shape]
            found.append(_Bucket(networks, (len(networks) * shape[0], *shape[1:]), (len(networks) * shape[0],), name))
        return found

    def _ending(self, depth: int) -> list[_Bucket]:
        """The linear layers of networks that end at one depth by their width."""
        width_of = {n: cnn.widths[depth] for n, cnn in enumerate(self.cnns) if cnn.depth == depth + 1}
        found = []
        for width in sorted(set(width_of.values())):
            networks = [n for n in width_of if width_of[n] == width]
            outputs = (len(networks), self.cnns[networks[0]].classes)
            found.append(_Bucket(networks, (*outputs, width), outputs, "fc"))
        return found

    def _places_of(self, bucket: _Bucket) -> list[np.ndarray]:
        """Positions in the rows of a bucket's weights, then of its biases."""
        names = [f"{bucket.layer}.{part}" for part in ("weight", "bias")]
        starts = [
            (self._offsets[n][name], int(np.prod(self.cnns[n].shapes[name]))) for name in names for n in bucket.networks
        ]
        return [np.arange(start, start + size) for start, size in starts]

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


def _convolve(bucket: _Bucket, x: Tensor, separate: bool, tensors: Iterator[Tensor]) -> Tensor:
    """One convolution, whose groups are the networks where each reads channels of its own."""
    weight, bias = next(tensors), next(tensors)
    groups = len(bucket.networks) if separate else 1
    return F.conv2d(x, weight, bias, padding=bucket.weight_shape[-1] // 2, groups=groups)


def _activated(x: Tensor, name: str) -> Tensor:
    return activate(x, name, ACTIVATION_PARAMETERS.get(name, {}))


def _side_by_side(networks: Sequence[int], widths: Sequence[int]) -> dict[int, np.ndarray]:
    """Where each network's channels lie when they are laid one after the other."""
    ends = np.cumsum(widths)
    return {n: np.arange(end - width, end) for n, width, end in zip(networks, widths, ends, strict=True)}


def _index(parts: Sequence[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *parts])).to(device)
