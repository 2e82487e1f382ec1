"""Bring a source into a zoo file: look at every network, decide on the faulty ones, then stream the others.

Networks are read twice and held one block at a time, so memory does not grow with the source.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

import wsl
from wsl.spec import WeightSpec
from wsl.zoo.build.work_folder import WorkFolder
from wsl.zoo.importers.source import Array, FaultyNetworkError, Network, Source
from wsl.zoo.layout import ZooError, check_splits, straddling_runs
from wsl.zoo.temporary import refuse_existing
from wsl.zoo.verify import allowed_range
from wsl.zoo.writer import ZooWriter

BLOCK_VALUES = 2**20  # values that are held before they are written
NAMED = 10  # faults that a message lists
Progress = Callable[[str, int, int], None]  # what is done, networks so far, networks in all


@dataclass(frozen=True)
class Policies:
    """What is done about faults.

    Attributes:
        faulty: networks that are damaged, not finite, of a wrong shape, without a usable label, or missing: ``refuse``
            the import and name them, or ``quarantine``: leave them out and list them in the recipe.
        duplicates: networks equal to an earlier one: the same, or ``keep`` them.
        overwrite: replace a file that is there.
    """

    faulty: Literal["refuse", "quarantine"] = "refuse"
    duplicates: Literal["refuse", "quarantine", "keep"] = "refuse"
    overwrite: bool = False


@dataclass(frozen=True)
class Fault:
    """Why a network cannot be used; ``kind`` in two words, for counting."""

    name: str
    kind: str
    reason: str
    number: int = -1


@dataclass
class _Seen:
    """What the first pass found of each network."""

    spec_ids: Array
    keys: list[bytes]
    columns: dict[str, list[Any]]
    specs: list[WeightSpec] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    repeated: int = 0


def import_zoo(
    source: Source,
    out: Path,
    options: Mapping[str, Any],
    policies: Policies | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Path:
    """Write the zoo file ``out``; return its path.

    Args:
        options: how the source was opened (format, name, choices), for the recipe.
        progress: called after every network of each of the two passes.

    Raises:
        ZooError: if networks are faulty and that is refused, splits leak, another process writes the same file, the
            disk is full, or the source changes meanwhile. Nothing is left behind, and a file that was there stays.
    """
    policies = policies or Policies()
    refuse_existing(out, policies.overwrite)
    if not len(source):
        raise ZooError(f"{out}: the source holds no network")
    splits = {name: index for name, index in source.splits.items() if len(index)}
    check_splits(splits, len(source))
    for run, (a, b) in straddling_runs(source.run_ids, splits).items():
        raise ZooError(f"{source.names[a]} and {source.names[b]} are of one run ({run}) and in two splits")
    description = {"import": dict(options), "policies": {"faulty": policies.faulty, "duplicates": policies.duplicates}}
    with WorkFolder(out, description) as folder:
        try:
            refuse_existing(out, policies.overwrite)
            seen = _look(source, progress)
            kept = _decide(source, seen, policies, out)
            _write(source, seen, kept, out, description, policies, progress)
        finally:
            folder.remove()
    return out


# -- looking ----------------------------------------------------------------------------------------------------------


def _look(source: Source, progress: Progress) -> _Seen:
    seen = _Seen(np.full(len(source), -1, dtype=np.int64), [b""] * len(source), {})
    seen.faults += _of_tables(source)
    numbers: dict[WeightSpec, int] = {}
    first: dict[bytes, int] = {}
    for number in range(len(source)):
        try:
            network = _checked(source.read(number))
        except FaultyNetworkError as error:
            reason = str(error).replace(f"{source.root}/", "")
            seen.faults.append(Fault(source.names[number], "damaged or unfit", reason, number))
        else:
            if network.spec not in numbers:
                numbers[network.spec] = len(seen.specs)
                seen.specs.append(network.spec)
            seen.spec_ids[number] = numbers[network.spec]
            for name, value in network.columns.items():
                seen.columns.setdefault(name, [None] * len(source))[number] = value
            seen.keys[number] = _key(network)
            if not np.isfinite(network.values).all():
                seen.faults.append(Fault(source.names[number], "not finite", _not_finite(network), number))
            elif (earlier := first.setdefault(seen.keys[number], number)) != number:
                reason = f"the same weights as {source.names[earlier]}"
                seen.faults.append(Fault(source.names[number], "duplicate", reason, number))
        progress("checking", number + 1, len(source))
    return seen


def _of_tables(source: Source) -> list[Fault]:
    """What is known before any file is read."""
    unfit = [Fault(name, "without a usable label", reason) for name, reason in source.unfit.items()]
    return [Fault(name, "missing", "listed, but not in the source") for name in source.missing] + unfit


def _checked(network: Network) -> Network:
    if network.values.shape != (network.spec.numel,):
        raise FaultyNetworkError(f"has {network.values.shape} values, its spec {network.spec.numel}")
    return network


def _key(network: Network) -> bytes:
    return hashlib.blake2b(network.values.tobytes() + network.spec.digest.encode(), digest_size=16).digest()


def _not_finite(network: Network) -> str:
    position = int(np.flatnonzero(~np.isfinite(network.values))[0])
    owner = next(s for s in reversed(network.spec.stored) if s.offset <= position)
    return f"{owner.name!r} holds {network.values[position]}"


# -- deciding ---------------------------------------------------------------------------------------------------------


def _decide(source: Source, seen: _Seen, policies: Policies, out: Path) -> Array:
    """Which networks are written, bool ``[n]``; refuses faults that the policies do not allow."""
    seen.faults += _out_of_range(source, seen)
    repeated = [fault for fault in seen.faults if fault.kind == "duplicate"]
    others = [fault for fault in seen.faults if fault.kind != "duplicate"]
    total = len(source) + len(source.unfit)
    if others and policies.faulty == "refuse":
        raise ZooError(_listed(others, total, "--faulty quarantine leaves them out, and lists them in the file"))
    if repeated and policies.duplicates == "refuse":
        fix = "--duplicates quarantine leaves them out, --duplicates keep takes them"
        raise ZooError(_listed(repeated, total, fix))
    seen.repeated = len(repeated)
    if policies.duplicates == "keep":
        seen.faults = others
    kept = np.ones(len(source), dtype=bool)
    kept[[fault.number for fault in seen.faults if fault.number >= 0]] = False
    if not kept.any():
        raise ZooError(f"{out}: not one of {total} networks can be used. " + _listed(seen.faults, total, ""))
    return kept


def _out_of_range(source: Source, seen: _Seen) -> list[Fault]:
    """Labels outside their range, of networks with no other fault."""
    faulty = {fault.number for fault in seen.faults}
    found = []
    for name, values in (dict(source.columns) | seen.columns).items():
        limits = allowed_range(name, source.recipe)
        if limits is None:
            continue
        for number in (n for n in range(len(source)) if n not in faulty):
            value = values[number]
            number_like = isinstance(value, (int, float, np.integer, np.floating))
            if not number_like or not limits[0] <= value <= limits[1]:
                allowed = f"{limits[0]:g} to {limits[1]:g}"
                found.append(Fault(source.names[number], "label out of range", f"{name} is {value}: {allowed}", number))
                faulty.add(number)
    return found


def _listed(faults: list[Fault], total: int, fix: str) -> str:
    counts = ", ".join(f"{count} {kind}" for kind, count in Counter(fault.kind for fault in faults).items())
    lines = "".join(f"\n  {fault.name}: {fault.reason}" for fault in faults[:NAMED])
    more = f"\n  and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    return f"of {total} networks {counts}:{lines}{more}" + (
        f"\nMend the source or download it again; or {fix}" if fix else ""
    )


# -- writing ----------------------------------------------------------------------------------------------------------


def _write(
    source: Source,
    seen: _Seen,
    kept: Array,
    out: Path,
    description: Mapping[str, Any],
    policies: Policies,
    progress: Progress,
) -> None:
    numbers = np.flatnonzero(kept)
    used, spec_ids = np.unique(seen.spec_ids[numbers], return_inverse=True)
    specs = [seen.specs[number] for number in used.tolist()]
    recipe = {**source.recipe, **description, "left_out": _told(seen, kept), "duplicates": seen.repeated}
    recipe |= {"rows_sha256": _digest(seen, numbers), "wsl": wsl.__version__}
    with ZooWriter(out, specs, len(numbers), recipe, policies.overwrite, spec_ids) as writer:
        held: list[Array] = []
        start = count = 0
        for row, number in enumerate(numbers.tolist()):
            try:
                network = _checked(source.read(number))
            except FaultyNetworkError as error:
                raise ZooError(f"{source.names[number]}: changed while it was imported ({error})") from error
            if _key(network) != seen.keys[number]:
                raise ZooError(f"{source.names[number]}: changed while it was imported; import it again")
            held.append(network.values)
            count += len(network.values)
            if count >= BLOCK_VALUES or row + 1 == len(numbers):
                _flush(writer, start, held, len(specs) == 1)
                start, count, held = row + 1, 0, []
            progress("writing", row + 1, len(numbers))
        writer.set_columns({name: np.asarray(values)[numbers] for name, values in source.columns.items()})
        writer.set_columns({n: np.array([values[k] for k in numbers.tolist()]) for n, values in seen.columns.items()})
        writer.set_run_ids(source.run_ids[numbers])
        place = kept.cumsum() - 1
        splits = {name: place[index[kept[index]]] for name, index in source.splits.items()}
        writer.set_splits({name: index for name, index in splits.items() if len(index)})


def _flush(writer: ZooWriter, start: int, held: list[Array], single: bool) -> None:
    if single:
        writer.write(start, np.stack(held))
    else:
        writer.write(start, np.concatenate(held), [len(row) for row in held])


def _told(seen: _Seen, kept: Array) -> list[dict[str, str]]:
    """Networks that were left out, with the reason."""
    gone = [fault for fault in seen.faults if fault.number < 0 or not kept[fault.number]]
    return [{"name": fault.name, "kind": fault.kind, "reason": fault.reason} for fault in gone]


def _digest(seen: _Seen, numbers: Array) -> str:
    """SHA-256 over the digests of the rows, in order: that of the source's content."""
    return hashlib.sha256(b"".join(seen.keys[number] for number in numbers.tolist())).hexdigest()
