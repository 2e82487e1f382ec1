"""State dicts of SIRENs as networks of one spec."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsl.spec import SpecError, WeightSpec
from wsl.state_dict import Hints, from_state_dict
from wsl.verify import verify
from wsl.zoo.importers.source import FaultyNetworkError, Network, load, row_of, state_of
from wsl.zoo.layout import ZooError

VOTERS = 5  # files, evenly spaced, whose most common shapes are those of the set


@dataclass
class SirenReader:
    """Reads SIRENs of one set.

    Args:
        paths: of all networks; a few of them say what is usual.
        omega: ω of every sine layer. output_offset: added to the output.
        swap_inputs: exchange the two input columns of the first layer, for networks that read (row, column): the zoo
            file's INRs read (x, y). Exact, and its own inverse.
    """

    paths: Sequence[Path]
    omega: float
    output_offset: float
    swap_inputs: bool = False

    def network(self, path: Path, found: Any, columns: Mapping[str, Any] | None = None) -> Network:
        """The network in a loaded file.

        Raises:
            FaultyNetworkError: if its tensors are not those of the set. ZooError: if the set is none of SIRENs.
        """
        state = state_of(path, found)
        try:
            values = row_of(self.spec, state)
        except FaultyNetworkError as error:
            raise FaultyNetworkError(f"{path}: {error}") from error
        if self.swap_inputs:
            first = self.spec.stored[0]
            values[: math.prod(first.shape)] = values[: math.prod(first.shape)].reshape(first.shape)[:, ::-1].ravel()
        return Network(self.spec, values, columns or {})

    @cached_property
    def spec(self) -> WeightSpec:
        """Verified: the symmetries of a sine were checked on this architecture."""
        votes: Counter[tuple[tuple[str, tuple[int, ...]], ...]] = Counter()
        for number in np.unique(np.linspace(0, len(self.paths) - 1, VOTERS).round().astype(int)):
            with contextlib.suppress(FaultyNetworkError):  # it is named when its turn comes
                state = state_of(self.paths[number], _without_label(load(self.paths[number])))
                votes[tuple((name, tuple(tensor.shape)) for name, tensor in state.items())] += 1
        if not votes:
            raise ZooError(f"{self.paths[0]} and {VOTERS - 1} more files cannot be read; download the source again")
        shapes = votes.most_common(1)[0][0]
        hints = Hints("sine", {"omega": self.omega}, self.output_offset, "out_in")
        try:
            spec, _ = from_state_dict({name: torch.zeros(shape) for name, shape in shapes}, hints)
            if spec.stored[0].shape[1:] != (2,):
                raise SpecError(f"{spec.stored[0].name!r} {list(spec.stored[0].shape)} does not read two coordinates")
            return verify(spec)
        except SpecError as error:
            raise ZooError(f"{self.paths[0]}: not the state dict of a SIREN ({error})") from error


def _without_label(found: Any) -> Any:
    return {name: value for name, value in found.items() if name != "label"} if isinstance(found, dict) else found
