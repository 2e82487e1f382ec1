"""Reading image files: what is accepted, and what is said about what is not."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from wsl.zoo.images import Images, load_images
from wsl.zoo.layout import ZooError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5], dtype=np.uint8)


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def idx_pair(folder: Path, compress: bool = False, images: bytes = idx(PIXELS), labels: bytes = idx(LABELS)) -> Path:
    suffix = ".gz" if compress else ""
    pack = gzip.compress if compress else bytes
    (folder / f"train-labels-idx1-ubyte{suffix}").write_bytes(pack(labels))
    path = folder / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(pack(images))
    return path


def test_npz(tmp_path: Path) -> None:
    images = load_images(saved(tmp_path / "a.npz", images=PIXELS, labels=LABELS))
    assert images.size == (4, 3, 1) and len(images) == 5
    assert images.labels.dtype == np.int64
    np.testing.assert_array_equal(images.pixels[..., 0], PIXELS)
    np.testing.assert_array_equal(images.labels, LABELS)


def test_npz_of_colour_images(tmp_path: Path) -> None:
    colour = np.stack([PIXELS, PIXELS // 2, PIXELS // 3], axis=-1)
    images = load_images(saved(tmp_path / "a.npz", images=colour, labels=LABELS))
    assert images.size == (4, 3, 3)
    np.testing.assert_array_equal(images.pixels, colour)


@pytest.mark.parametrize("compress", [False, True])
def test_idx(tmp_path: Path, compress: bool) -> None:
    images = load_images(idx_pair(tmp_path, compress))
    np.testing.assert_array_equal(images.pixels[..., 0], PIXELS)
    np.testing.assert_array_equal(images.labels, LABELS)


def test_digits() -> None:
    from sklearn.datasets import load_digits

    images = load_images("digits")
    assert images.size == (8, 8, 1) and len(images) == 1797 and images.pixels.max() == 255
    raw = load_digits()
    for value in range(17):
        assert set(images.pixels[..., 0][raw.images == value]) == {round(value * 255 / 16)}
    np.testing.assert_array_equal(images.labels, raw.target)


def test_shared_mnist(shared_data: Path) -> None:
    images = load_images(shared_data / "mnist_test.npz")
    assert images.size == (28, 28, 1)
    assert np.bincount(images.labels)[[0, 9]].tolist() == [980, 1009]


def test_greyscale() -> None:
    colour = np.zeros((1, 1, 4, 3), dtype=np.uint8)
    colour[0, 0] = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]
    grey = Images(colour, np.zeros(1, dtype=np.int64), "").greyscale()
    assert grey.pixels[0, 0, :, 0].tolist() == [76, 150, 29, 255]
    assert grey.greyscale() is grey


def test_digest_tells_pixels_labels_and_shape_apart() -> None:
    def digest(pixels: np.ndarray, labels: np.ndarray) -> str:
        return Images(pixels, labels.astype(np.int64), "").digest

    pixels = PIXELS[..., None]
    changed, relabelled = pixels.copy(), LABELS.copy()
    changed[0, 0, 0] ^= 1
    relabelled[0] += 1
    turned = pixels.reshape(5, 3, 4, 1)
    digests = {digest(*pair) for pair in ((pixels, LABELS), (changed, LABELS), (pixels, relabelled), (turned, LABELS))}
    assert len(digests) == 4
    assert digest(pixels.copy(), LABELS) in digests


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": LABELS}, "key 'images' is missing"),
        ({"images": PIXELS, "targets": LABELS}, "key 'labels' is missing"),
        ({"images": PIXELS / 255, "labels": LABELS}, "images are float64; they must be uint8"),
        ({"images": PIXELS.reshape(5, 12), "labels": LABELS}, r"images have shape \(5, 12\)"),
        ({"images": np.zeros((5, 4, 3, 2), np.uint8), "labels": LABELS}, r"images have shape \(5, 4, 3, 2\)"),
        ({"images": PIXELS[:0], "labels": LABELS[:0]}, r"images have shape \(0, 4, 3\)"),
        ({"images": PIXELS, "labels": LABELS[:4]}, r"5 images but labels of shape \(4,\)"),
        ({"images": PIXELS, "labels": LABELS.astype(float)}, "labels are float64; they must be integers"),
        ({"images": PIXELS, "labels": LABELS.astype(int) - 4}, "label -3 of image 1 is negative"),
    ],
)
def test_npz_of_something_else_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = saved(tmp_path / "a.npz", **arrays)
    with pytest.raises(ZooError, match=message) as caught:
        load_images(path)
    assert str(path) in str(caught.value)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    path = saved(tmp_path / "a.npz", images=np.array([Bomb()], dtype=object), labels=LABELS)
    with pytest.raises(ZooError, match=r"not readable as an \.npz file of plain arrays"):
        load_images(path)
    assert not (tmp_path / "exploded").exists()


def test_damaged_npz_is_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path / "a.npz", images=PIXELS, labels=LABELS)
    data = bytearray(whole.read_bytes())
    whole.write_bytes(data[: len(data) // 2])
    with pytest.raises(ZooError, match="copy it again"):
        load_images(whole)
    data[data.index(PIXELS.tobytes()) + 7] ^= 1  # the archive's own checksum notices
    whole.write_bytes(data)
    with pytest.raises(ZooError, match="copy it again"):
        load_images(whole)
    np.save(tmp_path / "a.npy", PIXELS)
    whole.write_bytes((tmp_path / "a.npy").read_bytes())  # one array under the name of an archive
    with pytest.raises(ZooError, match="copy it again"):
        load_images(whole)
    whole.write_bytes(b"no archive")
    with pytest.raises(ZooError, match="copy it again"):
        load_images(whole)


def test_missing_file_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"absent\.npz: no such file; .*images .*labels .*zoo\.images\.train=FILE"):
        load_images(tmp_path / "absent.npz")


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (idx(PIXELS)[:-1], "declares 60 values, holds 59"),
        (idx(PIXELS) + b"\0", "declares 60 values, holds more"),
        (idx(LABELS), "starts with"),
        (b"", "starts with b''"),
        (idx(PIXELS)[:9], "header is damaged"),
        (idx(PIXELS)[:4] + b"\xff" * 12, "header is damaged"),
    ],
)
def test_damaged_idx_is_refused(tmp_path: Path, compress: bool, images: bytes, message: str) -> None:
    with pytest.raises(ZooError, match=message):
        load_images(idx_pair(tmp_path, compress, images=images))


def test_idx_errors_name_the_file_at_fault(tmp_path: Path) -> None:
    path = idx_pair(tmp_path, labels=idx(LABELS[:3]))
    with pytest.raises(ZooError, match=r"5 images but labels of shape \(3,\)"):
        load_images(path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(ZooError, match="train-labels-idx1-ubyte: no such file"):
        load_images(path)
    cut = idx_pair(tmp_path, compress=True)
    cut.write_bytes(cut.read_bytes()[:-12])
    with pytest.raises(ZooError, match="not readable"):
        load_images(cut)
    other = tmp_path / "picture.png"
    other.write_bytes(b"\x89PNG")
    with pytest.raises(ZooError, match=r"neither \.npz nor an IDX file"):
        load_images(other)
