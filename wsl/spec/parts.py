"""The parts of a spec: labels, neuron groups, tensors and connections; plain immutable data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np


def _frozen(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(mapping))


@dataclass(frozen=True)
class Label:
    """What an axis ranges over: ``size`` neurons of one kind, and the symmetries that hold for them."""

    name: str
    size: int
    kind: str = "hidden"
    symmetries: tuple[str, ...] = ()


@dataclass(frozen=True)
class NeuronGroup:
    """Neurons computed together: value = activation(sum over incoming connections) + ``parameters["offset"]``.

    Where its channels are a product (the groups of a convolution or norm, the heads of queries), the tensors have an
    axis for each factor, and the group has a fixed label of its own that is on no tensor.
    """

    name: str
    label: str
    activation: str = "identity"
    parameters: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", _frozen(self.parameters))


@dataclass(frozen=True)
class StoredTensor:
    """A state-dict entry: ``prod(shape)`` consecutive values of the row, starting at ``offset``."""

    name: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class VirtualTensor:
    """A strided slice of the row whose every axis is one label.

    ``scaling[k]`` is the exponent with which multiplying the neurons of ``axes[k]`` by d multiplies this tensor:
    +1 on the out axis of a weight and on a bias, −1 on the in axis, +2 for a running variance, 0 on fixed axes.
    """

    name: str
    role: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    axes: tuple[str, ...]
    scaling: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def index(self) -> np.ndarray:
        """Positions in the row, int64, of this tensor's shape."""
        index = np.full(self.shape, self.offset, dtype=np.int64)
        for axis, (size, stride) in enumerate(zip(self.shape, self.strides, strict=True)):
            steps = np.arange(size, dtype=np.int64) * stride
            index += steps.reshape([-1 if a == axis else 1 for a in range(len(self.shape))])
        return index


@dataclass(frozen=True)
class Connection:
    """One way in which the values of ``source`` reach ``target``.

    ``tensors`` maps a part ("weight", "bias", "gamma", …) to a virtual tensor's name; ``attributes`` holds all else
    that is needed to run it as plain JSON values. Sizes are per spatial axis, so lists of one, two or three numbers;
    K is the number of kernel cells, one fixed axis in row-major order; an attribute at its default may be absent.

    ==============  =============================================  ==================================================
    kind            tensors (axes)                                 attributes (default)
    ==============  =============================================  ==================================================
    ``linear``      weight [o, i], bias [o]                        —
    ``linear``      weight [o, c, K], bias [o]                     spatial = [h, w]: of the flattened feature map
    ``conv``        weight [o, i, K], bias [o]; transposed:        kernel, stride (1), padding (0), dilation (1),
                    the same axes, whatever the stored order       groups (1), transposed (false), output_padding (0)
    ``conv``        weight [g, o, i, K], bias [g, o]; groups > 1   as above; channel c of the target is (g, o)
    ``depthwise``   weight [c, K], bias [c]                        as ``conv`` without groups
    ``norm``        gamma, beta, mean, var, each [c]; the first    norm = batch | layer | group | instance | rms, eps,
                    two absent without affine map, the last two    groups (for group)
                    only for batch (buffers)
    ``pool``        —                                              op = max | avg | global_avg | adaptive_avg |
                                                                   adaptive_max, kernel, stride, padding,
                                                                   size (adaptive: of the output), ceil (false),
                                                                   count_include_pad (true)
    ``skip``        —                                              the identity, or a strided option-A shortcut:
                                                                   spatial_stride (1) subsamples, start (0) is the
                                                                   first target channel, the others receive zeros;
                                                                   step: one step of a sequence (−1: the last), which
                                                                   leaves no positions
    ``concat``      —                                              start: first target channel of this source;
                                                                   with ``spatial`` source and target are flattened
    ``slice``       —                                              start, of the source's channels
    ``upsample``    —                                              size, mode
    ``embedding``   weight [vocabulary, d]                         the source holds token numbers
    ``parameter``   value [d] or [K, d]                            adds a learned vector or table (class token,
                                                                   positions: T steps read the first T rows of a
                                                                   table); source = target
    ``multiply``    value [d], or none                             all ``multiply`` connections of one target are
                                                                   multiplied (gates), by ``value`` if there is one
    ``rnn``         input [h, i], hidden [h, h], input_bias [h],   nonlinearity = tanh | relu, reverse (false),
                    hidden_bias [h]                                batch_first (true), initial: group of the state
    ``gru``         the same four for each gate: reset_input,      as ``rnn`` without nonlinearity; gates reset,
                    reset_hidden, reset_input_bias, …              update, new
    ``lstm``        input_input, … as ``gru``, projection [p, h]   as ``gru``; gates input, forget, cell, output
    ``attention``   query, key [H, k, d], value [H, v, d],         heads, causal (false), scale (k^-1/2), memory:
                    output [d, H, v], query_bias [H, k], …,        group that keys and values read (the source),
                    output_bias [d]                                batch_first (true)
    ``memory``      —                                              from the group that a connection of this target
                                                                   names as its ``memory`` or ``initial`` state
    ``unknown``     all it uses, by name                           op: name of the operation; cannot be executed
    ==============  =============================================  ==================================================

    Every kind may carry ``scale`` (1): the source's values are multiplied by it first. A target's value is the
    activation of the sum over its connections (of the product over its ``multiply`` connections); recurrent kinds apply
    it in every step, and it is not applied again. Several recurrent connections of one target (a concatenated input)
    add up before the gates; the first holds the hidden tensors.
    Where an axis of the table ranges over neurons of several labels, the tensor has several axes in its place, slowest
    first.
    """

    source: str
    target: str
    kind: str
    tensors: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", _frozen(self.tensors))
        object.__setattr__(self, "attributes", _frozen(self.attributes))
