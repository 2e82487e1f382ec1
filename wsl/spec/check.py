"""What every spec must satisfy: names resolve, sizes agree, the row is covered once, no symmetry is claimed in vain."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from wsl.activations import SYMMETRIES_OF_ACTIVATION, symmetries_of
from wsl.errors import UserError

if TYPE_CHECKING:
    from wsl.spec import WeightSpec

LABEL_KINDS = ("input", "output", "hidden", "fixed")
SYMMETRIES = ("permutation", "scaling", "sign", "phase")
ROLES = ("weight", "bias", "norm_scale", "norm_shift", "embedding", "buffer", "other")


class SpecError(UserError, ValueError):
    """A spec contradicts itself; the message names the tensor, label, group or connection."""


def check(spec: WeightSpec) -> None:
    """Raise :class:`SpecError` at the first contradiction in a spec."""
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
    covered, one = np.zeros(offset, dtype=np.int8), np.int8(1)  # of one type: adding an int would take 40 times as long
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
        np.add.at(covered, tensor.index().ravel(), one)
    if (covered != 1).any():
        position = int(np.argmax(covered != 1))
        owner = next(s for s in reversed(spec.stored) if s.offset <= position)
        raise SpecError(
            f"position {position} of the row (in {owner.name!r}) is covered {covered[position]} times by virtual "
            "tensors; every position must be covered exactly once"
        )
