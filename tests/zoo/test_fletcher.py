"""The vectorised checksum against the definition, word after word, and against what HDF5 stored."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from wsl.zoo.fletcher import MODULUS, WIDTH, Fletcher32


def by_definition(chunk: np.ndarray) -> tuple[int, int]:
    first = second = 0
    for word in np.frombuffer(chunk.tobytes(), dtype=">u2").tolist():
        first = (first + word) % MODULUS
        second = (second + first) % MODULUS
    return first, second


@pytest.mark.parametrize("words", [1, 2, 511, 512, 513, 5000])
@pytest.mark.parametrize("kind", ["random", "largest", "zero"])
@pytest.mark.parametrize("compiled", [True, False])
def test_it_is_the_definition(words: int, kind: str, compiled: bool) -> None:
    values = {"random": np.random.default_rng(words).integers(0, 2**32, words), "largest": 2**32 - 1, "zero": 0}[kind]
    chunk = np.full(words, values).astype(np.uint32)
    assert Fletcher32(5000, compiled).sums(chunk) == by_definition(chunk)


@pytest.mark.parametrize("compiled", [True, False])
def test_the_largest_chunk_does_not_overflow(compiled: bool) -> None:
    words = WIDTH * WIDTH
    chunk = np.full(words, 0xFFFEFFFE, np.uint32)  # every 16-bit word is −1
    n = 2 * words
    expected = (-n * 256) % MODULUS, (-n * (n + 1) // 2 * 256) % MODULUS
    assert Fletcher32(words, compiled).sums(chunk) == expected
    with pytest.raises(ValueError, match=str(words)):
        Fletcher32(words + 1)


def test_it_is_what_hdf5_stores_and_sees_every_flipped_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=1001).astype(np.float32)
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file.create_dataset("x", data=values, chunks=(1001,), fletcher32=True)
        _, raw = file["x"].id.read_direct_chunk((0,))
    words, stored = np.frombuffer(raw[:-4], np.uint32).copy(), int.from_bytes(raw[-4:], "little")
    check = Fletcher32(1001)
    assert check.matches(words, stored)
    for bit in range(0, 1001 * 32, 37):
        words[bit // 32] ^= np.uint32(1 << bit % 32)
        assert not check.matches(words, stored)
        words[bit // 32] ^= np.uint32(1 << bit % 32)
    assert check.matches(words, stored)
