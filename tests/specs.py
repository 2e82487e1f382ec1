"""Hand-written specs whose answers are known, shared by tests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import nn

from wsl.activations import symmetries_of
from wsl.spec import Connection, Label, NeuronGroup, StoredTensor, VirtualTensor, WeightSpec


def gru_spec(inputs: int = 3, hidden: int = 5, outputs: int = 2, sign: bool = True) -> WeightSpec:
    """nn.GRU(inputs, hidden, batch_first=True) as ``gru``, its last step read by nn.Linear ``head``.

    Each of the four stored tensors holds three gates; a state of −h with flipped new-gate rows and flipped columns is
    the same network, so the hidden label has a sign.
    """
    stored, offset = [], 0
    shapes = {
        "gru.weight_ih_l0": (3 * hidden, inputs),
        "gru.weight_hh_l0": (3 * hidden, hidden),
        "gru.bias_ih_l0": (3 * hidden,),
        "gru.bias_hh_l0": (3 * hidden,),
        "head.weight": (outputs, hidden),
        "head.bias": (outputs,),
    }
    tensors, parts = [], {}
    for name, shape in shapes.items():
        stored.append(StoredTensor(name, shape, offset))
        kind, width = ("input", shape[1:]) if "ih" in name else ("hidden", shape[1:])
        for gate, key in enumerate(("reset", "update", "new")):
            if not name.startswith("gru."):
                break
            part = f"{key}_{kind}" + ("" if width else "_bias")
            power = int(key == "new")
            axes, scaling = (
                (("h", "x") if kind == "input" else ("h", "h"), (power, -1)) if width else (("h",), (power,))
            )
            strides = (*width, 1)
            start = offset + gate * hidden * (width[0] if width else 1)
            role = "weight" if width else "bias"
            tensors.append(
                VirtualTensor(f"{name}.{key}", role, start, (hidden, *width), strides, axes[: len(strides)], scaling)
            )
            parts[part] = f"{name}.{key}"
        offset += shape[0] * (shape[1] if len(shape) > 1 else 1)
    head = stored[4].offset
    tensors.append(VirtualTensor("head.weight", "weight", head, (outputs, hidden), (hidden, 1), ("y", "h"), (1, -1)))
    tensors.append(VirtualTensor("head.bias", "bias", stored[5].offset, (outputs,), (1,), ("y",), (1,)))
    return WeightSpec(
        stored=stored,
        tensors=tensors,
        labels=(
            Label("x", inputs, "input"),
            Label("h", hidden, "hidden", ("permutation", "sign") if sign else ("permutation",)),
            Label("y", outputs, "output"),
        ),
        groups=(NeuronGroup("x", "x"), NeuronGroup("h", "h"), NeuronGroup("last", "h"), NeuronGroup("y", "y")),
        connections=(
            Connection("x", "h", "gru", parts, {"reverse": False, "batch_first": True}),
            Connection("h", "last", "skip", {}, {"step": -1}),
            Connection("last", "y", "linear", {"weight": "head.weight", "bias": "head.bias"}),
        ),
    )


def cnn_spec(activation: str = "relu", channels: tuple[int, ...] = (1, 4, 3), classes: int = 2) -> WeightSpec:
    """3×3 convolutions with an activation after each, global average pooling, a linear layer."""
    symmetries = ("permutation", *sorted(symmetries_of(activation, {})))
    depth = len(channels) - 1
    labels = [Label("in", channels[0], "input"), Label("cell", 9, "fixed")]
    groups, stored, tensors, connections = [NeuronGroup("in", "in")], [], [], []
    offset, names = 0, ["in", *(f"h{i}" for i in range(depth)), "out"]
    for i, (source, target) in enumerate(pairwise(names)):
        last = i == depth
        inputs, outputs = channels[i], classes if last else channels[i + 1]
        labels.append(Label(target, outputs, "output") if last else Label(target, outputs, "hidden", symmetries))
        if last:
            groups.append(NeuronGroup("pooled", source))
            connections.append(Connection(source, "pooled", "pool", {}, {"op": "global_avg"}))
        groups.append(NeuronGroup(target, target, "identity" if last else activation))
        cells = 1 if last else 9
        weight, bias = f"layers.{i}.weight", f"layers.{i}.bias"
        size = outputs * inputs * cells
        stored.append(StoredTensor(weight, (outputs, inputs) if last else (outputs, inputs, 3, 3), offset))
        stored.append(StoredTensor(bias, (outputs,), offset + size))
        keep = slice(2) if last else slice(3)
        shape, strides = (outputs, inputs, cells)[keep], (inputs * cells, cells, 1)[keep]
        axes, scaling = (target, source, "cell")[keep], (1, -1, 0)[keep]
        tensors.append(VirtualTensor(weight, "weight", offset, shape, strides, axes, scaling))
        tensors.append(VirtualTensor(bias, "bias", offset + size, (outputs,), (1,), (target,), (1,)))
        kind = ("linear", {}) if last else ("conv", {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1]})
        parts = {"weight": weight, "bias": bias}
        connections.append(Connection("pooled" if last else source, target, kind[0], parts, kind[1]))
        offset += size + outputs
    return WeightSpec(tuple(stored), tuple(tensors), tuple(labels), tuple(groups), tuple(connections))


def attention_spec(width: int = 6, heads: int = 2, channels: int = 3) -> WeightSpec:
    """One self-attention layer on tokens ``[N, T, width]``: nn.Linear ``qkv`` [3·H·k, d] fused, nn.Linear ``out``.

    Each of q, k, v is ``[H, k, d]``: the heads may be permuted, and inside all heads alike the q–k channels and the
    value channels.
    """
    inner = heads * channels
    stored, offset = [], 0
    shapes = {"qkv.weight": (3 * inner, width), "qkv.bias": (3 * inner,), "out.weight": (width, inner)}
    for name, shape in (shapes | {"out.bias": (width,)}).items():
        stored.append(StoredTensor(name, shape, offset))
        offset += shape[0] * (shape[1] if len(shape) > 1 else 1)
    tensors, parts = [], {}
    for number, (key, axis) in enumerate((("query", "qk"), ("key", "qk"), ("value", "v"))):
        at, shape = number * inner * width, (heads, channels, width)
        tensors.append(
            VirtualTensor(key, "weight", at, shape, (channels * width, width, 1), ("H", axis, "x"), (0, 0, 0))
        )
        at = stored[1].offset + number * inner
        tensors.append(VirtualTensor(f"{key}_bias", "bias", at, (heads, channels), (channels, 1), ("H", axis), (0, 0)))
        parts |= {key: key, f"{key}_bias": f"{key}_bias"}
    shape, strides = (width, heads, channels), (inner, channels, 1)
    tensors.append(VirtualTensor("output", "weight", stored[2].offset, shape, strides, ("y", "H", "v"), (0, 0, 0)))
    tensors.append(VirtualTensor("output_bias", "bias", stored[3].offset, (width,), (1,), ("y",), (0,)))
    parts |= {"output": "output", "output_bias": "output_bias"}
    return WeightSpec(
        stored=stored,
        tensors=tensors,
        labels=(
            Label("x", width, "input"),
            Label("H", heads, "hidden", ("permutation",)),
            Label("qk", channels, "hidden", ("permutation",)),
            Label("v", channels, "hidden", ("permutation",)),
            Label("y", width, "output"),
        ),
        groups=(NeuronGroup("x", "x"), NeuronGroup("y", "y")),
        connections=(Connection("x", "y", "attention", parts, {"heads": heads}),),
    )


class Describe:
    """A spec of a module, written by hand: which labels the axes of its stored tensors have, and how it is run."""

    def __init__(self, module: nn.Module, inputs: int, outputs: int) -> None:
        self.stored: list[StoredTensor] = []
        offset = 0
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                self.stored.append(StoredTensor(name, tuple(tensor.shape), offset))
                offset += tensor.numel()
        self.labels = {"x": Label("x", inputs, "input"), "y": Label("y", outputs, "output")}
        self.groups = [NeuronGroup("x", "x")]
        self.tensors: list[VirtualTensor] = []
        self.connections: list[Connection] = []

    def label(self, name: str, size: int) -> None:
        """A hidden label, permuted; names that begin with ``_`` are fixed."""
        kind, symmetries = ("fixed", ()) if name.startswith("_") else ("hidden", ("permutation",))
        self.labels.setdefault(name, Label(name, size, kind, symmetries))

    def tensor(self, name: str, axes: str, shape: tuple[int, ...] | None = None, part: int = 0, parts: int = 1) -> str:
        """One of ``parts`` equal pieces of a stored tensor's first axis, with one label per axis: its name."""
        stored = next(s for s in self.stored if s.name == name)
        if shape is None:  # trailing axes that are not named are one (the cells of a kernel)
            named = len(axes.split())
            shape = (stored.shape[0] // parts, *stored.shape[1:])
            shape = (*shape[: named - 1], math.prod(shape[named - 1 :]))
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        for axis, size in zip(axes.split(), shape, strict=True):
            self.label(axis, size)
        role = "bias" if "bias" in name else "buffer" if "running" in name else "weight"
        virtual = name if parts == 1 else f"{name}.{part}"
        start = stored.offset + part * math.prod(shape)
        self.tensors.append(VirtualTensor(virtual, role, start, shape, strides, tuple(axes.split()), (0,) * len(shape)))
        return virtual

    def group(self, name: str, label: str, activation: str = "identity", **parameters: float) -> None:
        self.groups.append(NeuronGroup(name, label, activation, parameters))

    def connect(
        self, source: str, target: str, kind: str, tensors: Mapping[str, str] | None = None, **attributes: Any
    ) -> None:
        self.connections.append(Connection(source, target, kind, tensors or {}, attributes))

    def layer(self, name: str, source: str, target: str, axes: str, kind: str = "conv", **more: Any) -> None:
        """A layer and its group; the axes are those of its weight, out axes first, a fixed kernel axis ``_…`` last."""
        activation, shape = more.pop("activation", "identity"), more.pop("shape", None)
        tensors = {"weight": self.tensor(f"{name}.weight", axes, shape)}
        out = axes.split()[: -2 if "_" in axes and kind != "depthwise" else -1]
        if any(s.name == f"{name}.bias" for s in self.stored):
            sizes = tuple(self.labels[a].size for a in out)
            tensors["bias"] = self.tensor(f"{name}.bias", " ".join(out), sizes)
        self.group(target, more.pop("label", out[0]), activation)
        self.connect(source, target, kind, tensors, **more)

    def norm(
        self, name: str, source: str, target: str, label: str, norm: str, activation: str = "identity", **more: Any
    ) -> None:
        """A normalisation layer and its group."""
        stored = {s.name for s in self.stored}
        parts = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}
        tensors = {p: self.tensor(f"{name}.{n}", label) for p, n in parts.items() if f"{name}.{n}" in stored}
        self.group(target, label, activation)
        self.connect(source, target, "norm", tensors, norm=norm, eps=1e-5, **more)

    def spec(self) -> WeightSpec:
        return WeightSpec(self.stored, self.tensors, tuple(self.labels.values()), self.groups, self.connections)
