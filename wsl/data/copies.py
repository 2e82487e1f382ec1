"""Identical networks in two splits: found by a hash of every row, cheap enough for every opening of a zoo."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from wsl.data.counter import split_mix
from wsl.run_folder import RunFolderError, write_bytes
from wsl.zoo import Zoo, ZooError
from wsl.zoo.layout import BLOCK_BYTES

REMEMBERED_BYTES = 2**26  # zoos from this size on are hashed once, and the hashes kept


def check_no_copies(zoo: Zoo, rows: Mapping[str, np.ndarray]) -> None:
    """Raises :class:`ZooError` if a row is identical to one of another split, naming both."""
    index = np.concatenate(list(rows.values()))
    split = np.repeat(np.arange(len(rows)), [len(part) for part in rows.values()])
    hashes = row_hashes(zoo)[index]
    order = np.lexsort((split, hashes))
    same = (np.diff(hashes[order]) == 0) & (np.diff(split[order]) != 0)
    names = list(rows)
    for place in np.flatnonzero(same):
        one, other = order[place], order[place + 1]
        a, b = (zoo.read_mixed(int(index[i]), int(index[i]) + 1) for i in (one, other))
        if a[2][0] == b[2][0] and a[0].tobytes() == b[0].tobytes():
            raise ZooError(
                f"{zoo.path}: rows {index[one]} ({names[split[one]]}) and {index[other]} ({names[split[other]]}) are "
                "identical, so the test would reward memory; remove one, or set data.copies=allow"
            )


def row_hashes(zoo: Zoo) -> np.ndarray:
    """``[rows]`` uint64, equal for equal rows of one architecture; those of a large zoo are kept on disk.

    The sum of the values' bits times odd multipliers, one for each position, modulo 2⁶⁴: different rows collide with
    a probability of about 2⁻⁶⁴, and :func:`check_no_copies` compares the rows themselves.
    """
    kept = _cache() / f"rows_{zoo.digest}.npy"
    large = 4 * int(zoo.row_ptr[-1]) >= REMEMBERED_BYTES
    if large and (found := _read(kept, len(zoo))) is not None:
        return found
    console = Console(stderr=True)
    multipliers = _multipliers(int(np.diff(zoo.row_ptr).max()))
    parts = []
    per_block = BLOCK_BYTES // 4
    first = np.unique(np.searchsorted(zoo.row_ptr, np.arange(0, zoo.row_ptr[-1], per_block), side="left"))
    blocks = list(zip(first.tolist(), [*first[1:].tolist(), len(zoo)], strict=True))
    for start, stop in track(blocks, "looking for copies", transient=True, disable=not large, console=console):
        values, row_ptr, spec_ids = zoo.read_mixed(start, stop)
        bits = values.view(np.uint32).astype(np.uint64)
        position = np.arange(len(bits)) - np.repeat(row_ptr[:-1], np.diff(row_ptr))
        of_spec = np.uint64(0x9E3779B97F4A7C15) * spec_ids.astype(np.uint64)
        parts.append(np.add.reduceat(bits * multipliers[position], row_ptr[:-1]) ^ of_spec)
    hashes = np.concatenate(parts)
    if large:
        _write(kept, hashes)
    return hashes


def _multipliers(count: int) -> np.ndarray:
    drawn = split_mix(torch.zeros((), dtype=torch.int64), torch.arange(count)).numpy().view(np.uint64)
    return drawn | np.uint64(1)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wsl"


def _read(path: Path, rows: int) -> np.ndarray | None:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # absent or cut short: hashed again
    return found if found.dtype == np.uint64 and found.shape == (rows,) else None


def _write(path: Path, hashes: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, hashes)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, buffer.getvalue())
    except (OSError, RunFolderError):
        return  # a home that cannot be written to costs time only
