"""Layers of a state dict: tensors that share a prefix, their kind read off names and shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wsl.spec import SpecError, StoredTensor
from wsl.state_dict.files import natural
from wsl.state_dict.hints import Assumptions, Hints

PARTS = {
    "weight": "weight", "kernel": "weight", "kernel:0": "weight", "w": "weight", "gamma": "weight",
    "bias": "bias", "bias:0": "bias", "b": "bias", "beta": "bias",
    "running_mean": "mean", "moving_mean": "mean", "running_var": "var", "moving_variance": "var",
}  # fmt: skip
REASONS = (
    (r"(weight|bias)_(ih|hh|hr)_l\d+", "a recurrent layer, whose gates names and shapes do not tell apart"),
    (r"in_proj_(weight|bias)|qkv|q_proj|k_proj|v_proj|attn", "attention, whose heads shapes do not tell"),
    (r"downsample|shortcut|residual|skip", "a skip connection, which ties neurons of different layers"),
    (r"embed|wte|wpe", "an embedding"),
)
ADVICE = "trace the module (wsl.trace), or name the axes by hand (hints: axes)"


@dataclass(frozen=True)
class Layer:
    """A linear, conv or norm layer: its stored tensors by part."""

    name: str
    parts: Mapping[str, StoredTensor]
    kind: str
    out_first: bool = True

    @property
    def weight(self) -> StoredTensor:
        return self.parts["weight"]

    @property
    def out(self) -> int:
        """Out channels."""
        first = self.weight if self.kind != "norm" else next(iter(self.parts.values()))
        return first.shape[0] if self.out_first or self.kind == "norm" else first.shape[-1]

    @property
    def fan(self) -> int:
        """In channels of a weight."""
        return self.weight.shape[1] if self.out_first else self.weight.shape[-2]

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.weight.shape[2:] if self.out_first else self.weight.shape[:-2]


def find_layers(stored: Sequence[StoredTensor], hints: Hints, told: Assumptions) -> list[Layer]:
    """Layers in the order in which data flows through them.

    Raises:
        SpecError: if a tensor belongs to a layer that names and shapes do not explain, or sizes form no chain.
    """
    found: dict[str, dict[str, StoredTensor]] = {}
    for tensor in stored:
        prefix, part = _split(tensor)
        if part in found.setdefault(prefix, {}):
            raise SpecError(f"{tensor.name!r} and {found[prefix][part].name!r} are both the {part} of layer {prefix!r}")
        found[prefix][part] = tensor
    layers = [_kind(name, parts, hints) for name, parts in found.items()]
    return _ordered(layers, hints, told)


def _split(tensor: StoredTensor) -> tuple[str, str]:
    for pattern, what in REASONS:
        if re.search(pattern, tensor.name):
            raise SpecError(f"{tensor.name!r} {list(tensor.shape)} looks like {what}; {ADVICE}")
    prefix, separator, leaf = tensor.name.replace("/", ".").rpartition(".")
    if leaf not in PARTS:
        match = re.fullmatch(r"(weight|bias|w|b|W)_?(\d+)", leaf)  # w0, b0, weight_1, …
        if not match:
            raise SpecError(f"{tensor.name!r} {list(tensor.shape)} is no known part of a layer; {ADVICE}")
        leaf, prefix = match[1].lower(), f"{prefix}{separator}{match[2]}"
    return prefix or "layer", PARTS[leaf]


def _kind(name: str, parts: Mapping[str, StoredTensor], hints: Hints) -> Layer:
    if "mean" in parts or "var" in parts or ("weight" in parts and len(parts["weight"].shape) == 1):
        shapes = {t.shape for t in parts.values()}
        if len(shapes) != 1:
            raise SpecError(f"norm layer {name!r} holds tensors of different shapes {sorted(shapes)}")
        if not {"mean", "var"} <= set(parts) and hints.layers.get(name, {}).get("norm") is None:
            raise SpecError(
                f"{name!r} holds vectors only: layer, group or instance norm? Say which in hints: "
                f"layers: {{{name}: {{norm: layer}}}}"
            )
        return Layer(name, parts, "norm")
    if "weight" not in parts:
        tensor = next(iter(parts.values()))
        raise SpecError(f"{tensor.name!r} {list(tensor.shape)} belongs to no weight; {ADVICE}")
    rank = len(parts["weight"].shape)
    if not 2 <= rank <= 5:
        raise SpecError(f"{parts['weight'].name!r} has {rank} axes, no layer of a chain has; {ADVICE}")
    return Layer(name, parts, "linear" if rank == 2 else "conv")


def _ordered(layers: list[Layer], hints: Hints, told: Assumptions) -> list[Layer]:
    if hints.order is not None:
        by_name = {layer.name: layer for layer in layers}
        if sorted(hints.order) != sorted(by_name):
            raise SpecError(f"hints: order names {list(hints.order)}, the layers are {list(by_name)}")
        orders = {"the order of the hints": [by_name[name] for name in hints.order]}
    else:
        by_number = sorted(layers, key=lambda layer: natural(layer.name))
        orders = {"the order of the file": layers, "the order of their numbers": by_number}
    layouts = ("out_in", "in_out") if hints.layout is None else (hints.layout,)
    reason = ""
    for title, order in orders.items():
        fitting = []
        for layout in layouts:
            candidate = [Layer(x.name, x.parts, x.kind, layout == "out_in") for x in order]
            misfit = _misfit(candidate)
            reason = reason or misfit
            if not misfit:
                fitting.append((layout, candidate))
        if fitting:
            layout, chosen = fitting[0]
            told.notes.append(f"layers follow each other in {title}: {', '.join(x.name for x in chosen)}")
            if hints.layout is None:
                told.notes.append(
                    f"weights are stored {'(out, in)' if layout == 'out_in' else '(in, out)'}"
                    + ("; (in, out) would fit the sizes too" if len(fitting) > 1 else ", the only order that fits")
                )
            return chosen
    raise SpecError(f"the layers form no chain: {reason}. Name their order (hints: order); else {ADVICE}")


def _misfit(layers: Sequence[Layer]) -> str:
    """Why these layers do not follow each other; empty if they do."""
    channels: int | None = None
    seen_conv = seen_linear = False
    for layer in layers:
        where = f"{layer.name!r}"
        if layer.kind == "norm":
            if channels is not None and layer.out != channels:
                return f"{where} normalises {layer.out} channels, the layer before has {channels}"
            channels = layer.out
            continue
        if "bias" in layer.parts and layer.parts["bias"].shape != (layer.out,):
            return f"the bias of {where} has shape {list(layer.parts['bias'].shape)}, its weight {layer.out} outputs"
        if layer.kind == "conv" and seen_linear:
            return f"{where} is a convolution after a linear layer"
        if channels is not None and layer.fan != channels:
            depthwise = layer.kind == "conv" and layer.fan == 1 and layer.out == channels
            flatten = layer.kind == "linear" and seen_conv and not seen_linear and layer.fan % channels == 0
            if layer.kind == "conv" and not depthwise and channels % layer.fan == 0 and layer.out_first:
                return f"{where} reads {layer.fan} channels of {channels}, a grouped convolution, which is not inferred"
            if not (depthwise or flatten):
                return f"{where} reads {layer.fan} channels, the layer before has {channels}"
        channels = layer.out
        seen_conv |= layer.kind == "conv"
        seen_linear |= layer.kind == "linear"
    return "" if seen_conv or seen_linear else "there is no linear or conv layer"


def cells(layer: Layer) -> int:
    return math.prod(layer.kernel)
