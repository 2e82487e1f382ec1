"""Freed memory stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

#: minor page faults of three tensors of 8 MB that come and go, two hundred times
FAULTS = """
import resource, torch
from wsl.heap import keep_freed_memory
if {kept}:
    assert keep_freed_memory()
for count in range(220):
    if count == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    one = torch.ones(2_000_000)
    two = one + 1
    three = two * 2
    del one, two, three
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_pages_are_not_asked_for_again() -> None:
    faults = {}
    for kept in (True, False):
        command = [sys.executable, "-c", FAULTS.format(kept=kept)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        faults[kept] = int(done.stdout)
    # not by how much: with huge pages a fault brings 512 pages, and the heap may grow once more
    assert faults[True] < 0.5 * faults[False], faults
