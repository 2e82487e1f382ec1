"""Options of attention encoders that can contradict each other, refused in the words of the config."""

from __future__ import annotations

from collections.abc import Sequence

from wsl.errors import UserError
from wsl.nn.gatv2.balance import balance_
from wsl.nn.gatv2_conv import GATv2Conv


class AttentionOptionError(UserError, ValueError):
    """Options do not go together; the message names them and the fix."""


def per_head(width: int, heads: int, name: str) -> int:
    """Channels per head of ``width`` features in all, which the config calls ``name``."""
    if width % heads:
        raise AttentionOptionError(
            f"encoder.heads={heads} cannot share encoder.{name}={width}; make {name} a multiple of heads"
        )
    return width // heads


def initialise_balanced(layers: Sequence[GATv2Conv]) -> None:
    """What the option ``init=balanced`` asks for."""
    try:
        balance_(layers)
    except ValueError as error:
        raise AttentionOptionError(f"encoder.init=balanced: {error}; set encoder.init=glorot to do without") from None
