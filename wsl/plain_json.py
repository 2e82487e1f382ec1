"""JSON that somebody else has written: what is there, once."""

from __future__ import annotations

import json
from typing import Any


def load(text: str | bytes) -> Any:
    """Lists, dicts, strings, numbers.

    Raises:
        ValueError: for everything that is wrong with the text; also a key that is there twice, of which every reader
            would take the one it likes.
        RecursionError: if it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found
