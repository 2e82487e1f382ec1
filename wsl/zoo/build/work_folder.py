"""The folder beside a zoo in the making: finished blocks, so that a build that was killed goes on where it was."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsl.zoo.layout import ZooError

RECIPE = "recipe.json"
LOCK = "lock"


def differences(here: Mapping[str, Any], there: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The entries in which two nested recipes differ, as ``key is A, there B``."""
    found = []
    for key in sorted(set(here) | set(there)):
        a, b = here.get(key, "absent"), there.get(key, "absent")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} is {a!r}, there {b!r}")
    return found


class WorkFolder:
    """``NAME.partial/`` beside the target ``NAME``, held by one builder at a time.

    A block is one ``.npz`` file of plain arrays, written under a temporary name, synced and renamed: it is complete or
    absent. Use as a context manager; leaving it gives the lock back and keeps the blocks, :meth:`remove` deletes all.

    Args:
        target: the zoo file.
        recipe: plain JSON values; all that the blocks depend on.

    Raises:
        ZooError: if another process holds the folder, it belongs to another recipe, or it cannot be written.
    """

    def __init__(self, target: Path, recipe: Mapping[str, Any]) -> None:
        self.path = target.with_name(f"{target.name}.partial")
        self.recipe = json.loads(json.dumps(recipe))
        self._lock: int | None = None

    def __enter__(self) -> WorkFolder:
        try:
            self._acquire()
            self._check_recipe()
        except OSError as error:
            self._release()
            raise self._failure(error) from error
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def load(self, block: int) -> dict[str, np.ndarray] | None:
        """The arrays of a block, or None if it is not there; one damaged by a crash of the machine counts as such."""
        try:
            with self._file(block).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except FileNotFoundError:
            return None
        except (ValueError, zipfile.BadZipFile, EOFError):
            return None
        except OSError as error:
            raise self._failure(error) from error

    def save(self, block: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the arrays of a block. Raises :class:`ZooError` if they cannot be written; other blocks stay."""
        temporary = self.path / f".{block:06d}.tmp"
        try:
            with temporary.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._file(block))
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._failure(error) from error

    def remove(self) -> None:
        """Delete the folder; the zoo is complete."""
        shutil.rmtree(self.path)

    def _file(self, block: int) -> Path:
        return self.path / f"block_{block:06d}.npz"

    def _acquire(self) -> None:
        """Lock the folder; a lock file that its holder removed in the meantime (the zoo is finished) is tried anew."""
        path = self.path / LOCK
        while self._lock is None:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(self._lock, 32).decode("ascii", "replace").strip() or "unknown"
                raise ZooError(
                    f"{self.path}: process {owner} is building this zoo; wait for it, or end it and run this again"
                ) from None
            if not path.exists() or path.stat().st_ino != os.fstat(self._lock).st_ino:
                self._release()
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _check_recipe(self) -> None:
        path = self.path / RECIPE
        if not path.exists():
            temporary = path.with_name(f".{RECIPE}.tmp")
            temporary.write_text(json.dumps(self.recipe, indent=2, sort_keys=True) + "\n")
            os.replace(temporary, path)
            return
        try:
            found = json.loads(path.read_text())
        except ValueError:
            found = {}
        if found != self.recipe:
            listed = "; ".join(differences(self.recipe, found))
            raise ZooError(
                f"{self.path}: holds the unfinished zoo of another recipe: {listed}. Go on with that recipe, delete "
                "the folder, or choose another out=FILE"
            )

    def _failure(self, error: OSError) -> ZooError:
        fixes = {
            errno.ENOSPC: "free space and run the same command again: finished blocks are kept",
            errno.EDQUOT: "the quota is used up; free space and run the same command again: finished blocks are kept",
        }
        fix = fixes.get(error.errno or 0, "make the folder writable or choose another out=FILE")
        return ZooError(f"{self.path}: cannot be used ({error.strerror or error}); {fix}")
