"""A finished trace as a WeightSpec: labels named and given their symmetries, tensors cut, groups connected."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wsl.activations import symmetries_of
from wsl.spec import Connection, Label, NeuronGroup, StoredTensor, VirtualTensor, WeightSpec
from wsl.trace.axes import Axis, leaves
from wsl.trace.divide import Divided, Link, divide
from wsl.trace.exponents import Key, Solution, equations_by_leaf, keys_of, solve
from wsl.trace.network import Network, Part
from wsl.trace.pieces import Piece, cut, overlapping, restricted
from wsl.trace.simplify import collapse_attention, simplify
from wsl.trace.values import Trace, axis_of

_ROLE_OF_PART = {"gamma": "norm_scale", "beta": "norm_shift", "mean": "buffer", "var": "buffer"}


@dataclass
class Assembled:
    """The spec, and for each stored axis the frozen parts of it with the reason."""

    spec: WeightSpec
    frozen: dict[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)


def assemble(trace: Trace, stored: Sequence[StoredTensor], buffers: set[str]) -> Assembled:
    """The spec that a trace amounts to (not yet verified)."""
    network = trace.network
    simplify(network)
    roles = _roles(trace, stored, buffers)
    flow = _flow(trace)
    solutions = _solutions(trace, roles, flow)
    collapse_attention(network)
    simplify(network)
    divided = divide(network)
    names = _Names(trace, network, divided)
    exponents = {key: power for solution in solutions.values() for key, power in solution.exponents.items()}
    solved = {leaf for leaf, solution in solutions.items() if solution.symmetries}

    def exponent(axis: Axis, key: Key) -> int:
        if id(axis) in solved:
            return exponents.get(key, 0)
        return flow.get(trace.owner[key.power], 0) if not axis.reason or axis.kinds else 0

    pieces = {s.name: cut(trace, s, roles[s.name], names.label, exponent) for s in stored}
    groups = _groups(network, divided, names)
    connections = [_connection(trace, link, groups, pieces) for link in divided.links]
    labels = names.labels(solutions, network, divided)
    labels = _with_phase(labels, groups, connections, pieces)
    tensors = tuple(p.tensor for s in stored for p in pieces[s.name])
    used = {axis for t in tensors for axis in t.axes} | {g.label for g in groups}
    kept = tuple(label for label in labels if label.name in used)
    spec = WeightSpec(tuple(stored), tensors, kept, tuple(groups), tuple(connections))
    return Assembled(spec, _frozen_axes(trace))


def _roles(trace: Trace, stored: Sequence[StoredTensor], buffers: set[str]) -> dict[str, str]:
    """Role of each stored tensor: from the part that it plays on an edge."""
    roles: dict[str, str] = {}
    for edge in trace.network.edges:
        for part, use in edge.parts.items():
            role = "bias" if part.endswith("bias") else _ROLE_OF_PART.get(part, "weight")
            role = "embedding" if edge.kind == "embedding" else "other" if edge.kind == "unknown" else role
            for name in use.value.tensors:
                if roles.get(name, "other") == "other" or role == "embedding":
                    roles[name] = role
    for tensor in stored:
        if tensor.name in buffers:
            roles[tensor.name] = "buffer"
        roles.setdefault(tensor.name, "other")
    return roles


def _solutions(trace: Trace, roles: Mapping[str, str], flow: Mapping[tuple[str, int], int]) -> dict[int, Solution]:
    """Symmetries beside permutation of each label, by the id of its leaf."""
    unknowns: dict[int, list[Key]] = {}
    nodes: dict[int, list[Key]] = {}
    inner: set[int] = set()
    for value in trace.parameters.values():
        for dim in value.dims:
            for axis, key in (pair for factor in dim for pair in keys_of(factor)):
                if not axis.reason:
                    unknowns.setdefault(id(axis), []).append(key)
    for node in trace.network.nodes.values():
        for number, factor in enumerate(node.dim):
            after = math.prod(f.size for f in node.dim[number + 1 :])
            for leaf, (axis, key) in zip(leaves(factor.axis), keys_of(factor), strict=True):
                nodes.setdefault(id(axis), []).append(key)
                if leaf.stride * after != 1:
                    inner.add(id(axis))  # heads and groups: factors of their channels say the same already

    def rank(key: Key) -> int:
        owner = trace.owner.get(key.power)
        return 0 if owner is None else 1 if roles[owner[0]] in ("norm_scale", "norm_shift", "buffer") else 2

    def sign(key: Key) -> int:
        return flow.get(trace.owner.get(key.power, ("", 0)), 1)

    equations = equations_by_leaf(trace.equations)
    found = {}
    for leaf_id, keys in unknowns.items():
        if leaf_id not in inner and leaf_id in nodes:
            found[leaf_id] = solve(equations.get(leaf_id, []), keys, rank, nodes[leaf_id], sign)
    return found


class _Names:
    """Label names: of the first group that ranges over the label, or of the first tensor axis; fixed ones by length."""

    def __init__(self, trace: Trace, network: Network, divided: Divided) -> None:
        self._names: dict[int, str] = {}
        self._axes: dict[str, Axis] = {}
        self._taken: set[str] = set()
        ends = {id(g.axis.root) for g in divided.groups if network.nodes[g.node].role != "hidden"}
        self._ends = ends | _contracted(network)
        for group in divided.groups:
            self._name(group.axis.root, group.name)
            for leaf, part in zip(group.cell.leaves, ("groups", "channels"), strict=False):
                if len(group.cell.leaves) > 1 and not leaf.axis.reason:
                    self._name(leaf.axis, f"{group.name}.{part}")
        for link in divided.links:
            if link.kind == "attention":
                self._name_heads(link.edge.parts)
        for tensor, value in trace.parameters.items():
            for number, dim in enumerate(value.dims):
                for axis, _ in (pair for factor in dim for pair in keys_of(factor)):
                    if not axis.reason or axis.kinds:
                        self._name(axis, f"{tensor}.axis{number}")

    def _name(self, axis: Axis, wanted: str) -> None:
        if id(axis) in self._names:
            return
        if axis.kinds and id(axis) not in self._ends:
            return  # positions of an input, say, which a table is added to
        ends = [kind for kind in ("input", "output") if kind in axis.kinds]
        base = ends[0] if ends else wanted
        name, number = base, 2
        while name in self._taken:
            name, number = f"{base}{number}", number + 1
        self._names[id(axis)] = name
        self._axes[name] = axis
        self._taken.add(name)

    def _name_heads(self, parts: Mapping[str, Part]) -> None:
        """Heads, the channels that queries and keys share, and those of the values, after the modules they are in."""
        for part, names in (("query", ("heads", "query_key")), ("value", ("heads", "value"))):
            value = parts[part].value
            module = value.tensors[0].rpartition(".")[0]
            for leaf, name in zip(leaves(axis_of(value.dims[0])), names, strict=False):
                if not leaf.axis.reason:
                    self._name(leaf.axis, f"{module}.{name}" if module else name)

    def label(self, axis: Axis, size: int) -> str:
        axis = axis.root
        if id(axis) in self._names:
            return self._names[id(axis)]
        name = f"fixed:{size}"
        self._axes.setdefault(name, axis)
        return name

    def labels(self, solutions: Mapping[int, Solution], network: Network, divided: Divided) -> tuple[Label, ...]:
        out = []
        for name, axis in self._axes.items():
            if axis.kinds and id(axis) in self._names:
                out.append(Label(name, axis.size, "input" if "input" in axis.kinds else "output"))
            elif axis.reason:
                out.append(Label(name, axis.size, "fixed"))
            else:
                groups = [g for g in divided.groups if g.axis.root is axis]
                allowed = set(solutions[id(axis)].symmetries) if id(axis) in solutions else set()
                for group in groups:
                    node = network.nodes[group.node]
                    allowed &= symmetries_of(node.activation, node.parameters)
                extra = tuple(s for s in ("scaling", "sign") if s in allowed)
                out.append(Label(name, axis.size, "hidden", ("permutation", *extra)))
        return tuple(out)


def _groups(network: Network, divided: Divided, names: _Names) -> list[NeuronGroup]:
    return [
        NeuronGroup(
            group.name,
            names.label(group.axis, group.axis.size),
            network.nodes[group.node].activation,
            network.nodes[group.node].parameters,
        )
        for group in divided.groups
    ]


def _connection(
    trace: Trace, link: Link, groups: Sequence[NeuronGroup], pieces: Mapping[str, list[Piece]]
) -> Connection:
    tensors: dict[str, str] = {}
    kind, attributes = link.kind, dict(link.attributes)
    for part, use in link.edge.parts.items():
        if use.source is None and not link.first and link.source != link.target:
            continue
        ranges = restricted(trace, use, link.target_span, link.source_span)
        names = [name for tensor, spans in ranges.items() for name in overlapping(pieces[tensor], spans)]
        if len(names) > 1 and kind != "unknown":
            kind, attributes = "unknown", {**attributes, "op": kind}
        tensors |= {part if k == 0 else f"{part}:{k}": name for k, name in enumerate(names)}
    source, target = groups[link.source].name, groups[link.target].name
    return Connection(source, target, kind, tensors, attributes)


def _with_phase(
    labels: Sequence[Label],
    groups: Sequence[NeuronGroup],
    connections: Sequence[Connection],
    pieces: Mapping[str, list[Piece]],
) -> tuple[Label, ...]:
    """Phase for the labels of one sine group each, whose one bias nothing else reads."""
    tensors = {p.tensor.name: p.tensor for found in pieces.values() for p in found}
    out = []
    for label in labels:
        own = [g for g in groups if g.label == label.name]
        if "sign" in label.symmetries and len(own) == 1 and own[0].activation == "sine":
            entering = [c for c in connections if c.target == own[0].name]
            if len(entering) == 1 and _turns(label.name, entering[0], connections, tensors):
                label = Label(label.name, label.size, label.kind, (*label.symmetries, "phase"))
        out.append(label)
    return tuple(out)


def _turns(
    label: str, entering: Connection, connections: Sequence[Connection], tensors: Mapping[str, VirtualTensor]
) -> bool:
    bias, weight = entering.tensors.get("bias"), entering.tensors.get("weight")
    if bias is None or weight is None or entering.kind not in ("linear", "conv") or tensors[bias].axes != (label,):
        return False
    if sum(bias in c.tensors.values() for c in connections) != 1:
        return False
    powers = {
        (name, p) for name, t in tensors.items() for axis, p in zip(t.axes, t.scaling, strict=True) if axis == label
    }
    producers = {name for name, p in powers if p > 0}
    return producers == {bias, weight} and all(p in (1, -1) or p == 0 for _, p in powers)


def _contracted(network: Network) -> set[int]:
    """Leaves (ids) that some tensor sums over."""
    dims = [
        use.value.dims[use.source] for edge in network.edges for use in edge.parts.values() if use.source is not None
    ]
    return {id(leaf.axis) for dim in dims for factor in dim for leaf in leaves(factor.axis)}


def _flow(trace: Trace) -> dict[tuple[str, int], int]:
    """Exponents where no factor acts: +1 on axes that follow their target, −1 on axes that follow their source."""
    found: dict[tuple[str, int], int] = {}
    for edge in trace.network.edges:
        for use in edge.parts.values():
            for at, sign in ((use.target, 1), (use.source, -1)):
                if at is not None and at < len(use.value.dims):
                    for factor in use.value.dims[at]:
                        owner = trace.owner.get(factor.slot.power)
                        if owner is not None:
                            found.setdefault(owner, sign)
    return found


def _frozen_axes(trace: Trace) -> dict[tuple[str, int], tuple[str, ...]]:
    """Reasons for the frozen leaves of every stored axis (of length above 1)."""
    found = {}
    for name, value in trace.parameters.items():
        for number, dim in enumerate(value.dims):
            frozen = [leaf.axis for f in dim for leaf in leaves(f.axis) if leaf.axis.reason and leaf.axis.size > 1]
            if frozen:
                found[name, number] = tuple(dict.fromkeys(axis.reason for axis in frozen))
    return found


def tidy_names(network: Network) -> None:
    """Node names without the operation's name where the module's path alone is unique."""
    short = {i: re.sub(r"\.[A-Za-z_0-9]+$", "", n.name) if "." in n.name else n.name for i, n in network.nodes.items()}
    counts: dict[str, int] = {}
    for name in short.values():
        counts[name] = counts.get(name, 0) + 1
    taken: set[str] = set()
    for number, node in network.nodes.items():
        name = short[number] if counts[short[number]] == 1 else node.name
        base, k = name, 2
        while name in taken:
            name, k = f"{base}.{k}", k + 1
        node.name = name
        taken.add(name)
