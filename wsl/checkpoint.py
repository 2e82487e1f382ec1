"""Checkpoints that survive a crash: written beside the target, synced, renamed, with the generation before kept."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from wsl import __version__
from wsl.errors import UserError
from wsl.run_folder import FULL
from wsl.seal import broken_seal, put_seal

#: of what a run keeps in a checkpoint; 0: before it was numbered, which is read too
FORMAT = 1
#: without which nothing can be gone on with
KEYS = ("state_dict", "global_step", "epoch", "optimizer_states", "lr_schedulers", "loops", "callbacks")
#: bytes: with less free space than this a disk counts as full
NEARLY_NONE = 2**20


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be written or read; the message names the file and the fix."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint files are complete or absent, and only tensors and plain containers are ever read back.

    A file is written under a temporary name in the same folder, synced and renamed, so that neither a crash nor a full
    disk can damage the one before; that one is kept as ``NAME.previous.ckpt`` and used, with a warning, if the
    newer one turns out to be unreadable.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        temporary = path.with_name(f".{path.name}.partial")  # one process writes into a run folder: nothing piles up
        try:
            with open(temporary, "w+b") as file:
                torch.save(checkpoint, file)
                put_seal(file)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                _keep(path)
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except (OSError, RuntimeError) as error:
            full = _full(error, path.parent)  # before the part that was written is removed
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            if not path.parent.exists():  # to make it again would hide that what was in it is lost
                raise CheckpointError(
                    f"cannot write the checkpoint {path}: its folder is gone; start the run again in another folder"
                ) from error
            why, fix = (f"the disk is full ({error})", "free space") if full else (error, "make the folder writable")
            last = path.with_name("last.ckpt")
            if last.exists() or previous_generation(last).exists():
                way = f"The one before it is untouched; {fix}, then go on with resume=RUNDIR"
            else:
                way = f"There is none before it; {fix}, then start the run again"
            raise CheckpointError(f"cannot write the checkpoint {path}: {why}. {way}") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        path = Path(path)
        try:
            return read_checkpoint(path)
        except CheckpointError as error:
            fallback = previous_generation(path)
            if not fallback.exists():
                raise
            warnings.warn(f"{error}; going on from the generation before it, {fallback}", stacklevel=2)
            return read_checkpoint(fallback)

    def remove_checkpoint(self, path: Any) -> None:
        """A better one is there already: what cannot be removed is said, and stays."""
        try:
            super().remove_checkpoint(path)
            previous_generation(Path(path)).unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(f"cannot remove the checkpoint {path}: {error.strerror}", stacklevel=2)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU with torch's safe loader.

    Raises:
        CheckpointError: if the file is absent, truncated, or holds anything but tensors and plain containers.
    """
    try:
        with open(path, "rb") as file:
            if broken_seal(file):
                raise CheckpointError(f"{path} is damaged: its bytes do not fit its check sum")
        if zipfile.is_zipfile(path) and (part := zipfile.ZipFile(path).testzip()):  # files of others carry no seal
            raise CheckpointError(f"{path} is damaged: the check sum of {part} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} was refused by the safe loader, nothing in it was run: {reason}") from None
    except CheckpointError:
        raise
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is truncated or damaged: {reason}") from None


def resumable(path: Path) -> int:
    """The steps after which a run's checkpoint was written, or the generation before it if that is unreadable.

    Raises:
        CheckpointError: if neither can be read, or the file is no checkpoint of a run, or one of a later release.
    """
    checkpoint = AtomicCheckpointIO().load_checkpoint(path)
    missing = [key for key in KEYS if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise CheckpointError(
            f"{path} is no checkpoint of a run ({', '.join(missing)} missing); put back the one of this run, or remove "
            "this one to go on from the generation before it"
        )
    mark = checkpoint.get("wsl", {"format": 0})
    written = mark if isinstance(mark, dict) else {}
    number = written.get("format")
    if not isinstance(number, int) or number > FORMAT:
        raise CheckpointError(
            f"{path} was written by release {written.get('release')} in format {number}; this release, {__version__}, "
            f"reads formats up to {FORMAT}: go on with that one or a later one"
        )
    return int(checkpoint["global_step"])


def previous_generation(path: Path) -> Path:
    """Where the generation before ``path`` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _full(error: Exception, folder: Path) -> bool:
    """Whether the disk is full; torch does not say so itself."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    try:
        return shutil.disk_usage(folder).free < NEARLY_NONE
    except OSError:
        return False


def _keep(path: Path) -> None:
    """Make the present file the previous generation, without a moment in which neither name holds a whole file."""
    keep = path.with_name(f".{path.name}.keep")
    keep.unlink(missing_ok=True)
    try:
        os.link(path, keep)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, keep)
    os.replace(keep, previous_generation(path))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
