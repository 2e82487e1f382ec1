"""A chain of layers as a spec: input → layer → … → output, with what a checkpoint cannot say stated as assumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from wsl.activations import symmetries_of
from wsl.spec import SYMMETRIES, Connection, Label, NeuronGroup, SpecError, StoredTensor, VirtualTensor, WeightSpec
from wsl.state_dict.hints import Assumptions, Hints
from wsl.state_dict.layers import Layer, cells

NORM_PARTS = {"weight": "gamma", "bias": "beta", "mean": "mean", "var": "var"}


def chain_spec(stored: Sequence[StoredTensor], layers: Sequence[Layer], hints: Hints, told: Assumptions) -> WeightSpec:
    """The spec of the layers in this order.

    Raises:
        SpecError: if a linear layer reads a flattened feature map whose height and width cannot be known.
    """
    chain = _Chain(layers, hints, told)
    for number in range(len(layers)):
        chain.append(number)
    chain.tell()
    return WeightSpec(
        tuple(stored), tuple(chain.tensors), chain.finished_labels(), tuple(chain.groups), tuple(chain.connections)
    )


@dataclass
class _Chain:
    layers: Sequence[Layer]
    hints: Hints
    told: Assumptions
    tensors: list[VirtualTensor] = field(default_factory=list)
    groups: list[NeuronGroup] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    labels: dict[str, Label] = field(default_factory=dict)
    exact: dict[str, bool] = field(default_factory=dict)  # label → whether its sign and phase are sure

    def __post_init__(self) -> None:
        weighty = [layer for layer in self.layers if layer.kind != "norm"]
        self.last = weighty[-1]
        self.group = self.label = "input"
        first = self.layers[0]
        size = first.out if first.kind == "norm" else first.fan
        self.labels["input"] = Label("input", size, "input")
        self.groups.append(NeuronGroup("input", "input"))
        self.image = False  # whether the values so far have positions

    def append(self, number: int) -> None:
        layer = self.layers[number]
        source, before = self.group, self.label
        if layer.kind == "norm":
            kind, tensors, attributes = "norm", self._norm(layer), self._norm_attributes(layer)
        elif layer.kind == "conv":
            kind, tensors, attributes = self._conv(layer, before)
        else:
            if self.image:
                source = self._pooled(layer, source, before)
            kind, tensors, attributes = "linear", self._linear(layer, before), self._flattened(layer, before)
            self.image = False
        self._group(number)
        self.connections.append(Connection(source, self.group, kind, tensors, attributes))

    # -- layers -------------------------------------------------------------------------------------------------------

    def _conv(self, layer: Layer, before: str) -> tuple[str, dict[str, str], dict[str, Any]]:
        attributes: dict[str, Any] = {"kernel": list(layer.kernel)}
        for name in ("stride", "padding", "dilation"):
            value = self.hints.of(layer.name, name)
            if value is not None:
                attributes[name] = [value] * len(layer.kernel) if isinstance(value, int) else list(value)
        kernel = self._fixed(f"{layer.name}.kernel", cells(layer))
        size = self.labels[before].size
        self.image = True
        if layer.fan == 1 and layer.out == size and size > 1:
            self.told.notes.append(f"{layer.name!r} is a depthwise convolution")
            self.exact[before] = False
            per_cell = (cells(layer), 1) if layer.out_first else (1, layer.out)
            tensors = {"weight": self._weight(layer, (before, kernel), per_cell, (self._out_power(layer) - 1, 0))}
            return "depthwise", tensors | self._bias(layer), attributes
        self._enter(layer)
        self.exact[self.label] = False
        k, (o, i) = cells(layer), (layer.out, layer.fan)
        strides = (i * k, k, 1) if layer.out_first else (1, o, i * o)
        scaling = (self._out_power(layer), -1, 0)
        tensors = {"weight": self._weight(layer, (self.label, before, kernel), strides, scaling)}
        return "conv", tensors | self._bias(layer), attributes

    def _linear(self, layer: Layer, before: str) -> dict[str, str]:
        self._enter(layer)
        positions = layer.fan // self.labels[before].size
        out, each = (layer.fan, 1) if layer.out_first else (1, layer.out)
        power = self._out_power(layer)
        if positions == 1:
            weight = self._weight(layer, (self.label, before), (out, each), (power, -1))
        else:
            cell = self._fixed(f"{layer.name}.positions", positions)
            channel_stride, cell_stride = (positions, 1) if layer.out_first else (1, self.labels[before].size)
            strides = (out, channel_stride * each, cell_stride * each)
            weight = self._weight(layer, (self.label, before, cell), strides, (power, -1, 0))
        return {"weight": weight} | self._bias(layer)

    def _flattened(self, layer: Layer, before: str) -> dict[str, Any]:
        channels = self.labels[before].size
        positions = layer.fan // channels
        if positions == 1:
            return {}
        spatial = self.hints.of(layer.name, "spatial")
        rank = max(len(x.kernel) for x in self.layers if x.kind == "conv")
        if spatial is None:
            side = round(positions ** (1 / rank))
            if side**rank != positions:
                raise SpecError(
                    f"{layer.name!r} reads {layer.fan} values of {channels} channels, {positions} positions, which is "
                    f"no square; name the feature map in hints: layers: {{{layer.name}: {{spatial: [height, width]}}}}"
                )
            spatial = [side] * rank
        if math.prod(spatial) != positions:
            raise SpecError(f"hints: layers.{layer.name}.spatial {list(spatial)} has not {positions} positions")
        order = "channel-major (c, h, w)" if layer.out_first else "channel-minor (h, w, c)"
        self.told.notes.append(f"{layer.name!r} reads a flattened {list(spatial)} feature map, {order}")
        return {"spatial": list(spatial)}

    def _pooled(self, layer: Layer, source: str, before: str) -> str:
        if layer.fan != self.labels[before].size:
            return source
        self.told.notes.append(f"global average pooling before {layer.name!r}")
        self.groups.append(NeuronGroup(f"{layer.name}.pooled", before))
        self.connections.append(Connection(source, f"{layer.name}.pooled", "pool", {}, {"op": "global_avg"}))
        return f"{layer.name}.pooled"

    def _norm(self, layer: Layer) -> dict[str, str]:
        self.exact[self.label] = False
        tensors = {}
        for part, tensor in layer.parts.items():
            role = {"weight": "norm_scale", "bias": "norm_shift"}.get(part, "buffer")
            power = int(role != "buffer")
            tensors[NORM_PARTS[part]] = tensor.name
            self._tensor(tensor, role, (self.label,), (1,), (power,), tensor.shape)
        return tensors

    def _norm_attributes(self, layer: Layer) -> dict[str, Any]:
        kind = self.hints.of(layer.name, "norm") or "batch"
        eps = self.hints.of(layer.name, "eps", 1e-5)
        groups = self.hints.of(layer.name, "groups")
        if kind == "group" and groups is None:
            raise SpecError(f"hints: layers.{layer.name}: a group norm needs groups")
        self.told.notes.append(f"{layer.name!r} is a {kind} norm with eps {eps}, between a layer and its activation")
        return {"norm": kind, "eps": float(eps)} | ({"groups": int(groups)} if groups else {})

    # -- parts --------------------------------------------------------------------------------------------------------

    def _followed_by_norm(self, layer: Layer) -> bool:
        after = self.layers.index(layer) + 1
        return after < len(self.layers) and self.layers[after].kind == "norm"

    def _out_power(self, layer: Layer) -> int:
        """A norm undoes the scale of the layer before it; scaling its γ and β takes that layer's place."""
        return 0 if self._followed_by_norm(layer) else 1

    def _enter(self, layer: Layer) -> None:
        """The label of the layer's outputs becomes the current one."""
        kind = "output" if layer is self.last else "hidden"
        name = kind if kind == "output" else layer.name if layer.name not in ("input", "output") else f"{layer.name}_1"
        self.labels[name] = Label(name, layer.out, kind)
        self.label = name

    def _fixed(self, name: str, size: int) -> str:
        self.labels[name] = Label(name, size, "fixed")
        return name

    def _weight(self, layer: Layer, axes: tuple[str, ...], strides: tuple[int, ...], scaling: tuple[int, ...]) -> str:
        shape = tuple(self.labels[axis].size for axis in axes)
        return self._tensor(layer.weight, "weight", axes, strides, scaling, shape)

    def _bias(self, layer: Layer) -> dict[str, str]:
        if "bias" not in layer.parts:
            self.exact[self.label] = False
            return {}
        bias = layer.parts["bias"]
        return {"bias": self._tensor(bias, "bias", (self.label,), (1,), (self._out_power(layer),), bias.shape)}

    def _tensor(
        self,
        stored: StoredTensor,
        role: str,
        axes: tuple[str, ...],
        strides: tuple[int, ...],
        scaling: tuple[int, ...],
        shape: tuple[int, ...],
    ) -> str:
        self.tensors.append(VirtualTensor(stored.name, role, stored.offset, shape, strides, axes, scaling))
        return stored.name

    def _group(self, number: int) -> None:
        layer, last = self.layers[number], number == len(self.layers) - 1
        name = "output" if last else layer.name if layer.name not in ("input", "output") else f"{layer.name}_1"
        if last:
            offset = {"offset": self.hints.output_offset} if self.hints.output_offset else {}
            self.groups.append(NeuronGroup(name, self.label, parameters=offset))
        elif self._followed_by_norm(layer) or self.label == "input":
            self.groups.append(NeuronGroup(name, self.label))
        else:
            activation = self.hints.of(layer.name, "activation")
            parameters = self.hints.of(layer.name, "parameters")
            self.groups.append(NeuronGroup(name, self.label, activation, parameters))
        self.group = name

    # -- the end ------------------------------------------------------------------------------------------------------

    def finished_labels(self) -> tuple[Label, ...]:
        """Labels with the symmetries that all of their groups allow and no unknown pooling could break."""
        return tuple(
            Label(x.name, x.size, x.kind, self._symmetries(x.name) if x.kind == "hidden" else ())
            for x in self.labels.values()
        )

    def _symmetries(self, label: str) -> tuple[str, ...]:
        allowed = set(SYMMETRIES)
        for group in (g for g in self.groups if g.label == label):
            more = {"phase"} if group.activation == "identity" else set()
            allowed &= {"permutation"} | symmetries_of(group.activation, group.parameters) | more
        if not any(g.activation == "sine" for g in self.groups if g.label == label):
            allowed -= {"phase"}
        if not self.exact.get(label, True):
            allowed -= {"sign", "phase"}
        return tuple(s for s in SYMMETRIES if s in allowed)

    def tell(self) -> None:
        hidden = [g for g in self.groups if self.labels[g.label].kind == "hidden" and g.activation == "unknown"]
        if hidden:
            self.told.notes.append(
                f"the activation after {', '.join(g.name for g in hidden)} is unknown: permutations only, and the "
                "network cannot be run; name it in hints (activation: relu) for more"
            )
        self.told.notes.append("no skip connection: one would tie neurons that are permuted apart here")
        bare = [c.target for c in self.connections if c.kind in ("conv", "depthwise") and not
                {"stride", "padding"} <= set(c.attributes)]  # fmt: skip
        if bare:
            self.told.notes.append(
                f"stride 1 and padding 0 where hints name none ({', '.join(bare)}), and no pooling in between: they do "
                "not matter to symmetries, but to running the network; a max pool would break signs, so none is claimed"
            )
