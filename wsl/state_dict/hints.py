"""What a user may say about a checkpoint that names and shapes do not: a mapping, or a small YAML file.

    activation: relu              # after every layer but the last; `unknown` (the default) claims permutations only
    parameters: {omega: 30.0}     # of the activation
    output_offset: 0.5            # constant added to the outputs
    layout: out_in                # or in_out: which axis of a matrix comes first
    order: [conv1, conv2, fc]     # of the layers, by prefix
    layers:                       # of single layers
      conv1: {stride: 2, padding: 1, activation: tanh}
      fc: {spatial: [7, 5]}       # the feature map that it reads flattened
      norm1: {norm: group, groups: 4, eps: 1.0e-5}

or, for what is no chain of layers, every axis by hand (``_…`` labels are never permuted):

    axes:
      encoder.weight: [hidden, _input]
      encoder.bias: [hidden]
    labels:
      hidden: {activation: relu}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from wsl import plain_yaml
from wsl.activations import ACTIVATION_PARAMETERS, SYMMETRIES_OF_ACTIVATION
from wsl.spec import SpecError

LAYER_KEYS = (
    "activation", "parameters", "stride", "padding", "dilation", "spatial", "norm", "eps", "groups",
)  # fmt: skip
LAYOUTS = ("out_in", "in_out")


@dataclass(frozen=True)
class Hints:
    """See the module docstring; everything is optional."""

    activation: str = "unknown"
    parameters: Mapping[str, float] = field(default_factory=dict)
    output_offset: float = 0.0
    layout: str | None = None
    order: Sequence[str] | None = None
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    axes: Mapping[str, Sequence[str]] | None = None
    labels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, source: Hints | Mapping[str, Any] | str | Path | None) -> Hints:
        """Hints from a mapping or a YAML file.

        Raises:
            SpecError: on an unknown key, activation or layout; the message names the file and the key.
        """
        if source is None or isinstance(source, Hints):
            return source or cls()
        where = "hints"
        if isinstance(source, (str, Path)):
            where = str(source)
            try:
                source = plain_yaml.load(Path(source).read_bytes())
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                raise SpecError(f"{where} cannot be read: {error}") from error
        if not isinstance(source, Mapping):
            raise SpecError(f"{where}: expected a mapping of {[f.name for f in fields(cls)]}, got {source!r}")
        _known(where, source, [f.name for f in fields(cls)])
        hints = cls(**source)
        _check(where, hints)
        return hints

    def of(self, layer: str, key: str, default: Any = None) -> Any:
        """What is said of a single layer, else of all."""
        found = self.layers.get(layer, {})
        if key == "parameters" and "activation" in found:
            return found.get("parameters", {})
        return found.get(key, getattr(self, key, default))


def _known(where: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    if unknown := [key for key in given if key not in known]:
        raise SpecError(f"{where}: unknown keys {unknown}; known: {list(known)}")


def _check(where: str, hints: Hints) -> None:
    for name in ("parameters", "layers", "labels"):
        if not isinstance(getattr(hints, name), Mapping):
            raise SpecError(f"{where}: {name} should be a mapping, is {getattr(hints, name)!r}")
    if hints.axes is not None and not isinstance(hints.axes, Mapping):
        raise SpecError(f"{where}: axes should be a mapping, is {hints.axes!r}")
    if hints.layout not in (None, *LAYOUTS):
        raise SpecError(f"{where}: layout {hints.layout!r} is not one of {LAYOUTS}")
    _check_activation(where, hints.activation, hints.parameters)
    for kind, entries, keys in (
        ("layers", hints.layers, LAYER_KEYS),
        ("labels", hints.labels, ("activation", "parameters", "kind")),
    ):
        for name, entry in entries.items():
            if not isinstance(entry, Mapping):
                raise SpecError(f"{where}: {kind}.{name} should be a mapping, is {entry!r}")
            _known(f"{where}: {kind}.{name}", entry, keys)
            if "activation" in entry:
                _check_activation(f"{where}: {kind}.{name}", entry["activation"], entry.get("parameters", {}))


def _check_activation(where: str, activation: str, parameters: Mapping[str, float]) -> None:
    if activation not in SYMMETRIES_OF_ACTIVATION:
        raise SpecError(f"{where}: unknown activation {activation!r}; known: {sorted(SYMMETRIES_OF_ACTIVATION)}")
    _known(f"{where}: parameters of {activation}", parameters, list(ACTIVATION_PARAMETERS.get(activation, {})))


@dataclass
class Assumptions:
    """What was not in the checkpoint and had to be assumed, one sentence each."""

    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(f"- {note}" for note in self.notes)
