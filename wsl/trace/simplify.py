"""The traced graph as a reader would draw it: identities spliced out, sums merged, attention made one edge."""

from __future__ import annotations

from dataclasses import replace

from wsl.trace.network import Edge, Network, Part
from wsl.trace.values import rows

_CHAINED = {"spatial_stride", "scale"}


def simplify(network: Network) -> None:
    """Apply the rules below, in place, until none applies."""
    changed = True
    while changed:
        changed = any([_prune(network), _splice(network), _merge(network), _fold_offset(network), _part(network)])


def _prune(network: Network) -> bool:
    """Drop nodes that nothing reads, unless they are outputs or hold tensors."""
    sources = {e.source for e in network.edges if e.source != e.target}
    holders = {e.target for e in network.edges if e.parts}
    dead = [i for i, n in network.nodes.items() if n.role == "hidden" and i not in sources and i not in holders]
    network.remove(dead)
    return bool(dead)


def _plain_identity(network: Network, number: int) -> bool:
    node = network.nodes[number]
    return node.role == "hidden" and node.activation == "identity" and not node.parameters


def _splice(network: Network) -> bool:
    """x → y → z with y the identity of x: z reads x."""
    changed = False
    for number in list(network.nodes):
        entering = network.into(number)
        if len(entering) != 1 or not _plain_identity(network, number):
            continue
        (edge,) = entering
        if edge.kind != "skip" or edge.source == number or edge.parts:
            continue
        leaving = network.out_of(number)
        whole = not edge.source_start and not edge.target_start and edge.length is None
        chained = set(edge.attributes) <= _CHAINED and all(
            e.kind == "skip" and set(e.attributes) <= _CHAINED for e in leaving
        )
        if not leaving or not whole or not (edge.plain or chained):
            continue
        for e in leaving:
            e.source = edge.source
            _chain(edge, e)
        _renamed(network, number, edge.source)
        network.remove([number])
        changed = True
    return changed


def _chain(first: Edge, then: Edge) -> None:
    if "scale" in first.attributes:
        then.attributes["scale"] = first.attributes["scale"] * then.attributes.get("scale", 1.0)
    if "spatial_stride" in first.attributes:
        old = then.attributes.get("spatial_stride", [1] * len(first.attributes["spatial_stride"]))
        pairs = zip(first.attributes["spatial_stride"], old, strict=True)
        then.attributes["spatial_stride"] = [a * b for a, b in pairs]


def _merge(network: Network) -> bool:
    """y + … → z with y read by z alone: what enters y enters z."""
    changed = False
    for number in list(network.nodes):
        leaving = [e for e in network.out_of(number) if e.target != number]
        if len(leaving) != 1 or not leaving[0].plain or not _plain_identity(network, number):
            continue
        entering, target = network.into(number), leaving[0].target
        if not entering or any(e.kind == "multiply" for e in (*entering, *network.into(target))):
            continue
        if any(e.parts for e in entering) and network.nodes[target].role == "hidden":
            network.nodes[target].name = network.nodes[number].name  # the layer's name, not its activation's
        network.edges.remove(leaving[0])
        _redirect(entering, number, target)
        _renamed(network, number, target)
        network.remove([number])
        changed = True
    return changed


def _fold_offset(network: Network) -> bool:
    """σ(y) → z = y + c with y read by z alone: z is σ(…) + c."""
    changed = False
    for number, node in list(network.nodes.items()):
        if node.activation != "identity" or set(node.parameters) != {"offset"}:
            continue
        entering = network.into(number)
        if len(entering) != 1 or not entering[0].plain:
            continue
        source = entering[0].source
        inner = network.nodes[source]
        if inner.role != "hidden" or "offset" in inner.parameters or len(network.out_of(source)) != 1:
            continue
        network.edges.remove(entering[0])
        _redirect(network.into(source), source, number)
        node.name = inner.name
        node.activation, node.parameters = inner.activation, {**inner.parameters, **node.parameters}
        network.remove([source])
        changed = True
    return changed


def _part(network: Network) -> bool:
    """x → y linear with y only read in slices (a fused projection): x → each slice with its rows."""
    changed = False
    for number in list(network.nodes):
        entering, leaving = network.into(number), network.out_of(number)
        if len(entering) != 1 or not _is_linear(entering[0]) or not _plain_identity(network, number):
            continue
        if not leaving or any(e.kind != "skip" or e.length is None or e.attributes or e.target_start for e in leaving):
            continue
        narrowed = [_narrowed(entering[0], e) for e in leaving]
        if any(parts is None for parts in narrowed):
            continue
        for slice_, parts in zip(leaving, narrowed, strict=True):
            slice_.source, slice_.kind, slice_.parts = entering[0].source, "linear", parts or {}
            slice_.source_start, slice_.length = 0, None
        network.remove([number])
        changed = True
    return changed


def _narrowed(edge: Edge, slice_: Edge) -> dict[str, Part] | None:
    """The parts of a linear edge for a range of its out channels."""
    out = {}
    for name, part in edge.parts.items():
        if part.target is None or slice_.length is None:
            return None
        value = rows(part.value, part.target, slice_.source_start, slice_.length)
        if value is None:
            return None
        out[name] = part._replace(value=value)
    return out


def _redirect(edges: list[Edge], old: int, new: int) -> None:
    for edge in edges:
        edge.target = new
        if edge.source == old:
            edge.source = new


def _renamed(network: Network, old: int, new: int) -> None:
    for edge in network.edges:
        if edge.refers == old:
            edge.refers = new


def collapse_attention(network: Network) -> None:
    """x → q, k, v → attention → output as one ``attention`` edge, where each projection is read only there."""
    for number in list(network.nodes):
        entering = {e.kind: e for e in network.into(number)}
        if set(entering) != {"attend query", "attend key", "attend value"}:
            continue
        leaving = network.out_of(number)
        projections = {kind.split()[1]: _projection(network, e.source) for kind, e in entering.items()}
        if any(p is None for p in projections.values()) or len(leaving) != 1 or not _is_linear(leaving[0]):
            continue
        query, key, value = (projections[name] for name in ("query", "key", "value"))
        if key.source != value.source:  # type: ignore[union-attr]
            continue
        _one_edge(network, number, query, key, value, leaving[0], entering["attend query"])  # type: ignore[arg-type]


def _projection(network: Network, number: int) -> Edge | None:
    entering, leaving = network.into(number), network.out_of(number)
    if len(entering) != 1 or len(leaving) != 1 or not _plain_identity(network, number):
        return None
    return entering[0] if _is_linear(entering[0]) else None


def _is_linear(edge: Edge) -> bool:
    return edge.kind == "linear" and not edge.attributes and edge.source != edge.target


def _one_edge(network: Network, number: int, query: Edge, key: Edge, value: Edge, output: Edge, attend: Edge) -> None:
    parts = {}
    for name, edge in (("query", query), ("key", key), ("value", value), ("output", output)):
        for part, tensor in edge.parts.items():
            inner = tensor._replace(target=None) if name != "output" else tensor._replace(source=None)
            parts[name if part == "weight" else f"{name}_{part}"] = inner
    joined = replace(attend, source=query.source, target=output.target, kind="attention", parts=parts)
    if key.source != query.source:
        joined.refers = key.source
        network.edges.append(Edge(key.source, output.target, "memory"))
    if joined.attributes.pop("masked", False):
        joined.kind, joined.attributes["op"] = "unknown", "attention with a mask"
    network.edges.append(joined)
    network.remove([number, query.target, key.target, value.target])
