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
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from wsl.activations import symmetries_of
from wsl.spec.check import LABEL_KINDS, ROLES, SYMMETRIES, SpecError, check
from wsl.spec.parts import Connection, Label, NeuronGroup, StoredTensor, VirtualTensor

__all__ = [
    "LABEL_KINDS",
    "ROLES",
    "SYMMETRIES",
    "Connection",
    "Label",
    "NeuronGroup",
    "SpecError",
    "StoredTensor",
    "VirtualTensor",
    "WeightSpec",
    "mlp_spec",
]

FORMAT_VERSION = 1


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
        check(self)

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
