"""Read labelled images to fit networks to: ``.npz`` archives, IDX files, or the digits bundled with scikit-learn."""

from __future__ import annotations

import gzip
import hashlib
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsl.zoo.layout import ZooError

DIGITS = "digits"
IDX_UBYTE = 0x08
LARGEST_IMAGE_FILE = 2**33  # bytes of pixels; a header that declares more is damaged


@dataclass(frozen=True)
class Images:
    """Labelled images of one size.

    Attributes:
        pixels: uint8 ``[n, height, width, channels]``, channels 1 or 3.
        labels: int64 ``[n]``.
        name: where they come from, for messages.
    """

    pixels: np.ndarray
    labels: np.ndarray
    name: str

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self.pixels.shape[1], self.pixels.shape[2], self.pixels.shape[3]

    @property
    def digest(self) -> str:
        """SHA-256 of shape, pixels and labels, hexadecimal."""
        digest = hashlib.sha256(f"{self.pixels.shape}".encode())
        digest.update(np.ascontiguousarray(self.pixels).tobytes())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def greyscale(self) -> Images:
        """Luma by ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B, rounded; grey images stay as they are."""
        if self.size[2] == 1:
            return self
        luma = self.pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
        return Images(np.rint(luma).astype(np.uint8)[..., None], self.labels, self.name)


def load_images(source: str | Path) -> Images:
    """Labelled images from ``digits``, an ``.npz`` file or an IDX file (``…idx3-ubyte``, plain or ``.gz``).

    An ``.npz`` file holds ``images``, uint8 ``[n, height, width]`` or ``[n, height, width, 3]``, and ``labels``,
    integers ``[n]``. The labels of an IDX file lie beside it under the usual name (``…labels-idx1-ubyte``).

    Raises:
        ZooError: if the file is missing, damaged, or holds something else; the message names what and the fix.
    """
    if str(source) == DIGITS:
        return _digits()
    path = Path(source)
    if not path.is_file():
        raise ZooError(
            f"{path}: no such file; it should be an .npz file with images (uint8 [n, height, width] or "
            f"[n, height, width, 3]) and labels (integers [n]), or an IDX file; name yours with "
            "zoo.images.train=FILE and zoo.images.test=FILE"
        )
    images, labels = _read_npz(path) if path.suffix == ".npz" else _read_idx_pair(path)
    return _checked(images, labels, path)


def _digits() -> Images:
    """The 1,797 digits of 8×8 pixels and 17 grey values bundled with scikit-learn, scaled to 0…255 once."""
    from sklearn.datasets import load_digits  # slow to import, and needed for this source alone

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return Images(pixels[..., None], digits.target.astype(np.int64), DIGITS)


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            if missing := {"images", "labels"} - set(file.files):
                raise ZooError(
                    f"{path}: key {sorted(missing)[0]!r} is missing (found {file.files}); save it with "
                    "numpy.savez(FILE, images=…, labels=…)"
                )
            return file["images"], file["labels"]
    except ZooError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ZooError(f"{path}: not readable as an .npz file of plain arrays ({reason}); copy it again") from error


def _read_idx_pair(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if "idx3" not in path.name or "images" not in path.name:
        raise ZooError(
            f"{path}: neither .npz nor an IDX file of images (NAME-images-idx3-ubyte, plain or .gz); convert it with "
            "numpy.savez(FILE, images=…, labels=…)"
        )
    labels = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if not labels.is_file():
        raise ZooError(f"{labels}: no such file; the labels of {path.name} are expected there")
    return _read_idx(path, 3), _read_idx(labels, 1)


def _read_idx(path: Path, axes: int) -> np.ndarray:
    """An IDX file: two zero bytes, type, number of axes, the sizes as big-endian 32-bit integers, then the values."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != IDX_UBYTE or magic[3] != axes:
                raise ZooError(
                    f"{path}: starts with {magic!r}; an IDX file of bytes with {axes} axes starts with "
                    f"{bytes((0, 0, IDX_UBYTE, axes))!r}"
                )
            sizes = file.read(4 * axes)
            shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4))
            declared = math.prod(shape)
            if len(sizes) != 4 * axes or declared > LARGEST_IMAGE_FILE:
                raise ZooError(f"{path}: the header is damaged (sizes {shape}); copy the file again")
            data = file.read(declared + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ZooError(f"{path}: not readable ({error}); copy the file again") from error
    if len(data) != declared:
        held = "more" if len(data) > declared else str(len(data))
        raise ZooError(f"{path}: declares {declared} values, holds {held}; copy the file again")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _checked(images: np.ndarray, labels: np.ndarray, path: Path) -> Images:
    if images.dtype != np.uint8:
        raise ZooError(f"{path}: images are {images.dtype}; they must be uint8, 0 to 255")
    grey = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 1)
    if not (grey or (images.ndim == 4 and images.shape[3] == 3)) or 0 in images.shape:
        raise ZooError(
            f"{path}: images have shape {images.shape}; expected [n, height, width] or [n, height, width, 3], none 0"
        )
    if labels.dtype.kind not in "iu":
        raise ZooError(f"{path}: labels are {labels.dtype}; they must be integers")
    if labels.shape != (len(images),):
        raise ZooError(f"{path}: {len(images)} images but labels of shape {labels.shape}; expected ({len(images)},)")
    if labels.size and int(labels.min()) < 0:
        raise ZooError(f"{path}: label {labels.min()} of image {int(labels.argmin())} is negative")
    pixels = images[..., None] if images.ndim == 3 else images
    return Images(pixels, labels.astype(np.int64), str(path))
