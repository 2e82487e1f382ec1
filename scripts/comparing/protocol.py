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
    if not path.exists():
        if write:
            write_text(ensure(folder) / path.name, json.dumps(asked, indent=1) + "\n")
        return
    had = json.loads(path.read_text())
    if other := [name for name in asked if had.get(name) != asked[name]]:
        changes = "; ".join(f"{name}: {had.get(name)!r}, now {asked[name]!r}" for name in other)
        raise UserError(f"{folder} holds runs of another protocol ({changes}); give the same options, or another --out")


def of_one_split(outcomes: Mapping[str, Iterable[Outcome]], folder: Path) -> None:
    """Refuse runs that were tested on other rows than the rest, as after a zoo was built anew.

    Raises:
        UserError: with the encoders of each split.
    """
    splits: dict[str, set[str]] = {}
    for name, ended in outcomes.items():
        for outcome in ended:
            if outcome.result is not None:
                splits.setdefault(outcome.result.split, set()).add(name)
    if len(splits) > 1:
        parts = "; ".join(f"{split or 'unknown'}: {', '.join(sorted(names))}" for split, names in splits.items())
        raise UserError(f"the runs in {folder} have several splits ({parts}); remove the folders of the old ones")
