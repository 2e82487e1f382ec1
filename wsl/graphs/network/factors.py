"""Which labels the neurons of a group range over: one, or the product of several (groups, heads, their channels)."""

from __future__ import annotations

from collections.abc import Mapping

from wsl.graphs.network.parts import product
from wsl.spec import Connection, VirtualTensor, WeightSpec

#: parts with one value per neuron of the target
PER_NEURON = ("bias", "beta", "gamma", "mean", "var", "value")
#: connections that hand on what a group holds, neuron by neuron
ONE_TO_ONE = ("skip", "pool", "upsample", "norm", "multiply", "depthwise", "memory")

Factors = Mapping[str, tuple[str, ...]]


def factors_of(spec: WeightSpec) -> Factors:
    """Group → labels, slowest first. A group whose label is on no tensor takes those of the tensors that meet it.

    Where nothing says more, the group's own label stands alone.
    """
    on_tensors = {axis for tensor in spec.tensors for axis in tensor.axes}
    found: dict[str, tuple[str, ...]] = {g.name: (g.label,) for g in spec.groups if g.label in on_tensors}
    for look in (_own, _arriving, _leaving):
        for group in spec.groups:
            if group.name not in found and (axes := look(spec, group.name)):
                found[group.name] = axes
    for _ in spec.groups:  # along chains of layers that keep their neurons
        for c in (
            c for c in spec.connections if c.kind in ONE_TO_ONE and spec.size_of(c.source) == spec.size_of(c.target)
        ):
            for here, there in ((c.source, c.target), (c.target, c.source)):
                if here in found and there not in found:
                    found[there] = found[here]
    return {g.name: found.get(g.name, (g.label,)) for g in spec.groups}


def _own(spec: WeightSpec, group: str) -> tuple[str, ...]:
    """Axes of a tensor that holds one value per neuron."""
    for connection in spec.incoming(group):
        for part in PER_NEURON:
            if part in connection.tensors:
                tensor = spec.tensor[connection.tensors[part]]
                if tensor.numel == spec.size_of(group):
                    return tensor.axes
    return ()


def _arriving(spec: WeightSpec, group: str) -> tuple[str, ...]:
    """Leading axes of a weight that ends here."""
    for connection in spec.incoming(group):
        out_first = connection.kind != "embedding" and not connection.attributes.get("transposed", False)
        if "weight" in connection.tensors and out_first:
            return _prefix(spec.tensor[connection.tensors["weight"]], spec.size_of(group))
    return ()


def _leaving(spec: WeightSpec, group: str) -> tuple[str, ...]:
    """Axes of a weight that begins here, behind those of its target."""
    for connection in (c for c in spec.connections if c.source == group and c.kind in ("linear", "conv")):
        if "weight" in connection.tensors and int(connection.attributes.get("groups", 1)) == 1:
            tensor = spec.tensor[connection.tensors["weight"]]
            first = _prefix(tensor, spec.size_of(connection.target))
            return _prefix(tensor, spec.size_of(group), len(first)) if first else ()
    return ()


def _prefix(tensor: VirtualTensor, size: int, start: int = 0) -> tuple[str, ...]:
    """The axes from ``start`` on that together have this size; empty if there are none."""
    for stop in range(start + 1, len(tensor.shape) + 1):
        if product(tensor.shape[start:stop]) == size:
            return tensor.axes[start:stop]
    return ()


def in_first(spec: WeightSpec, connection: Connection, tensor: VirtualTensor, factors: Factors) -> bool:
    """Whether a weight's axes begin with those of the source."""
    out, into = factors[connection.target], factors[connection.source]
    if tensor.axes[: len(out)] == out:
        return False
    if tensor.axes[: len(into)] == into:
        return True
    return connection.kind == "embedding" or bool(connection.attributes.get("transposed", False))
