"""How a network's inputs are laid out, read off the connections that consume them.

Inside, every value is ``[B, N, *positions, C]``, B being 1 while all networks see the same. A module reads and returns
images and signals as ``[N, C, *positions]``, and sequences as ``[N, T, C]``, or ``[T, N, C]`` without ``batch_first``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from wsl.spec import SpecError, WeightSpec

RECURRENT = ("rnn", "gru", "lstm")


@dataclass(frozen=True)
class Layout:
    """Of the inputs: ``vector``, ``image``, ``sequence`` or ``tokens``, and how many axes of positions they have.

    ``flat`` stands for vectors that the module makes of images: it is given either.
    """

    kind: str
    rank: int
    time_first: bool = False

    def enter(self, inputs: Tensor, size: int, networks: int) -> Tensor:
        """``[N, …]`` or ``[B, N, …]`` in the module's layout → ``[1 or B, N, *positions, C]``.

        Raises:
            SpecError: if the number of dimensions, networks or channels is another.
        """
        if self.kind == "flat" and inputs.dim() > 2 and inputs.shape[-1] != size:
            whole = [start for start in (1, 2) if math.prod(inputs.shape[start:]) == size]
            inputs = inputs.flatten(whole[0]) if whole else inputs
        dims = 1 + self.rank + (self.kind != "tokens")
        if inputs.dim() not in (dims, dims + 1):
            raise SpecError(
                f"this network reads {self.kind} inputs with {dims} dimensions, or {dims + 1} if each network has its "
                f"own; got shape {list(inputs.shape)}"
            )
        x = inputs.unsqueeze(0) if inputs.dim() == dims else inputs
        if x.shape[0] not in (1, networks):
            raise SpecError(f"inputs for {x.shape[0]} networks, but the batch has {networks}")
        if self.kind == "tokens":
            return x.transpose(1, 2) if self.time_first else x
        x = x.movedim(2, -1) if self.kind == "image" else x.transpose(1, 2) if self.time_first else x
        if x.shape[-1] != size:
            raise SpecError(
                f"the input group has {size} neurons, the inputs of shape {list(inputs.shape)} another number"
            )
        return x

    def leave(self, outputs: Tensor) -> Tensor:
        """``[B, N, *positions, C]`` in the module's layout."""
        if outputs.dim() == 3:
            return outputs
        if self.kind == "image":
            return outputs.movedim(-1, 2)
        return outputs.transpose(1, 2) if self.time_first else outputs


def layout_of(spec: WeightSpec, group: str) -> Layout:
    """Follow the values of an input group to the first connection that says what they are; else they are vectors."""
    seen, queue = {group}, [group]
    first = [c.kind for c in spec.connections if c.source == group]
    tokens = "embedding" in first
    while queue:
        for c in (c for c in spec.connections if c.source == queue[0]):
            if c.kind in (*RECURRENT, "attention") or (c.kind == "memory" and _is_attended(spec, c.target)):
                return Layout("tokens" if tokens else "sequence", 1, not c.attributes.get("batch_first", True))
            if "step" in c.attributes:
                return Layout("tokens" if tokens else "sequence", 1)
            for name in ("kernel", "spatial", "size", "spatial_stride"):
                if isinstance(c.attributes.get(name), (list, tuple)) and not tokens:
                    return Layout("image", len(c.attributes[name]))
            if c.target not in seen:
                seen.add(c.target)
                queue.append(c.target)
        queue.pop(0)
    if tokens:
        return Layout("tokens", 1)
    return Layout("vector" if spec.label[spec.group[group].label].kind == "input" else "flat", 0)


def _is_attended(spec: WeightSpec, target: str) -> bool:
    """Whether the memory that enters a group is that of an attention, hence a sequence."""
    return any(c.kind == "attention" for c in spec.incoming(target))
