"""Zip and tar archives, unpacked beside the target only if nothing in them could lead elsewhere."""

from __future__ import annotations

import contextlib
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from wsl.zoo.layout import ZooError
from wsl.zoo.temporary import reported

LARGEST = 2**36  # bytes that an archive may unpack to
MOST_MEMBERS = 4_000_000
HIGHEST_RATIO, RATIO_FROM = 200, 2**27  # times its own size, once it unpacks to more than this many bytes
PIECE = 2**20
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class _Member:
    """A regular file or folder of an archive; ``link``: what it is instead, if it is neither."""

    name: str
    size: int
    folder: bool
    link: str
    open: Callable[[], IO[bytes] | None]


@contextlib.contextmanager
def unpacked(
    source: Path, target: Path, advance: Callable[[int, int], None] = lambda done, total: None, largest: int = LARGEST
) -> Iterator[Path]:
    """The folder that ``source`` is, or that it unpacks to, which is removed afterwards.

    Args:
        source: a folder, ``.zip``, or ``.tar`` (plain, gz, bz2 or xz).
        target: the zoo file; the archive is unpacked beside it.
        advance: called with the bytes unpacked so far, and in all.
        largest: bytes that it may unpack to.

    Raises:
        ZooError: if it is neither, damaged or hostile, or the disk is full; the message names the member.
    """
    if source.is_dir():
        yield source
        return
    with reported(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".source", dir=target.parent))
    try:
        with _members(source) as members:
            _check(source, members, largest)
            _unpack(source, members, folder, advance)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _members(source: Path) -> Iterator[list[_Member]]:
    if not source.is_file():
        raise ZooError(f"{source}: no such folder or archive")
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                yield [_of_zip(archive, info) for info in archive.infolist()]
        elif tarfile.is_tarfile(source):
            with tarfile.open(source) as archive:
                yield [_of_tar(archive, info) for info in archive]
        else:
            raise ZooError(f"{source}: neither a folder nor a zip or tar archive, or its download was cut short")
    except DAMAGE as error:
        raise ZooError(f"{source}: damaged or cut short ({error}); download it again") from error


def _of_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    mode = info.external_attr >> 16
    odd = stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR)
    link = "a symbolic link" if stat.S_ISLNK(mode) else "a special file" if odd else ""
    return _Member(info.filename, info.file_size, info.is_dir(), link, lambda: archive.open(info))


def _of_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    link = "a link" if info.issym() or info.islnk() else "" if info.isreg() or info.isdir() else "a special file"
    return _Member(info.name, info.size, info.isdir(), link, lambda: archive.extractfile(info))


def _check(source: Path, members: list[_Member], largest: int) -> None:
    """All names and sizes, before anything is written."""
    seen: dict[str, str] = {}
    if len(members) > MOST_MEMBERS:
        raise ZooError(f"{source}: {len(members)} members; at most {MOST_MEMBERS} are unpacked")
    for member in members:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or set(member.name) & {"\\", "\0", ":"}:
            raise ZooError(f"{source}: member {member.name!r} leads out of the archive; do not trust it")
        if member.link:
            raise ZooError(f"{source}: member {member.name!r} is {member.link}; do not trust the archive")
        if not member.folder:
            other = seen.setdefault(str(path).casefold(), member.name)
            if other is not member.name:
                raise ZooError(f"{source}: members {other!r} and {member.name!r} would be one file; do not trust it")
    total = sum(member.size for member in members)
    if total > largest or (total > RATIO_FROM and total > HIGHEST_RATIO * source.stat().st_size):
        raise ZooError(
            f"{source}: unpacks to {total:,} bytes (at most {largest:,}, and {HIGHEST_RATIO} times its own size, are "
            "allowed); unpack it yourself if you trust it, and give the folder"
        )


def _unpack(source: Path, members: list[_Member], folder: Path, advance: Callable[[int, int], None]) -> None:
    total, done = sum(member.size for member in members), 0
    for member in (m for m in members if not m.folder):
        place = folder.joinpath(*PurePosixPath(member.name).parts)
        with reported(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            target = place.open("xb")
        stream = member.open()
        if stream is None:
            raise ZooError(f"{source}: member {member.name!r} cannot be read; do not trust the archive")
        with target, stream:
            written = 0
            while piece := stream.read(PIECE):
                written += len(piece)
                if written > member.size:
                    raise ZooError(f"{source}: member {member.name!r} is larger than it says; do not trust the archive")
                with reported(place):
                    target.write(piece)
                advance(done + written, total)
        if written != member.size:
            raise ZooError(f"{source}: member {member.name!r} is cut short; download the archive again")
        done += written
        if not os.path.realpath(place).startswith(os.path.realpath(folder) + os.sep):
            raise ZooError(f"{source}: member {member.name!r} left the folder {folder}; do not trust the archive")
