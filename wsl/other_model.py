"""What to say of tensors that belong to another model than the one that is to take them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from wsl.errors import UserError

SHOWN = 6  # tensors in a message


class OtherModelError(UserError, RuntimeError):
    """Stored tensors are those of another model; the message names the tensors, and what both sides have."""


def check_types(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors of another number type: torch would convert them without a word.

    Raises:
        OtherModelError: naming them.
    """
    types = {name: getattr(found[name], "dtype", None) for name in expected if name in found}
    other = [name for name, kind in types.items() if kind != expected[name].dtype]
    if other:
        raise OtherModelError(f"{where} holds numbers of another type:\n{differences(found, expected, other)}")


def differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], names: list[str] | None = None) -> str:
    """A line for each tensor that only one side has, or that differs in shape or type; empty if none does."""
    names = sorted(found.keys() | expected.keys()) if names is None else names
    sides = {name: (_described(found.get(name)), _described(expected.get(name))) for name in names}
    lines = [f"  {name}: there {there}, in this model {here}" for name, (there, here) in sides.items() if there != here]
    more = [f"  … and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(lines[:SHOWN] + more)


def _described(value: Tensor | None) -> str:
    if value is None:
        return "absent"
    if not isinstance(value, Tensor):  # of a file, anything can be
        return f"no tensor but {type(value).__name__}"
    return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
