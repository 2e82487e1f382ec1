"""Checkpoints: generations, full disks, and files that could run code."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from wsl.checkpoint import AtomicCheckpointIO, CheckpointError, previous_generation, read_checkpoint


def test_checkpoints_keep_a_generation_and_fall_back(tmp_path: Path) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    for step in (1, 2):
        io.save_checkpoint({"global_step": step, "w": torch.ones(3)}, path)
    assert read_checkpoint(path)["global_step"] == 2
    assert read_checkpoint(previous_generation(path))["global_step"] == 1
    for damage in (b"", path.read_bytes()[:100]):
        path.write_bytes(damage)
        with pytest.warns(UserWarning, match="previous"):
            assert io.load_checkpoint(path)["global_step"] == 1
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"global_step": 1}, path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"last\.ckpt.*No space left"):
        io.save_checkpoint({"global_step": 2}, path)
    assert read_checkpoint(path)["global_step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own words do not say so; and what to go on with is named only if there is something."""
    io, path, save = AtomicCheckpointIO(), tmp_path / "last.ckpt", torch.save

    def broken(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(CheckpointError, match=r"unexpected pos.*make the folder writable, then start the run again"):
        io.save_checkpoint({}, path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=4096))
    with pytest.raises(CheckpointError, match=r"the disk is full.*There is none before it; free space, then start the"):
        io.save_checkpoint({}, path)
    monkeypatch.setattr(torch, "save", save)
    io.save_checkpoint({}, path)
    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(CheckpointError, match=r"The one before it is untouched; free space, then go on with resume="):
        io.save_checkpoint({}, tmp_path / "best-1.ckpt")


def test_pickles_with_code_are_refused_and_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"state_dict": Payload()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"evil\.ckpt.*safe loader"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "owned").exists()
