"""docs/faults.md names tests that exist, for every fault."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (F\d\d) \| (.+) \| (.+) \| (.+) \|$")


def rows() -> list[tuple[str, ...]]:
    lines = (ROOT / "docs" / "faults.md").read_text().splitlines()
    found = [ROW.match(line) for line in lines if line.startswith("| F")]
    assert all(found)
    return [row.groups() for row in found if row is not None]


def test_every_fault_has_a_row() -> None:
    assert list(dict.fromkeys(row[0] for row in rows())) == [f"F{number:02}" for number in range(1, 41)]


def test_every_test_exists() -> None:
    for number, *_, tests in rows():
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", tests)
        assert named and len(named) == tests.count("`") // 2, (number, tests)
        for file, name in named:
            assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), (number, file, name)
