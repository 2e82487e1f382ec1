"""How features of a weight space are stored between equivariant layers: tensors with equal axis labels side by side.

Axes that nothing permutes are folded into channels. A *slot* is one cell of the fixed axes of one tensor; a *bundle*
stacks the slots of all tensors that have the same permuted labels (in any order: a transposed one joins its partner):

    row of the zoo [B, P, C]  ⇄  one tensor [B, n_a, n_b, …, slots·C] per bundle (a, b, …)

so that one operation serves a whole bundle. Axis letters: B networks, P parameters, C feature channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from wsl.nn.unf.partitions import Key
from wsl.spec import VirtualTensor, WeightSpec

#: label → exponent: how scales and signs of neurons act on the entries of a tensor (see :mod:`wsl.nn.monomial`)
Character = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Member:
    """A tensor's place in a bundle: its axes in bundle order, then its fixed axes; slots from ``first`` on.

    Of its ``cells`` slots, those of one input or output neuron lie together: ``ends`` runs of kernel cells.
    """

    tensor: VirtualTensor
    order: tuple[int, ...]
    first: int
    cells: int
    ends: int

    @property
    def slots(self) -> slice:
        return slice(self.first, self.first + self.cells)


@dataclass(frozen=True)
class Bundle:
    """Tensors with equal permuted labels (and of one ``character``, where the layout tells characters apart)."""

    labels: Key
    sizes: tuple[int, ...]
    members: tuple[Member, ...]
    character: Character = ()

    @property
    def slots(self) -> int:
        return sum(member.cells for member in self.members)

    @cached_property
    def cells_of_slot(self) -> np.ndarray:
        """For each slot the number of slots that its tensor has, float64."""
        return np.concatenate([np.full(m.cells, float(m.cells)) for m in self.members])


class Layout:
    """Bundles of a spec, and the way from rows to bundles and back.

    Args:
        spec: the weight space.
        permuted: names of the labels to treat as permuted; default: those that have the symmetry ``permutation``.
            A superset of it adds false symmetries (an NFN of kind NP permutes inputs and outputs, too).
        freeze_single: treat labels with one neuron as fixed, which changes nothing but the number of redundant terms.
        character_of: tensors are bundled only if this says the same of them; default: nothing keeps them apart.
    """

    def __init__(
        self,
        spec: WeightSpec,
        permuted: Collection[str] | None = None,
        freeze_single: bool = True,
        character_of: Callable[[VirtualTensor], Character] = lambda tensor: (),
    ) -> None:
        self.spec = spec
        chosen = {label.name for label in spec.labels_with("permutation")} if permuted is None else set(permuted)
        if unknown := chosen - set(spec.label):
            raise ValueError(f"permuted names unknown labels {sorted(unknown)}; labels: {sorted(spec.label)}")
        self.permuted = frozenset(a for a in chosen if spec.label[a].size > 1 or not freeze_single)
        self.sizes = {label.name: label.size for label in spec.labels}
        by_key: dict[tuple[Key, Character], list[Member]] = {}
        for tensor in spec.tensors:
            axes = sorted(
                (a for a in range(len(tensor.axes)) if tensor.axes[a] in self.permuted), key=lambda a: tensor.axes[a]
            )
            ends = [a for a in range(len(tensor.axes)) if a not in axes and spec.label[tensor.axes[a]].kind != "fixed"]
            fixed = [*ends, *(a for a in range(len(tensor.axes)) if a not in (*axes, *ends))]
            members = by_key.setdefault((tuple(tensor.axes[a] for a in axes), character_of(tensor)), [])
            first = members[-1].slots.stop if members else 0
            sizes = [math.prod(tensor.shape[a] for a in folded) for folded in (fixed, ends)]
            members.append(Member(tensor, (*axes, *fixed), first, *sizes))
        self.bundles = tuple(
            Bundle(key, tuple(self.sizes[a] for a in key), tuple(members), character)
            for (key, character), members in by_key.items()
        )
        self._index = [self._positions(bundle) for bundle in self.bundles]
        self._back = torch.cat(self._index).argsort() if self.bundles else torch.zeros(0)
        self._on_device: dict[torch.device, tuple[list[Tensor], Tensor]] = {}

    def pack(self, values: Tensor) -> list[Tensor]:
        """Rows ``[B, P, C]`` → per bundle ``[B, *sizes, slots·C]``."""
        index, _ = self._indices(values.device)
        batch, channels = values.shape[0], values.shape[2]
        return [
            values.index_select(1, where).reshape(batch, *bundle.sizes, bundle.slots * channels)
            for bundle, where in zip(self.bundles, index, strict=True)
        ]

    def unpack(self, features: list[Tensor], channels: int) -> Tensor:
        """Per bundle ``[B, *sizes, slots·C]`` → rows ``[B, P, C]``."""
        _, back = self._indices(features[0].device)
        batch = features[0].shape[0]
        return torch.cat([f.reshape(batch, -1, channels) for f in features], 1).index_select(1, back)

    def _positions(self, bundle: Bundle) -> Tensor:
        parts = [m.tensor.index().transpose(m.order).reshape(*bundle.sizes, m.cells) for m in bundle.members]
        return torch.from_numpy(np.concatenate(parts, axis=-1).ravel())

    def _indices(self, device: torch.device) -> tuple[list[Tensor], Tensor]:
        if device not in self._on_device:
            self._on_device[device] = ([i.to(device) for i in self._index], self._back.to(device))
        return self._on_device[device]
