"""Open a zoo file that may be damaged or hostile: nothing in it is trusted before it has been looked at.

HDF5 files can name other files (external links, external storage, virtual datasets), declare datasets far larger than
what they store, ask for filters that are loaded as plugins, and hold references into anything. A zoo needs none of it,
so :func:`open_checked` admits exactly the layout of :mod:`wsl.zoo.layout`, looking at every link and every dataset's
creation properties before anything is followed or read. No name found in a file is ever joined to a path.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import h5py
from h5py import h5d, h5l, h5o, h5pl, h5t, h5z

from wsl.zoo.layout import (
    COLUMN_TYPES,
    FORMAT,
    GROUPS,
    LARGEST_CHUNK_BYTES,
    LONGEST_STRING,
    MIXED,
    OPTIONAL,
    REQUIRED,
    SINGLE,
    VERSION,
    ZooError,
)

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MOST_MEMBERS = 4096  # of a group
LONGEST_JSON = {"specs": 2**29, "recipe": 2**26}  # bytes
READ_CACHE_BYTES = 2**24

for _ in range(h5pl.size()):  # a file must not be able to make HDF5 load a shared library
    h5pl.remove(0)


def open_checked(path: str | os.PathLike[str]) -> h5py.File:
    """Open read-only and without locks, so that read-only and network file systems serve as well.

    Raises:
        ZooError: if the file is missing, no HDF5, truncated, not of this format and version, lacks a dataset, or holds
            anything that a zoo does not hold.
    """
    path = Path(path)
    size = _check_signature(path)
    try:
        file = h5py.File(path, "r", locking=False, rdcc_nbytes=READ_CACHE_BYTES)
    except (OSError, RuntimeError, ValueError) as error:
        raise ZooError(f"{path}: damaged or truncated ({error}); copy or build the file again") from error
    try:
        _check_attributes(file, path)
        _check_layout(file, path, size)
    except (OSError, RuntimeError, KeyError, TypeError) as error:  # what h5py raises on a damaged object header
        file.close()
        raise ZooError(f"{path}: damaged ({error}); copy or build the file again") from error
    except BaseException:
        file.close()
        raise
    return file


def _check_signature(path: Path) -> int:
    try:
        if not path.is_file():
            found = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
            raise ZooError(f"{path}: {found}; give the path of a zoo file (scripts/build_zoo.py makes one)")
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(len(SIGNATURE))
    except OSError as error:
        raise ZooError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if start != SIGNATURE:
        found = "is empty" if size == 0 else f"starts with {start!r}"
        raise ZooError(f"{path}: no HDF5 file ({found}); give a zoo file, or copy or build it again")
    return size


def _check_attributes(file: h5py.File, path: Path) -> None:
    found = {}
    for name in ("format", "version", "digest"):
        if not h5py.h5a.exists(file.id, name.encode()):
            raise ZooError(f"{path}: no zoo file, attribute {name!r} is missing; import it with scripts/import_zoo.py")
        attribute = h5py.h5a.open(file.id, name.encode())
        kind = attribute.get_type()
        text = kind.get_class() == h5t.STRING and not kind.is_variable_str()
        plain = kind.get_class() == h5t.INTEGER if name == "version" else text
        if attribute.shape != () or not plain or kind.get_size() > LONGEST_STRING:
            raise ZooError(f"{path}: attribute {name!r} is no plain number or short text; do not trust this file")
        value = file.attrs[name]
        found[name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else int(value)
    if found["format"] != FORMAT:
        raise ZooError(f"{path}: format {found['format']!r} is not {FORMAT!r}; import it with scripts/import_zoo.py")
    if found["version"] != VERSION:
        raise ZooError(
            f"{path}: format version {found['version']}; this release reads version {VERSION}: use the release that "
            "wrote the file, or build or import it again"
        )


def _check_layout(file: h5py.File, path: Path, size: int) -> None:
    members = _members(file.id, path, "")
    weights = MIXED if "values" in members else SINGLE
    for name in (*REQUIRED, *weights, *GROUPS):
        if name not in members:
            raise ZooError(f"{path}: dataset {name!r} is missing; copy or build the file again")
    known = REQUIRED | weights | OPTIONAL
    stored = 0
    for name, kind in members.items():
        if name in GROUPS and kind == h5o.TYPE_GROUP:
            group = h5py.h5g.open(file.id, name.encode())
            types = ("<i8",) if name == "splits" else COLUMN_TYPES
            for child, child_kind in _members(group, path, f"{name}/").items():
                stored += _check_dataset(group, path, f"{name}/{child}", child_kind, types, 1, size)
        elif name in known:
            expected, axes = known[name]
            stored += _check_dataset(file.id, path, name, kind, (expected,), axes, size)
        else:
            raise ZooError(f"{path}: {name!r} is no part of a zoo (version {VERSION}); do not trust this file")
    if stored > size:
        raise ZooError(f"{path}: datasets claim {stored} stored bytes in a file of {size}; do not trust this file")


def _members(group: h5py.h5g.GroupID, path: Path, where: str) -> dict[str, int]:
    """Name → object type of a group's members, none of which has been opened; only hard links are allowed."""
    count = group.get_num_objs()
    if count > MOST_MEMBERS:
        raise ZooError(f"{path}: {where or '/'} has {count} members, at most {MOST_MEMBERS} are allowed")
    found = {}
    for raw in list(group):
        name = raw.decode("utf-8", "backslashreplace")
        link = group.links.get_info(raw).type
        if link != h5l.TYPE_HARD:
            kind = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "an external link"}.get(link, f"link type {link}")
            raise ZooError(f"{path}: {where}{name!r} is {kind}, which can lead out of the file; do not trust this file")
        if not name or name in (".", "..") or "/" in name or "\x00" in name or "\\x" in name:
            raise ZooError(f"{path}: {where}{name!r} is no valid name; do not trust this file")
        found[name] = h5o.get_info(group, raw).type
    return found


def _check_dataset(
    group: h5py.h5g.GroupID, path: Path, where: str, kind: int, types: tuple[str, ...], axes: int, size: int
) -> int:
    """Check a dataset without reading it, and return the bytes that it stores."""
    if kind != h5o.TYPE_DATASET:
        raise ZooError(f"{path}: {where!r} is no dataset; do not trust this file")
    dataset = h5d.open(group, where.rpartition("/")[2].encode())
    properties = dataset.get_create_plist()
    if properties.get_layout() == h5d.VIRTUAL:
        raise ZooError(f"{path}: {where!r} is a virtual dataset, which reads other files; do not trust this file")
    if properties.get_external_count():
        raise ZooError(f"{path}: {where!r} lies in external storage, outside the file; do not trust this file")
    itemsize = _check_type(dataset.get_type(), path, where, types)
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    if filters != [h5z.FILTER_FLETCHER32] or properties.get_layout() != h5d.CHUNKED:
        raise ZooError(
            f"{path}: {where!r} has the filters {filters} and layout {properties.get_layout()}; a zoo is chunked, "
            f"uncompressed, with Fletcher-32 checksums alone (filter {h5z.FILTER_FLETCHER32})"
        )
    shape, chunk = dataset.shape, properties.get_chunk()
    if shape is None or len(shape) != axes or 0 in shape:
        raise ZooError(f"{path}: {where!r} has shape {shape}; expected {axes} axes, none of length 0")
    declared, stored = math.prod(shape) * itemsize, dataset.get_storage_size()
    limit = LONGEST_JSON.get(where, size)
    if declared > min(stored, limit) or math.prod(chunk) * itemsize > LARGEST_CHUNK_BYTES:
        raise ZooError(
            f"{path}: {where!r} declares {declared} bytes in chunks of {math.prod(chunk) * itemsize}, but stores "
            f"{stored} (limits: {limit}, chunk {LARGEST_CHUNK_BYTES}); the file is incomplete or hostile"
        )
    return stored


def _check_type(kind: h5t.TypeID, path: Path, where: str, types: tuple[str, ...]) -> int:
    wanted = "/".join(types) + (f" or fixed-length text of at most {LONGEST_STRING} bytes" if len(types) > 1 else "")
    text = kind.get_class() == h5t.STRING and len(types) > 1
    if text and not kind.is_variable_str() and kind.get_size() <= LONGEST_STRING:
        return int(kind.get_size())
    if kind.get_class() not in (h5t.INTEGER, h5t.FLOAT) or not any(kind.equal(h5t.py_create(t)) for t in types):
        names = {
            h5t.STRING: "variable-length text",
            h5t.REFERENCE: "a reference",
            h5t.VLEN: "variable-length",
            h5t.COMPOUND: "compound",
        }
        plain = kind.get_class() in (h5t.INTEGER, h5t.FLOAT)
        found = kind.dtype.str if plain else names.get(kind.get_class(), f"of HDF5 class {kind.get_class()}")
        raise ZooError(f"{path}: {where!r} is {found}, expected {wanted}; build the file again")
    return int(kind.get_size())
