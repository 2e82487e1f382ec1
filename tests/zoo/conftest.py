"""Fixtures of the tests of the zoo file."""

from __future__ import annotations

from pathlib import Path

import pytest
from zoo_files import write_inr_zoo


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a good INR zoo."""
    return write_inr_zoo(tmp_path_factory.mktemp("good") / "good.h5").read_bytes()


@pytest.fixture
def zoo_path(tmp_path: Path, good: bytes) -> Path:
    """A good INR zoo, to plant faults in."""
    path = tmp_path / "zoo.h5"
    path.write_bytes(good)
    return path
