"""Chains: networks that are one weight and one bias after another, the only ones that some layers are defined for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wsl.spec import VirtualTensor, WeightSpec


class NotAChainError(ValueError):
    """The spec is more than weights and biases one after another; the message names the tensor."""


@dataclass(frozen=True)
class ChainLayer:
    """Weight with axes ``out`` and ``into`` (and fixed ones), bias with axis ``out``; either may have fixed cells."""

    weight: VirtualTensor
    bias: VirtualTensor | None
    into: str
    out: str


def chain(spec: WeightSpec) -> tuple[ChainLayer, ...]:
    """The layers of an MLP or plain CNN, first to last.

    Raises:
        NotAChainError: if a tensor is neither the weight nor the bias of a layer of such a chain.
    """
    weights: dict[str, tuple[VirtualTensor, str]] = {}
    biases: dict[str, VirtualTensor] = {}
    for tensor in spec.tensors:
        axes = [a for a in tensor.axes if spec.label[a].kind != "fixed"]
        if len(axes) == 1 and axes[0] not in biases:
            biases[axes[0]] = tensor
        elif len(set(axes)) == len(axes) == 2 and axes[0] not in weights:
            weights[axes[0]] = (tensor, axes[1])
        else:
            raise NotAChainError(
                f"tensor {tensor.name!r} with axes {tensor.axes} is no weight or bias of a plain chain"
            )
    starts = {into for _, into in weights.values()} - set(weights)
    if len(starts) != 1 or (loose := set(biases) - set(weights)):
        stray = [biases[a].name for a in sorted(loose)] if len(starts) == 1 else sorted(starts)
        raise NotAChainError(f"a chain starts at one group and has one bias per layer; {stray} do not fit")
    return tuple(_walk(weights, biases, starts.pop()))


def _walk(
    weights: dict[str, tuple[VirtualTensor, str]], biases: dict[str, VirtualTensor], label: str
) -> Sequence[ChainLayer]:
    layers: list[ChainLayer] = []
    remaining = dict(weights)
    while remaining:
        following = [out for out, (_, into) in remaining.items() if into == label]
        if len(following) != 1:
            names = [remaining[out][0].name for out in following] or [w.name for w, _ in remaining.values()]
            raise NotAChainError(f"exactly one weight reads each group of a chain; {names} do not fit")
        (out,) = following
        layers.append(ChainLayer(remaining.pop(out)[0], biases.get(out), label, out))
        label = out
    return layers
