"""Run folders: names that do not meet, one owner, nothing left behind by a failed start."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

import pytest

from wsl import run_folder
from wsl.run_folder import RunFolderError, create, owned, write_text


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


def test_a_full_disk_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is the first thing that is."""

    class Full(FileIO):
        def write(self, content: object) -> int:
            raise OSError(28, "No space left on device")

    folder = create(tmp_path, "x")
    monkeypatch.setattr(run_folder, "open", lambda path, mode, buffering: Full(path, "a+"), raising=False)
    with (
        pytest.raises(RunFolderError, match=r"into the run folder .*: No space left on device; free space"),
        owned(folder),
    ):
        raise AssertionError("the folder is not ours")
    assert not folder.exists()


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("")
    with pytest.raises(RunFolderError, match=r"README\.md/table\.md: Not a directory; name a folder"):
        write_text(tmp_path / "README.md" / "table.md", "")
