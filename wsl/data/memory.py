"""How much memory a process may still take."""

from __future__ import annotations

import os
from pathlib import Path

CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that the machine has available, or what is left of the limit of the job or container if that is less.

    Args:
        root: where the system's files are (for tests).
    """
    status = root / "proc/meminfo"
    if status.exists():
        fields = dict(line.split(":") for line in status.read_text().splitlines() if ":" in line)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    else:  # not Linux
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    for limit, used in ((root / a.lstrip("/"), root / b.lstrip("/")) for a, b in CGROUPS):
        if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
            free = min(free, int(most) - int(used.read_text()))
    return max(0, free)
