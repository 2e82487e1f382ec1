"""Freed memory that stays with the process, for tensors come and go by the megabyte in every training step.

glibc gives the free end of its heap back to the system and maps large blocks one by one; the next step then waits for
the same pages to be found and zeroed again, up to a third of a step with large batches. The price is that a process
keeps what it has once needed.
"""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
_KEPT = 2**31 - 1  # bytes: the largest number that mallopt takes
_MAPPED = 32 << 20  # bytes: glibc takes no larger one
_PAD = 64 << 20  # bytes that the heap grows by


def keep_freed_memory() -> bool:
    """Have the allocator keep what is freed; whether it does: only glibc has such options."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    given = ((_TRIM_THRESHOLD, _KEPT), (_MMAP_THRESHOLD, _MAPPED), (_TOP_PAD, _PAD))
    taken = [mallopt(option, value) == 1 for option, value in given]  # all of them, also after one was refused
    return all(taken)
