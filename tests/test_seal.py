"""The digest of a whole archive, in its comment."""

from __future__ import annotations

import io
import zipfile

import pytest
import torch

from wsl.seal import broken_seal, put_seal


def sealed() -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.arange(40.0)}, file)
    put_seal(file)
    return file.getvalue()


def test_torch_and_zip_readers_step_over_it() -> None:
    archive = sealed()
    assert torch.equal(torch.load(io.BytesIO(archive), weights_only=True)["weight"], torch.arange(40.0))
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.testzip() is None and opened.comment.startswith(b"wsl sha256 ")


def test_it_covers_every_byte() -> None:
    archive = sealed()
    assert not broken_seal(io.BytesIO(archive))
    name = archive.rfind(b"wsl sha256 ")
    for place in (*range(name), *range(name + 11, len(archive))):
        changed = bytearray(archive)
        changed[place] ^= 1
        assert broken_seal(io.BytesIO(changed)), place


def test_archives_without_one_are_not_broken() -> None:
    assert not broken_seal(io.BytesIO()) and not broken_seal(io.BytesIO(b"PK"))
    file = io.BytesIO()
    torch.save({"weight": torch.arange(40.0)}, file)
    assert not broken_seal(file)


@pytest.mark.parametrize("file", [sealed(), b"no archive at all"])
def test_only_archives_without_a_comment_can_have_one(file: bytes) -> None:
    with pytest.raises(ValueError, match="without a comment"):
        put_seal(io.BytesIO(file))
