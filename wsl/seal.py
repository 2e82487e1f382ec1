"""Seals on archives: the digest of a whole zip file, kept in its comment.

The check sums of a zip archive cover the contents of its members but not the headers, and ``torch.load`` trusts
those: one flipped bit there makes it read memory that it never wrote. A comment follows the last byte of the directory,
every zip reader steps over it, so a file stays what it was for ``torch.load``.
"""

from __future__ import annotations

import hashlib
import os
from typing import BinaryIO

_NAME = b"wsl sha256 "
_LENGTH = len(_NAME) + hashlib.sha256().digest_size * 2
_COMMENT_LENGTH_BYTES = 2  # the last field of a zip file without a comment
_CHUNK = 1 << 20


def put_seal(archive: BinaryIO) -> None:
    """Give an archive without a comment, open for reading and writing, its seal.

    Raises:
        ValueError: if it has a comment already, or is no zip archive.
    """
    archive.seek(-_COMMENT_LENGTH_BYTES, os.SEEK_END)
    if archive.read() != bytes(_COMMENT_LENGTH_BYTES):
        raise ValueError("no zip archive without a comment")
    archive.seek(-_COMMENT_LENGTH_BYTES, os.SEEK_END)
    archive.write(_LENGTH.to_bytes(_COMMENT_LENGTH_BYTES, "little"))
    seal = _seal_of(archive, archive.tell())
    archive.write(seal)


def broken_seal(archive: BinaryIO) -> bool:
    """Whether an archive carries a seal that its bytes do not fit; one without a seal is not broken."""
    size = archive.seek(0, os.SEEK_END)
    if size < _LENGTH:
        return False
    archive.seek(size - _LENGTH)
    seal = archive.read()
    return seal.startswith(_NAME) and seal != _seal_of(archive, size - _LENGTH)


def _seal_of(archive: BinaryIO, size: int) -> bytes:
    """The seal of the first ``size`` bytes; the archive is left at their end."""
    digest = hashlib.sha256()
    archive.seek(0)
    while chunk := archive.read(min(size - archive.tell(), _CHUNK)):
        digest.update(chunk)
    return _NAME + digest.hexdigest().encode()
