"""What all runs of a comparison have in common: finished runs of another protocol or split do not count."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from comparing.outcome import Outcome
from wsl.errors import UserError
from wsl.run_folder import ensure, write_text

Protocol = Mapping[str, object]


def keep_to(folder: Path, asked: Protocol, *, write: bool = True) -> None:
    """Hold what is asked for against the protocol of the runs in a folder; write it down where there is none.

    Raises:
        UserError: if they differ, with every option that does.
    """
    path = folder / "protocol.json"
    if not path.exists() or not _begun(folder):
        if write:
            write_text(ensure(folder) / path.name, json.dumps(asked, indent=1) + "\n")
        return
    try:
        had = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        reason = f"{path} cannot be read ({type(error).__name__}: {error})"
        raise UserError(f"{reason}; remove {folder} to begin the comparison again, or give another --out") from None
    if other := [name for name in asked if had.get(name) != asked[name]]:
        changes = "; ".join(f"{name}: {had.get(name)!r}, now {asked[name]!r}" for name in other)
        raise UserError(f"{folder} holds runs of another protocol ({changes}); give the same options, or another --out")


def _begun(folder: Path) -> bool:
    """Whether there is a run that was measured, or that can be gone on with: who was refused is asked again."""
    outcomes = (Outcome.read(path) for path in folder.glob("*/*/outcome.json"))
    return any(o.result or o.stopped for o in outcomes) or any(folder.glob("*/*/checkpoints/*"))


def of_this_data(folder: Path, digest: str) -> None:
    """Refuse to add to runs on data of another content.

    Raises:
        UserError: with the folder of the first.
    """
    for path in sorted(folder.glob("*/*/outcome.json")):
        result = Outcome.read(path).result
        if result is not None and result.digest not in ("", digest):  # of an older release it is unknown
            raise UserError(
                f"{path.parent} was run on data of another content (digest {result.digest[:12]}…, now {digest[:12]}…); "
                "give another --out, or remove what was run on the old data"
            )


def of_one_split(outcomes: Mapping[str, Iterable[Outcome]], folder: Path) -> None:
    """Refuse runs that were tested on other rows than the rest, or on a zoo that was built anew since.

    Raises:
        UserError: with the encoders of each split, or of each zoo.
    """
    for what in ("split", "digest"):
        found: dict[str, set[str]] = {}
        for name, ended in outcomes.items():
            for outcome in ended:
                if outcome.result is not None:
                    found.setdefault(getattr(outcome.result, what), set()).add(name)
        if what == "digest":
            found.pop("", None)  # of an older release
        if len(found) > 1:
            parts = "; ".join(
                f"{value[:12] or 'unknown'}: {', '.join(sorted(names))}" for value, names in found.items()
            )
            several = {"split": "several splits", "digest": "data of several contents"}[what]
            raise UserError(f"the runs in {folder} have {several} ({parts}); remove the folders of the old ones")
