"""A spec from a checkpoint alone: names and shapes, no code.

What names and shapes determine is inferred, what they do not is assumed aloud or refused with the reason. With the
module at hand, trace it instead: tracing knows, this guesses, and its specs say ``verified: false``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.spec import SpecError, StoredTensor, WeightSpec
from wsl.state_dict.by_hand import spec_by_hand
from wsl.state_dict.chain import chain_spec
from wsl.state_dict.files import checkpoints_in, read_state_dict
from wsl.state_dict.hints import Assumptions, Hints
from wsl.state_dict.layers import find_layers

__all__ = ["Architectures", "Assumptions", "Hints", "from_folder", "from_state_dict", "read_state_dict"]


def from_state_dict(
    state: Mapping[str, Tensor], hints: Hints | Mapping[str, Any] | str | Path | None = None
) -> tuple[WeightSpec, Assumptions]:
    """The spec of a chain of linear, conv and norm layers, and what had to be assumed.

    Args:
        state: names and tensors of a checkpoint (:func:`read_state_dict`).
        hints: what the user knows, as a mapping or a YAML file; see :mod:`wsl.state_dict.hints`.

    Raises:
        SpecError: if the tensors are no such chain, or something needed cannot be known; the message names the tensor,
            the reason and the hint that helps.
    """
    hints, told = Hints.read(hints), Assumptions()
    stored, offset = [], 0
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            if _counts_batches(name):
                told.notes.append(f"{name!r} counts batches and is left out")
                continue
            raise SpecError(f"{name!r} holds {tensor.dtype}, not floating point numbers, which are what neurons have")
        if not tensor.isfinite().all():
            raise SpecError(f"{name!r} holds values that are not finite")
        stored.append(StoredTensor(name, tuple(tensor.shape), offset))
        offset += tensor.numel()
    if hints.axes is not None:
        return spec_by_hand(stored, hints, told), told
    layers = find_layers(stored, hints, told)
    if unknown := sorted(set(hints.layers) - {layer.name for layer in layers}):
        raise SpecError(f"hints: layers {unknown} are not in the checkpoint; it has {[x.name for x in layers]}")
    return chain_spec(stored, layers, hints, told), told


def _counts_batches(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


class Architectures:
    """Specs of many checkpoints: one for all that hold the same names and shapes, which files order differently.

    Attributes:
        told: spec → what was assumed of it.
    """

    def __init__(self, hints: Hints | Mapping[str, Any] | str | Path | None = None) -> None:
        self._hints = Hints.read(hints)
        self._specs: dict[tuple[tuple[str, tuple[int, ...]], ...], WeightSpec] = {}
        self.told: dict[WeightSpec, Assumptions] = {}

    def spec(self, state: Mapping[str, Tensor]) -> WeightSpec:
        """That of a checkpoint, whatever its values are.

        Raises:
            SpecError: as :func:`from_state_dict`.
        """
        shapes = tuple(sorted((name, tuple(t.shape)) for name, t in state.items() if not _counts_batches(name)))
        if shapes not in self._specs:
            spec, assumptions = from_state_dict({n: t.new_zeros(t.shape) for n, t in state.items()}, self._hints)
            self._specs[shapes] = spec
            self.told[spec] = assumptions
        return self._specs[shapes]


def from_folder(
    folder: str | Path,
    hints: Hints | Mapping[str, Any] | str | Path | None = None,
    left_out: dict[Path, str] | None = None,
) -> tuple[MixedWeightBatch, list[Path], dict[WeightSpec, Assumptions]]:
    """All checkpoints of a folder: one batch in float32, paths in the same order, and what was assumed of each spec.

    Args:
        left_out: files that cannot be used are put in here with the reason, and the others are taken; None: the first
            such file is an error.

    Raises:
        SpecError: as :func:`read_state_dict` and :func:`from_state_dict`, or if no file can be used; the message names
            the file.
    """
    architectures = Architectures(hints)
    batches, paths = [], []
    for path in checkpoints_in(folder):
        try:
            batches.append(_row(path, architectures))
            paths.append(path)
        except SpecError as error:
            if left_out is None:
                raise
            left_out[path] = str(error)
    if not paths:
        reasons = "".join(f"\n  {reason}" for reason in list((left_out or {}).values())[:10])
        raise SpecError(f"{folder}: not one of {len(left_out or {})} checkpoints can be used:{reasons}")
    used = {batch.spec for batch in batches}
    told = {spec: assumptions for spec, assumptions in architectures.told.items() if spec in used}
    return MixedWeightBatch.collate(batches), paths, told


def _row(path: Path, architectures: Architectures) -> WeightBatch:
    """One checkpoint as a batch in float32."""
    state = {name: t.float() if t.is_floating_point() else t for name, t in read_state_dict(path).items()}
    try:
        spec = architectures.spec(state)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error
    if broken := [n for n, t in state.items() if not torch.isfinite(t).all()]:
        raise SpecError(f"{path}: {broken[0]!r} holds values that are not finite")
    return WeightBatch.from_state_dicts(spec, [state])
