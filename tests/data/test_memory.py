"""Free memory is that of the machine, or of the container if that leaves less."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsl.data.memory import free_memory

GIB = 2**30


def machine(root: Path, available: int, **files: int | str) -> Path:
    for name, value in {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {available // 1024} kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8 * GIB),
        ({"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": 5 * GIB}, 8 * GIB),
        ({"sys/fs/cgroup/memory.max": 6 * GIB, "sys/fs/cgroup/memory.current": 4 * GIB}, 2 * GIB),
        ({"sys/fs/cgroup/memory.max": 6 * GIB, "sys/fs/cgroup/memory.current": 7 * GIB}, 0),
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": 3 * GIB,
                "sys/fs/cgroup/memory/memory.usage_in_bytes": 2 * GIB,
            },
            GIB,
        ),
    ],
)
def test_the_least_of_the_limits_counts(tmp_path: Path, files: dict[str, int | str], expected: int) -> None:
    assert free_memory(machine(tmp_path, 8 * GIB, **files)) == expected


def test_this_machine_has_some() -> None:
    assert 2**20 < free_memory() < 2**50
