"""Run folders: names that do not meet, one owner, nothing left behind by a failed start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wsl.run_folder import RunFolderError, create, owned


def test_run_folders_of_one_second_do_not_meet(tmp_path: Path) -> None:
    made = [create(tmp_path / "runs", "x") for _ in range(5)]
    assert len(set(made)) == 5 and all(f.is_dir() for f in made)


def test_an_unusable_run_root_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file"):
        create(tmp_path / "file", "x")


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    with (
        owned(tmp_path),
        pytest.raises(RunFolderError, match=rf"process {os.getpid()} on .* since \d{{4}}-"),
        owned(tmp_path),
    ):
        pass
    with owned(tmp_path):
        pass


def test_a_failed_start_leaves_no_empty_folder(tmp_path: Path) -> None:
    folder = create(tmp_path, "x")
    with pytest.raises(ValueError), owned(folder):
        raise ValueError
    assert not folder.exists()
