"""A file that is written beside its target and takes the target's place when it is complete."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from wsl.zoo.layout import ZooError

FIXES = {
    errno.EEXIST: "a file stands where its folder should be; choose another folder",
    errno.ENOTDIR: "a file stands where its folder should be; choose another folder",
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some of your quota or choose another folder",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) or choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
}


class Temporary:
    """A path beside ``target``: same folder, so that the rename is atomic; a name of its own, so that none collide.

    While its process lives, the file is locked (advisory, flock): what a killed process left behind can be told from
    what another one is writing, and goes when the next one writes to the same target.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.parent / f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        self._lock: int | None = None
        self._remove_orphans()

    def lock(self) -> None:
        """Mark the file, which now exists, as being written."""
        self._lock = os.open(self.path, os.O_RDONLY)
        with contextlib.suppress(OSError):  # no locks on this file system: orphans are never removed there
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def put_in_place(self) -> None:
        """Sync the file, rename it onto the target, sync the folder."""
        _sync(self.path)
        os.replace(self.path, self.target)
        with contextlib.suppress(OSError):  # the file is in place; not every file system can sync a folder
            _sync(self.target.parent)

    def discard(self) -> None:
        """Remove the file if it is still there, and release the lock."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _remove_orphans(self) -> None:
        name = re.compile(re.escape(f".{self.target.name}.") + r"\d+\.[0-9a-f]{8}\.tmp")
        with contextlib.suppress(OSError):  # a folder that cannot be listed is reported when the file is created
            for path in [path for path in self.target.parent.iterdir() if name.fullmatch(path.name)]:
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
                finally:
                    os.close(descriptor)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raises :class:`ZooError` if the target is a folder, or a file that must stay."""
    if path.is_dir():
        raise ZooError(f"{path}: is a folder; give the path of a file in it")
    if path.exists() and not overwrite:
        raise ZooError(
            f"{path}: exists already; delete it, choose another name, or replace it: --overwrite of "
            "scripts/import_zoo.py, overwrite=True in Python"
        )


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is complete, or as it was; its folder must exist.

    Raises:
        ZooError: with the reason and the fix, if it cannot be written.
    """
    with reported(path):
        temporary = Temporary(path)
        try:
            temporary.path.write_bytes(content)
            temporary.put_in_place()
        finally:
            temporary.discard()


@contextlib.contextmanager
def reported(path: Path) -> Iterator[None]:
    """Failures of the file system, also those that HDF5 only tells in its message, as one clear :class:`ZooError`."""
    try:
        yield
    except ZooError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        text = re.search(r"errno = (\d+)", str(error))
        number = getattr(error, "errno", None) or (int(text[1]) if text else 0)
        fix = FIXES.get(number, "check that the folder exists and may be written to, or choose another one")
        reason = os.strerror(number) if number else str(error)
        raise ZooError(f"{path}: cannot be written ({reason}); {fix}") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
