"""Permissions of files count for this process too, which tests may run as root."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

VERSION_3 = 0x20080522  # of capset(2): two words for each of effective, permitted, inheritable


@contextmanager
def unprivileged() -> Iterator[None]:
    """Without the capabilities of root, as far as this thread is concerned."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(VERSION_3, 0), (ctypes.c_uint32 * 6)()
    _checked(libc.capget(header, data))
    effective = data[0], data[3]
    data[0] = data[3] = 0
    _checked(libc.capset(header, data))
    try:
        yield
    finally:
        data[0], data[3] = effective
        _checked(libc.capset(header, data))


def _checked(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), "capabilities cannot be changed")
