"""A spec whose axes the user named one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from wsl.activations import symmetries_of
from wsl.spec import SYMMETRIES, Label, NeuronGroup, SpecError, StoredTensor, VirtualTensor, WeightSpec
from wsl.state_dict.hints import Assumptions, Hints


def spec_by_hand(stored: Sequence[StoredTensor], hints: Hints, told: Assumptions) -> WeightSpec:
    """Every stored tensor with the labels of ``hints.axes``; labels with an activation also scale or change sign.

    Raises:
        SpecError: if a tensor is not named or has another number of axes, or a label has two sizes.
    """
    axes = hints.axes or {}
    names = [tensor.name for tensor in stored]
    if unknown := sorted(set(axes) - set(names)):
        raise SpecError(f"hints: axes names {unknown}, which the checkpoint does not hold; it holds {names}")
    sizes: dict[str, tuple[int, str]] = {}
    tensors = []
    for tensor in stored:
        if tensor.name not in axes or len(axes[tensor.name]) != len(tensor.shape):
            given = list(axes[tensor.name]) if tensor.name in axes else "nothing"
            raise SpecError(f"hints: axes of {tensor.name!r} {list(tensor.shape)} should name each axis, got {given}")
        labels = tuple(str(axis) for axis in axes[tensor.name])
        for label, size in zip(labels, tensor.shape, strict=True):
            known, where = sizes.setdefault(label, (size, tensor.name))
            if known != size:
                raise SpecError(f"hints: label {label!r} has size {known} in {where!r}, but {size} in {tensor.name!r}")
        strides = tuple(math.prod(tensor.shape[k + 1 :]) for k in range(len(labels)))
        scaling = tuple(_power(k, label, hints.labels) for k, label in enumerate(labels))
        role = "weight" if len(labels) > 1 else "bias"
        tensors.append(VirtualTensor(tensor.name, role, tensor.offset, tensor.shape, strides, labels, scaling))
    if unknown := sorted(set(hints.labels) - set(sizes)):
        raise SpecError(f"hints: labels {unknown} are on no axis; the axes have {sorted(sizes)}")
    labels_ = tuple(_label(name, size, hints.labels.get(name, {})) for name, (size, _) in sizes.items())
    groups = tuple(
        NeuronGroup(x.name, x.name, hints.labels[x.name]["activation"], hints.labels[x.name].get("parameters", {}))
        for x in labels_
        if "activation" in hints.labels.get(x.name, {})
    )
    told.notes.append("axes and symmetries are as named by hand; nothing was checked against the network")
    told.notes.append("the first axis of a tensor is its out axis, the others are in axes, vectors are biases")
    told.notes.append("no connections: the network can be neither run nor drawn")
    return WeightSpec(tuple(stored), tuple(tensors), labels_, groups)


def _power(axis: int, label: str, labels: Mapping[str, Mapping[str, object]]) -> int:
    return (1 if axis == 0 else -1) if "activation" in labels.get(label, {}) else 0


def _label(name: str, size: int, said: Mapping[str, object]) -> Label:
    default = "fixed" if name.startswith("_") else name if name in ("input", "output") else "hidden"
    kind = str(said.get("kind", default))
    if kind != "hidden":
        return Label(name, size, kind)
    activation, parameters = said.get("activation", "unknown"), said.get("parameters", {})
    allowed = symmetries_of(str(activation), parameters) - {"phase"}  # type: ignore[arg-type]
    return Label(name, size, kind, ("permutation", *(s for s in SYMMETRIES if s in allowed)))
