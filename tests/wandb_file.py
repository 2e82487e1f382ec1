"""Reads what an offline W&B run leaves, as ``wandb sync`` does: a LevelDB log of protocol-buffer records.

After seven bytes of header come blocks of 32 KiB. In a block: checksum (CRC-32 of type and content), length, type
(1: a whole record, 2, 3, 4: its first, middle and last part), content; fewer than seven bytes at its end are padding.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

HEADER, BLOCK = 7, 32 * 1024
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    """Every record, its checksums verified."""
    data = path.read_bytes()
    assert data[:4] == b":W&B", data[:HEADER]
    place, parts = HEADER, b""
    while place < len(data):
        room = BLOCK - place % BLOCK
        if room < HEADER:
            place += room
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, place)
        content = data[place + HEADER : place + HEADER + length]
        assert zlib.crc32(content, zlib.crc32(bytes([kind]))) == checksum, f"{path} is damaged at byte {place}"
        assert (kind in (WHOLE, FIRST)) == (not parts), f"{path}: parts of records in disorder at byte {place}"
        parts += content
        place += HEADER + length
        if kind in (WHOLE, LAST):
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


@dataclass
class Run:
    """What a server would know of the run after a sync of this file."""

    identity: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def read(path: Path) -> Run:
    run = Run()
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.identity = record.run.run_id
            run.config |= _values(record.run.config.update)
        elif kind == "config":
            run.config |= _values(record.config.update)
        elif kind == "history":
            run.history.append(_values(record.history.item))
        elif kind == "summary":
            run.summary |= _values(record.summary.update)
        elif kind == "artifact":
            run.artifacts[record.artifact.type] = record.artifact
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _values(items: Any) -> dict[str, Any]:
    """Of a table or an image: KEY/path, KEY/_type and so on."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
