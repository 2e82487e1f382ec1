"""Which tensors of a spec play the same role, and which are neighbours: what reduced bases share and leave out."""

from __future__ import annotations

from collections import defaultdict

from wsl.spec import SpecError, VirtualTensor, WeightSpec

#: (prefix of a repeated block, its number) pairs, outermost first
Place = tuple[tuple[str, str], ...]


def roles(spec: WeightSpec) -> dict[str, tuple[str, Place]]:
    """Tensor name → (role, place).

    Two tensors have one role if their names differ only in numbers, and their shapes and the kinds of their axes
    agree: ``blocks.3.mlp.weight`` has the role ``blocks.*.mlp.weight`` at the place ``(("blocks", "3"),)``. A number
    belongs to the place if two tensors of one role differ in it, so the 0 and 2 of ``mlp.0.weight
    [m, d]`` and ``mlp.2.weight [d, m]`` do not. Roles do not depend on how often a block is repeated.
    """
    role, numbers, seen = {}, {}, defaultdict(set)
    for tensor in spec.tensors:
        path = tensor.name.split(".")
        pattern = ".".join("*" if part.isdigit() else part for part in path)
        role[tensor.name] = f"{pattern} {_shape(spec, tensor)}"
        numbers[tensor.name] = [(".".join(path[:i]), part) for i, part in enumerate(path) if part.isdigit()]
        for prefix, number in numbers[tensor.name]:
            seen[prefix, role[tensor.name]].add(number)
    repeated = {prefix for (prefix, _), found in seen.items() if len(found) > 1}
    return {name: (role[name], tuple(n for n in numbers[name] if n[0] in repeated)) for name in role}


def _shape(spec: WeightSpec, tensor: VirtualTensor) -> str:
    return "×".join(f"{spec.label[a].kind}{n}" for a, n in zip(tensor.axes, tensor.shape, strict=True))


def same_block(a: Place, b: Place) -> bool:
    """Whether two places agree in the number of every block prefix that they share."""
    numbers = dict(b)
    return all(numbers.get(prefix, number) == number for prefix, number in a)


def neighbours(spec: WeightSpec) -> dict[str, frozenset[str]]:
    """Tensor name → the tensors on connections that touch a common neuron group, itself included.

    Raises:
        SpecError: if a tensor is on no connection, so that its neighbours are unknown.
    """
    on_group: dict[str, set[str]] = defaultdict(set)
    groups_of: dict[str, set[str]] = defaultdict(set)
    for connection in spec.connections:
        for end in (connection.source, connection.target):
            on_group[end].update(connection.tensors.values())
            for name in connection.tensors.values():
                groups_of[name].add(end)
    if loose := [t.name for t in spec.tensors if t.name not in groups_of]:
        raise SpecError(f"tensors {loose} are on no connection, so a basis of neighbours only cannot be formed")
    return {t.name: frozenset(set().union(*(on_group[g] for g in groups_of[t.name]))) for t in spec.tensors}
