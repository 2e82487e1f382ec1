"""CNNs that nearly all differ: depth, widths, kernels, an activation for each layer, skips; and their specs.

    z_i = conv_i(y_{i−1}) + y_e   (its first min(c_e, c_i) channels, where layer i has a skip from layer e)
    y_i = σ_i(z_i),   logits = W mean_pixels(y_last) + b

Source: Kofinas et al., "Graph Neural Networks for Learning Equivariant Representations of Neural Networks" (CNN Wild
Park). Convolutions have stride 1 and keep the size of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

from wsl.activations import ACTIVATION_PARAMETERS, symmetries_of
from wsl.spec import SYMMETRIES, Connection, Label, NeuronGroup, StoredTensor, VirtualTensor, WeightSpec

NO_SKIP = -1


@dataclass(frozen=True)
class WildCNN:
    """One architecture; layers are numbered from 0.

    Attributes:
        inputs, classes: channels of the image, number of logits.
        widths, kernels: channels and (odd) kernel size of each convolution.
        activations: a name for each convolution, see :mod:`wsl.activations`.
        skips: the layer that each convolution has a skip from, at least two back, or −1.
    """

    inputs: int
    widths: tuple[int, ...]
    kernels: tuple[int, ...]
    activations: tuple[str, ...]
    skips: tuple[int, ...]
    classes: int = 10

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.kernels) == len(self.activations) == len(self.skips) > 0:
            raise ValueError(f"widths, kernels, activations and skips differ in length: {self}")
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise ValueError(f"an even kernel does not keep the size of the image: {self.kernels}")
        if any(skip != NO_SKIP and not 0 <= skip <= layer - 2 for layer, skip in enumerate(self.skips)):
            raise ValueError(f"a skip starts at least two layers back: {self.skips}")

    @property
    def depth(self) -> int:
        return len(self.widths)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The state dict's entries and their shapes, in the order of a row."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, ((c_in, c_out), k) in enumerate(
            zip(pairwise((self.inputs, *self.widths)), self.kernels, strict=True)
        ):
            shapes |= {f"layers.{layer}.weight": (c_out, c_in, k, k), f"layers.{layer}.bias": (c_out,)}
        return shapes | {"fc.weight": (self.classes, self.widths[-1]), "fc.bias": (self.classes,)}

    def spec(self) -> WeightSpec:
        """The weight space, equal to what :func:`wsl.trace.trace` finds (not yet verified)."""
        return _Describe(self).spec()


@dataclass(frozen=True)
class _Segment:
    """Consecutive channels of one layer that permute alike: a neuron group."""

    group: str
    label: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class _Describe:
    """Writes down the parts of a spec.

    A skip ties channel j of its source to channel j of its target. So layers whose skips join them share labels, as far
    as their channels reach, and a layer is cut into segments where its partners change.
    """

    def __init__(self, cnn: WildCNN) -> None:
        self.cnn = cnn
        self.stored: dict[str, StoredTensor] = {}
        offset = 0
        for name, shape in cnn.shapes.items():
            self.stored[name] = StoredTensor(name, shape, offset)
            offset += reduce(int.__mul__, shape)
        self.tensors: list[VirtualTensor] = []
        self.connections: list[Connection] = []
        self.image = (_Segment("x", "input", 0, cnn.inputs),)
        self.layers = self._segments()

    def spec(self) -> WeightSpec:
        cnn = self.cnn
        for layer, segments in enumerate(self.layers):
            self._conv(layer, self.layers[layer - 1] if layer else self.image, segments)
        logits = (_Segment("fc", "output", 0, cnn.classes),)
        pooled = tuple(
            _Segment(_named("mean", s, self.layers[-1]), t.label, t.start, t.stop)
            for s, t in enumerate(self.layers[-1])
        )
        for source, target in zip(self.layers[-1], pooled, strict=True):
            self.connections.append(Connection(source.group, target.group, "pool", {}, {"op": "global_avg"}))
        self._weights("fc", "linear", pooled, logits, {})
        return WeightSpec(
            tuple(self.stored.values()),
            tuple(self.tensors),
            self._labels(),
            (
                NeuronGroup("x", "input"),
                *(
                    NeuronGroup(s.group, s.label, activation, ACTIVATION_PARAMETERS.get(activation, {}))
                    for segments, activation in zip(self.layers, cnn.activations, strict=True)
                    for s in segments
                ),
                *(NeuronGroup(s.group, s.label) for s in pooled),
                NeuronGroup("fc", "output"),
            ),
            tuple(self.connections),
        )

    # -- channels -----------------------------------------------------------------------------------------------------

    def _segments(self) -> list[tuple[_Segment, ...]]:
        found: list[tuple[_Segment, ...]] = []
        label_of: dict[frozenset[int], str] = {}
        for layer, width in enumerate(self.cnn.widths):
            partners = [self._partners(layer, channel) for channel in range(width)]
            cuts = [0, *(j for j in range(1, width) if partners[j] != partners[j - 1]), width]
            names = [_named(f"layers.{layer}", number, cuts[1:]) for number in range(len(cuts) - 1)]
            found.append(
                tuple(
                    _Segment(name, label_of.setdefault(partners[start], name), start, stop)
                    for name, (start, stop) in zip(names, pairwise(cuts), strict=True)
                )
            )
        return found

    def _partners(self, layer: int, channel: int) -> frozenset[int]:
        """The layers whose channels of this number skips tie together."""
        cnn, partners = self.cnn, {layer}
        ties = [(e, i) for i, e in enumerate(cnn.skips) if e != NO_SKIP and channel < min(cnn.widths[e], cnn.widths[i])]
        while grown := {end for tie in ties if partners & set(tie) for end in tie} - partners:
            partners |= grown
        return frozenset(partners)

    def _labels(self) -> tuple[Label, ...]:
        sizes: dict[str, int] = {}
        allowed: dict[str, set[str]] = {}
        for segments, activation in zip(self.layers, self.cnn.activations, strict=True):
            for s in segments:
                sizes[s.label] = s.size
                allowed.setdefault(s.label, set(SYMMETRIES)).intersection_update(
                    symmetries_of(activation, ACTIVATION_PARAMETERS.get(activation, {}))
                )
        cells = dict.fromkeys(kernel**2 for kernel in self.cnn.kernels)
        return (
            Label("input", self.cnn.inputs, "input"),
            *(
                Label(name, size, "hidden", ("permutation", *(s for s in SYMMETRIES if s in allowed[name])))
                for name, size in sizes.items()
            ),
            Label("output", self.cnn.classes, "output"),
            *(Label(f"fixed:{count}", count, "fixed") for count in cells),
        )

    # -- weights ------------------------------------------------------------------------------------------------------

    def _conv(self, layer: int, sources: Sequence[_Segment], targets: Sequence[_Segment]) -> None:
        kernel, skip = self.cnn.kernels[layer], self.cnn.skips[layer]
        attributes = {"stride": [1, 1], "padding": [kernel // 2] * 2, "dilation": [1, 1], "kernel": [kernel] * 2}
        self._weights(f"layers.{layer}", "conv", sources, targets, attributes)
        tied = {s.label: s.group for s in self.layers[skip]} if skip != NO_SKIP else {}
        for target in targets:
            if target.label in tied:
                self.connections.append(Connection(tied[target.label], target.group, "skip"))

    def _weights(
        self,
        name: str,
        kind: str,
        sources: Sequence[_Segment],
        targets: Sequence[_Segment],
        attributes: Mapping[str, object],
    ) -> None:
        """One virtual tensor, and one connection, for each pair of segments; the first source's brings the bias."""
        weight, bias = self.stored[f"{name}.weight"], self.stored[f"{name}.bias"]
        n_in, cells = weight.shape[1], reduce(int.__mul__, weight.shape[2:], 1)
        fixed = (f"fixed:{cells}",) if kind == "conv" else ()
        parts: dict[tuple[_Segment, _Segment], dict[str, str]] = {}
        biases = []
        for t in targets:
            for s in sources:
                cut = [part or ":" for part in (_part(t, targets), _part(s, sources), *("" for _ in weight.shape[2:]))]
                tensor = VirtualTensor(
                    weight.name if set(cut) == {":"} else f"{weight.name}[{','.join(cut)}]",
                    "weight",
                    weight.offset + (t.start * n_in + s.start) * cells,
                    (t.size, s.size, *(cells for _ in fixed)),
                    (n_in * cells, cells, *(1 for _ in fixed)),
                    (t.label, s.label, *fixed),
                    (1, -1, *(0 for _ in fixed)),
                )
                self.tensors.append(tensor)
                parts[s, t] = {"weight": tensor.name}
            named = f"{bias.name}[{_part(t, targets)}]" if len(targets) > 1 else bias.name
            biases.append(VirtualTensor(named, "bias", bias.offset + t.start, (t.size,), (1,), (t.label,), (1,)))
            parts[sources[0], t]["bias"] = named
        self.tensors += biases
        for s in sources:
            self.connections += [Connection(s.group, t.group, kind, parts[s, t], attributes) for t in targets]


def _named(name: str, number: int, of: Sequence[object]) -> str:
    return f"{name}.{number}" if len(of) > 1 else name


def _part(segment: _Segment, of: Sequence[_Segment]) -> str:
    return f"{segment.start}:{segment.stop}" if len(of) > 1 else ""
