"""WeightSpec: the one description of a network's weight space from which every encoder is derived.

A row of a zoo is the concatenation of a network's *stored* tensors (state-dict order, each flattened). The spec reads
that row as *virtual* tensors, strided slices whose every axis is exactly one *label*, the neurons it ranges over.

    stored       "rnn.weight_ih_l0" [3h, i]            what a checkpoint holds
    tensors      reset, update, new: each [h, i]       what encoders see; axes labelled ("h", "i")
    labels       "h": hidden, permutation + sign       what may be permuted, scaled, flipped
    groups       neurons: a label and an activation    the nodes of the neural graph
    connections  from group, to group, tensors, kind   the edges: how to run the network

A label may be shared by several groups: the layers on one residual stream permute together, yet hold different values.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from wsl.activations import SYMMETRIES_OF_ACTIVATION, symmetries_of
from wsl.errors import UserError

FORMAT_VERSION = 1
LABEL_KINDS = ("input", "output", "hidden", "fixed")
SYMMETRIES = ("permutation", "scaling", "sign", "phase")
ROLES = ("weight", "bias", "norm_scale", "norm_shift", "embedding", "buffer", "other")


class SpecError(UserError, ValueError):
    """A spec contradicts itself; the message names the tensor, label, group or connection."""


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
    """Neurons computed together: value = activation(sum over incoming connections) + ``parameters["offset"]``."""

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


@dataclass(frozen=True, eq=False)
class WeightSpec:
    """What all networks of one architecture share. Immutable; equal when the JSON is equal.

    Args:
        stored: the state-dict entries, in the order in which a row holds them.
        tensors: virtual tensors; together they cover every position of the row exactly once.
        labels, groups, connections: see the module docstring. Groups are listed in the order of execution.
        verified: true only if the symmetries were checked numerically (:func:`wsl.verify.verify`).

    Raises:
        SpecError: if names repeat or dangle, sizes disagree, the row is not covered exactly once, or a label claims a
            symmetry that the activation of one of its groups does not have.
    """

    stored: tuple[StoredTensor, ...]
    tensors: tuple[VirtualTensor, ...]
    labels: tuple[Label, ...]
    groups: tuple[NeuronGroup, ...] = ()
    connections: tuple[Connection, ...] = ()
    verified: bool = False

    def __post_init__(self) -> None:
        for name in ("stored", "tensors", "labels", "groups", "connections"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check(self)

    # -- look-ups -----------------------------------------------------------------------------------------------------

    @cached_property
    def numel(self) -> int:
        """P: the number of values in a row."""
        return sum(math.prod(s.shape) for s in self.stored)

    @cached_property
    def tensor(self) -> Mapping[str, VirtualTensor]:
        return {t.name: t for t in self.tensors}

    @cached_property
    def label(self) -> Mapping[str, Label]:
        return {label.name: label for label in self.labels}

    @cached_property
    def group(self) -> Mapping[str, NeuronGroup]:
        return {g.name: g for g in self.groups}

    def size_of(self, group: str) -> int:
        """Number of neurons in a group."""
        return self.label[self.group[group].label].size

    def groups_of_kind(self, kind: str) -> tuple[NeuronGroup, ...]:
        return tuple(g for g in self.groups if self.label[g.label].kind == kind)

    def incoming(self, group: str) -> tuple[Connection, ...]:
        return tuple(c for c in self.connections if c.target == group)

    def labels_with(self, symmetry: str) -> tuple[Label, ...]:
        return tuple(label for label in self.labels if symmetry in label.symmetries)

    # -- JSON ---------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers."""
        return {"version": FORMAT_VERSION, "verified": self.verified} | {
            name: [_plain(item) for item in getattr(self, name)]
            for name in ("stored", "tensors", "labels", "groups", "connections")
        }

    def to_json(self) -> str:
        """Canonical JSON: equal specs give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WeightSpec:
        """Inverse of :meth:`to_dict`; raises :class:`SpecError` on anything that it does not know."""
        if not isinstance(data, Mapping) or data.get("version") != FORMAT_VERSION:
            version = data.get("version") if isinstance(data, Mapping) else None
            raise SpecError(f"spec format version {version!r} is not readable; this release reads {FORMAT_VERSION}")
        kinds = {"stored": StoredTensor, "tensors": VirtualTensor, "labels": Label}
        kinds |= {"groups": NeuronGroup, "connections": Connection}
        if unknown := set(data) - set(kinds) - {"version", "verified"}:
            raise SpecError(f"spec has unknown fields {sorted(unknown)}")
        try:
            parts = {
                name: tuple(
                    kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in item.items()}) for item in data[name]
                )
                for name, kind in kinds.items()
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise SpecError(f"spec is malformed: {error}") from error
        return cls(**parts, verified=bool(data.get("verified", False)))

    @classmethod
    def from_json(cls, text: str) -> WeightSpec:
        return cls.from_dict(json.loads(text))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightSpec) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __reduce__(self) -> tuple[Any, ...]:
        return WeightSpec.from_json, (self.to_json(),)  # mapping proxies do not pickle; JSON is exact

    def __repr__(self) -> str:
        sizes = "-".join(str(self.size_of(g.name)) for g in self.groups) or "no groups"
        return f"WeightSpec({sizes}, {len(self.tensors)} tensors, P={self.numel}, verified={self.verified})"

    def relax_io(self, *tied: Sequence[str]) -> WeightSpec:
        """The same spec with input, output and vocabulary labels permutable as well, and no longer verified.

        Permuting inputs or outputs changes the function, so this is never a default; the literature counts its
        equivariant maps on such specs (Zhou, Finn and Harrison, "Universal Neural Functionals", section 2).

        Args:
            tied: labels to permute alike, such as the vocabulary that a translator reads and writes; the first stays.

        Raises:
            SpecError: if labels to be tied are unknown, hidden or fixed, or differ in size.
        """
        new_name = {name: names[0] for names in tied for name in names}
        for name, first in new_name.items():
            both = [self.label.get(n) for n in (name, first)]
            if any(label is None or label.kind not in ("input", "output") for label in both):
                raise SpecError(f"only input and output labels can be tied, not {name!r} with {first!r}")
            if self.label[name].size != self.label[first].size:
                raise SpecError(f"labels {name!r} and {first!r} differ in size and cannot be tied")
        labels = tuple(
            dataclasses.replace(label, symmetries=tuple(dict.fromkeys(("permutation", *label.symmetries))))
            if label.kind in ("input", "output")
            else label
            for label in self.labels
            if new_name.get(label.name, label.name) == label.name
        )
        tensors = tuple(
            dataclasses.replace(t, axes=tuple(new_name.get(axis, axis) for axis in t.axes)) for t in self.tensors
        )
        groups = tuple(dataclasses.replace(g, label=new_name.get(g.label, g.label)) for g in self.groups)
        return self.replace(labels=labels, tensors=tensors, groups=groups, verified=False)

    def replace(self, **changes: Any) -> WeightSpec:
        """A copy with fields replaced (checked like any spec)."""
        return dataclasses.replace(self, **changes)


def _plain(item: Any) -> dict[str, Any]:
    values = {f.name: getattr(item, f.name) for f in dataclasses.fields(item)}
    return {k: dict(v) if isinstance(v, Mapping) else list(v) if isinstance(v, tuple) else v for k, v in values.items()}


# -- checks -----------------------------------------------------------------------------------------------------------


def _check(spec: WeightSpec) -> None:
    for kind in ("stored", "tensors", "labels", "groups"):
        names = [item.name for item in getattr(spec, kind)]
        if repeated := {n for n in names if names.count(n) > 1}:
            raise SpecError(f"{kind} repeat the names {sorted(repeated)}")
    _check_labels(spec)
    _check_row(spec)
    for connection in spec.connections:
        where = f"connection {connection.source!r} → {connection.target!r}"
        for end in (connection.source, connection.target):
            if end not in spec.group:
                raise SpecError(f"{where} names the unknown group {end!r}; groups: {sorted(spec.group)}")
        for part, name in connection.tensors.items():
            if name not in spec.tensor:
                raise SpecError(f"{where} names the unknown tensor {name!r} as its {part}")


def _check_labels(spec: WeightSpec) -> None:
    for label in spec.labels:
        if label.kind not in LABEL_KINDS or label.size < 0 or not set(label.symmetries) <= set(SYMMETRIES):
            raise SpecError(f"{label}: kind is one of {LABEL_KINDS}, symmetries are among {SYMMETRIES}")
        if label.kind == "fixed" and label.symmetries:
            raise SpecError(f"fixed label {label.name!r} cannot have symmetries {label.symmetries}")
    for group in spec.groups:
        if group.label not in spec.label:
            raise SpecError(f"group {group.name!r} has the unknown label {group.label!r}")
        if group.activation not in SYMMETRIES_OF_ACTIVATION:
            known = sorted(SYMMETRIES_OF_ACTIVATION)
            raise SpecError(f"group {group.name!r} has the unknown activation {group.activation!r}; known: {known}")
        label = spec.label[group.label]
        false = set(label.symmetries) - {"permutation"} - symmetries_of(group.activation, group.parameters)
        if label.kind == "hidden" and false:
            raise SpecError(
                f"label {label.name!r} claims {sorted(false)}, which {group.activation!r} of group {group.name!r} "
                f"(parameters {dict(group.parameters)}) does not have"
            )


def _check_row(spec: WeightSpec) -> None:
    offset = 0
    for stored in spec.stored:
        if stored.offset != offset:
            raise SpecError(f"stored tensor {stored.name!r} starts at {stored.offset}, expected {offset}")
        offset += math.prod(stored.shape)
    covered = np.zeros(offset, dtype=np.int8)
    for tensor in spec.tensors:
        where = f"tensor {tensor.name!r}"
        if not len(tensor.shape) == len(tensor.strides) == len(tensor.axes) == len(tensor.scaling):
            raise SpecError(f"{where}: shape, strides, axes and scaling differ in length")
        if tensor.role not in ROLES:
            raise SpecError(f"{where} has the unknown role {tensor.role!r}; roles: {ROLES}")
        for axis, size in zip(tensor.axes, tensor.shape, strict=True):
            if axis not in spec.label:
                raise SpecError(f"{where} has the unknown axis label {axis!r}")
            if spec.label[axis].size != size:
                raise SpecError(f"{where}: axis {axis!r} has size {size}, its label has {spec.label[axis].size}")
        if tensor.numel == 0:
            continue
        last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
        if tensor.offset < 0 or min(tensor.strides, default=0) < 0 or last >= offset:
            raise SpecError(f"{where} reaches outside the row of {offset} values")
        np.add.at(covered, tensor.index().ravel(), 1)
    if (covered != 1).any():
        position = int(np.argmax(covered != 1))
        owner = next(s for s in reversed(spec.stored) if s.offset <= position)
        raise SpecError(
            f"position {position} of the row (in {owner.name!r}) is covered {covered[position]} times by virtual "
            "tensors; every position must be covered exactly once"
        )


# -- the simplest family ----------------------------------------------------------------------------------------------


def mlp_spec(
    widths: Sequence[int],
    activation: str = "relu",
    parameters: Mapping[str, float] | None = None,
    output_offset: float = 0.0,
    name: str = "seq.{}",
) -> WeightSpec:
    """Spec of a multi-layer perceptron with state dict ``seq.0.weight [d_1, d_0], seq.0.bias [d_1], …``.

    Args:
        widths: d_0 … d_L, input first.
        activation: after every layer but the last. ``parameters``: its parameters, e.g. ``{"omega": 30.0}``.
        output_offset: constant added to the output (0.5 for the published INRs).
        name: state-dict prefix of layer ``{}``.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise SpecError(f"an MLP needs at least two positive widths, got {tuple(widths)}")
    depth = len(widths) - 1
    allowed = ("permutation", *(s for s in SYMMETRIES if s in symmetries_of(activation, parameters or {})))
    labels, groups, stored, tensors, connections = [], [], [], [], []
    for i, width in enumerate(widths):
        kind = "input" if i == 0 else "output" if i == depth else "hidden"
        label = kind if kind != "hidden" else f"hidden{i}"
        labels.append(Label(label, width, kind, allowed if kind == "hidden" else ()))
        if kind == "output":
            groups.append(NeuronGroup(label, label, parameters={"offset": output_offset} if output_offset else {}))
        else:
            active = kind == "hidden"
            groups.append(NeuronGroup(label, label, *((activation, parameters or {}) if active else ())))
    offset = 0
    for i in range(depth):
        source, target = groups[i].name, groups[i + 1].name
        n_in, n_out = widths[i], widths[i + 1]
        weight, bias = f"{name.format(i)}.weight", f"{name.format(i)}.bias"
        stored += [StoredTensor(weight, (n_out, n_in), offset), StoredTensor(bias, (n_out,), offset + n_out * n_in)]
        axes, shape = (target, source), (n_out, n_in)
        tensors.append(VirtualTensor(weight, "weight", offset, shape, (n_in, 1), axes, (1, -1)))
        tensors.append(VirtualTensor(bias, "bias", offset + n_out * n_in, (n_out,), (1,), (target,), (1,)))
        connections.append(Connection(source, target, "linear", {"weight": weight, "bias": bias}))
        offset += n_out * (n_in + 1)
    return WeightSpec(tuple(stored), tuple(tensors), tuple(labels), tuple(groups), tuple(connections))
