"""The specs of a mixed zoo: what an encoder that reads networks of many architectures is built for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from wsl.spec import SpecError, WeightSpec

FORMAT = "spec-family"


@dataclass(frozen=True)
class SpecFamily:
    """Distinct specs, in the order of their zoo; an encoder's shared parameters are sized by all of them.

    Raises:
        SpecError: if there is none, or one occurs twice.
    """

    specs: tuple[WeightSpec, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "specs", tuple(self.specs))
        if not self.specs or len(set(self.specs)) != len(self.specs):
            raise SpecError(f"a family is made of distinct specs, at least one; got {len(self.specs)}")

    def __iter__(self) -> Iterator[WeightSpec]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __contains__(self, spec: object) -> bool:
        return spec in self._known

    @cached_property
    def _known(self) -> frozenset[WeightSpec]:
        return frozenset(self.specs)

    def __repr__(self) -> str:
        sizes = [spec.numel for spec in self.specs]
        return f"SpecFamily({len(self)} specs of {min(sizes)} to {max(sizes)} parameters)"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"format": FORMAT, "specs": [spec.to_dict() for spec in self.specs]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SpecFamily:
        """Inverse of :meth:`to_dict`.

        Raises:
            SpecError: on anything else.
        """
        if data.get("format") != FORMAT or set(data) != {"format", "specs"} or not isinstance(data["specs"], list):
            raise SpecError(f"not a family of specs: format {data.get('format')!r}, keys {sorted(data)}")
        return cls(tuple(WeightSpec.from_dict(spec) for spec in data["specs"]))


def specs_of(spec: WeightSpec | SpecFamily) -> tuple[WeightSpec, ...]:
    """The specs that an encoder is built for, one or many."""
    return (spec,) if isinstance(spec, WeightSpec) else spec.specs
