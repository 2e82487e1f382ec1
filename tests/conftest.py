"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("WANDB_MODE", "offline")
torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real images and graphs; tests that need it skip where it is absent.

    ``WSL_DATA`` names it; the default is ``../shared/data`` beside the checkout.
    """
    folder = Path(os.environ.get("WSL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} with image and graph data (set WSL_DATA)")
    return folder
