"""Walk a zoo file and say what is wrong with which row."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsl.zoo.layout import CHUNK_BYTES, ZooError, straddling_runs
from wsl.zoo.reader import Zoo
from wsl.zoo.rerun import check_execution, check_fit, check_measures, sampled_rows

Array = npt.NDArray[Any]
#: column → lowest and highest value allowed (None: no limit); columns that end in "accuracy" lie in [0, 1]
RANGES: dict[str, tuple[float, float | None]] = {
    "label": (0, None),
    "image_index": (0, None),
    "view": (0, None),
    "fit_mse": (0, None),
    "psnr": (-np.inf, None),
}
WHOLE = ("label", "image_index", "view")  # columns of integers
LARGE_NORM, SMALL_NORM = 100.0, 1e-3  # times the median of the architecture; weight decay shrinks some 100-fold


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: ``failures`` name the rows; ``skipped`` says why it could not be looked at."""

    name: str
    failures: tuple[str, ...] = ()
    skipped: str = ""

    @property
    def status(self) -> str:
        return "FAILED" if self.failures else "skipped" if self.skipped else "ok"


def verify_zoo(
    path: str | os.PathLike[str], sample: int = 64, progress: Callable[[float], None] = lambda fraction: None
) -> list[Check]:
    """All checks of a zoo file; damaged parts do not keep the others from being looked at.

    Args:
        sample: how many networks, evenly spaced, to run and to render again.
        progress: called with the share of the file that has been read, from 0 to 1.
    """
    try:
        with Zoo(path) as zoo:
            return [Check("opens safely"), *_checks(zoo, sample, progress)]
    except ZooError as error:
        return [Check("opens safely", (str(error),))]


def _checks(zoo: Zoo, sample: int, progress: Callable[[float], None]) -> Iterator[Check]:
    total = 4 * int(zoo.row_ptr[-1])
    walk = walk_rows(zoo, lambda n: progress(n / total / 2))
    damaged = list(walk.damage)
    columns: dict[str, Array] = {}
    for name in zoo.columns:
        try:
            columns[name] = zoo.column(name)
        except ZooError as error:
            damaged.append(str(error))
    try:
        images = zoo.images
    except ZooError as error:
        images = None
        damaged.append(str(error))
    yield Check("checksums", tuple(damaged))
    yield _digest(zoo, bool(damaged), total, progress)
    yield Check("finite weights", rows_of("NaN or infinity in", np.flatnonzero(walk.readable & ~walk.finite)))
    yield _norms(zoo, walk)
    yield _duplicates(zoo, walk)
    yield _straddling("runs within one split", "run", zoo.run_ids, zoo)
    if "image_index" in columns:
        yield _straddling("images within one split", "image", columns["image_index"], zoo)
    yield from (_column(name, values, zoo, images) for name, values in columns.items())
    rows = sampled_rows(np.flatnonzero(walk.readable & walk.finite), sample)
    outcomes = {"runs": check_execution(zoo, rows), "renders": check_fit(zoo, rows, columns, images)}
    if (scores := check_measures(zoo, rows, columns)) is not None:
        outcomes["scores"] = scores
    for what, (failures, skipped) in outcomes.items():
        yield Check(f"{what} again ({len(rows)} rows)", _shortened(failures), skipped)


@dataclass
class Walk:
    """What one pass over the weights found, per row."""

    readable: Array
    finite: Array
    norm: Array
    key: list[bytes]
    damage: list[str]


def walk_rows(zoo: Zoo, advance: Callable[[int], None]) -> Walk:
    """Read every row once; ``advance`` is told the bytes that have been read."""
    n = len(zoo)
    walk = Walk(np.zeros(n, bool), np.ones(n, bool), np.full(n, np.nan), [b""] * n, [])
    per_block = CHUNK_BYTES // 4
    first = np.unique(np.searchsorted(zoo.row_ptr, np.arange(0, zoo.row_ptr[-1], per_block), side="left"))
    for start, stop in zip(first.tolist(), [*first[1:].tolist(), n], strict=True):
        for low, high, values in _readable_parts(zoo, start, stop, walk.damage):
            row_ptr = zoo.row_ptr[low : high + 1] - zoo.row_ptr[low]
            walk.readable[low:high] = True
            walk.finite[low:high] = np.logical_and.reduceat(np.isfinite(values), row_ptr[:-1])
            with np.errstate(invalid="ignore", over="ignore"):
                walk.norm[low:high] = np.sqrt(np.add.reduceat(values.astype(np.float64) ** 2, row_ptr[:-1]))
            for row, begin, end in zip(range(low, high), row_ptr[:-1].tolist(), row_ptr[1:].tolist(), strict=True):
                walk.key[row] = hashlib.blake2b(values[begin:end].tobytes(), digest_size=16).digest()
        advance(4 * int(zoo.row_ptr[stop]))
    return walk


def _readable_parts(zoo: Zoo, start: int, stop: int, damage: list[str]) -> Iterator[tuple[int, int, Array]]:
    """The block, or what of it can be read: halved down to the damaged rows."""
    try:
        yield start, stop, zoo.read_mixed(start, stop)[0]
    except ZooError as error:
        if str(error) not in damage:
            damage.append(str(error))
        if stop - start > 1:
            middle = (start + stop) // 2
            yield from _readable_parts(zoo, start, middle, damage)
            yield from _readable_parts(zoo, middle, stop, damage)


def rows_of(what: str, rows: Sequence[int] | Array) -> tuple[str, ...]:
    """One line that names the rows, the first ten of them; nothing if there are none."""
    if not len(rows):
        return ()
    shown = ", ".join(str(int(row)) for row in rows[:10]) + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")
    return (f"{what} row{'s' if len(rows) > 1 else ''} {shown}",)


def _digest(zoo: Zoo, damaged: bool, total: int, progress: Callable[[float], None]) -> Check:
    if damaged:
        return Check("digest of the content", skipped="parts of the file cannot be read")
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress(min(1.0, 0.5 + done / total / 2))

    found = zoo.content_digest(advance)
    if found == zoo.digest:
        return Check("digest of the content")
    return Check(
        "digest of the content", (f"stored {zoo.digest[:16]}…, recomputed {found[:16]}…: content was changed",)
    )


def _norms(zoo: Zoo, walk: Walk) -> Check:
    failures: tuple[str, ...] = ()
    usable = walk.readable & walk.finite
    absurd = np.zeros(len(zoo), bool)
    for number in range(len(zoo.specs)):
        mine = usable & (zoo.spec_ids == number)
        if mine.any():
            median = np.median(walk.norm[mine])
            absurd |= mine & ((walk.norm > LARGE_NORM * median) | (walk.norm < SMALL_NORM * median)) & (walk.norm > 0)
    zero = usable & (walk.norm == 0)
    failures += rows_of("nothing but zeros in", np.flatnonzero(zero))
    failures += rows_of(
        f"norm above {LARGE_NORM:g} or below {SMALL_NORM:g} times the median in", np.flatnonzero(absurd)
    )
    return Check("norms", failures)


def _split_of(zoo: Zoo) -> dict[int, str]:
    """Row → its split, in the order of the rows."""
    return dict(sorted((row, name) for name, index in zoo.splits.items() for row in index.tolist()))


def _duplicates(zoo: Zoo, walk: Walk) -> Check:
    split_of, first, failures = _split_of(zoo), dict[tuple[int, bytes], int](), []
    for row, name in split_of.items():
        if walk.readable[row]:
            earlier = first.setdefault((int(zoo.spec_ids[row]), walk.key[row]), row)
            if split_of[earlier] != name:
                failures.append(f"rows {earlier} ({split_of[earlier]}) and {row} ({name}) are identical")
    return Check("no copies across splits", _shortened(failures))


def _straddling(title: str, kind: str, owner: Array, zoo: Zoo) -> Check:
    split_of, failures = _split_of(zoo), []
    for number, rows in straddling_runs(owner, zoo.splits).items():
        a, b = sorted(rows)
        failures.append(f"{kind} {number}: row {a} is in {split_of[a]}, row {b} in {split_of[b]}")
    return Check(title, _shortened(failures))


def _shortened(failures: Sequence[str]) -> tuple[str, ...]:
    return (*failures[:10], f"and {len(failures) - 10} more") if len(failures) > 10 else tuple(failures)


def allowed_range(name: str, recipe: Mapping[str, Any]) -> tuple[float, float] | None:
    """Lowest and highest value that a column may hold; None if anything goes."""
    if name not in RANGES and not name.endswith("accuracy"):
        return None
    low, high = RANGES.get(name, (0.0, 1.0))
    classes = recipe.get("classes")
    if name == "label" and isinstance(classes, int):
        high = classes - 1
    return low, np.inf if high is None else high


def _column(name: str, values: Array, zoo: Zoo, images: Array | None) -> Check:
    """Type and range of a column."""
    title = f"column {name}"
    if values.dtype.kind == "U":
        return Check(title, (f"is text, expected numbers: {values[0]!r} in row 0",) if name in RANGES else ())
    if name in WHOLE and values.dtype.kind not in "iu":
        return Check(title, (f"is {values.dtype}, expected integers",))
    limits = allowed_range(name, zoo.recipe)
    if limits is None:  # metadata: NaN is a value that is not known
        return Check(title, rows_of("infinity in", np.flatnonzero(np.isinf(values))))
    low, high = limits
    if name == "image_index" and images is not None:
        high = len(images) - 1
    failures = rows_of("NaN or infinity in", np.flatnonzero(~np.isfinite(values)))
    outside = (values < low) | (values > high)
    allowed = f"at least {low:g}" if np.isinf(high) else f"{low:g} to {high:g}"
    return Check(title, failures + rows_of(f"outside {allowed}:", np.flatnonzero(outside & np.isfinite(values))))
