"""Checkpoints and exported models that were cut off, altered, or made by somebody else."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from ranks_of_runs import ROOT, environment

import train
from wsl import build, run_config
from wsl.checkpoint import AtomicCheckpointIO, CheckpointError, previous_generation, read_checkpoint
from wsl.config import ConfigError
from wsl.errors import UserError

#: writes generation after generation, and is killed with signal 9 at the COUNT-th call of a function of os
WRITER = """
import os, signal, sys
from pathlib import Path
import torch
from wsl.checkpoint import AtomicCheckpointIO
name, count, path = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
call, calls = getattr(os, name), 0
def killed(*arguments, **options):
    global calls
    calls += 1
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return call(*arguments, **options)
setattr(os, name, killed)
for step in range(1, 5):
    AtomicCheckpointIO().save_checkpoint({"global_step": step, "w": torch.full((1000,), float(step))}, path)
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system."""
    shared_memory = Path("/dev/shm")
    if not os.access(shared_memory, os.W_OK) or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    with tempfile.TemporaryDirectory(dir=shared_memory) as folder:
        yield Path(folder)


@pytest.mark.parametrize(("name", "count"), [("fsync", 3), ("link", 2), ("replace", 4), ("replace", 5)])
def test_killed_while_writing(tmp_path: Path, name: str, count: int) -> None:
    """Whatever the moment, a whole generation is there, and no older than the one before."""
    check_killed(tmp_path / "last.ckpt", name, count)


@pytest.mark.parametrize("linked", [False, True])
def test_killed_while_writing_with_two_file_systems(tmp_path: Path, elsewhere: Path, linked: bool) -> None:
    """Temporary files or the checkpoints lie on another one; a move between the two, which is a copy, is never made."""
    folder = tmp_path / "checkpoints"
    if linked:
        folder.symlink_to(elsewhere)
        check_killed(folder / "last.ckpt", "replace", 4)
    else:
        folder.mkdir()
        check_killed(folder / "last.ckpt", "fsync", 3, TMPDIR=str(elsewhere))
        assert list(elsewhere.iterdir()) == [], "files are written where they are to be"


def check_killed(path: Path, name: str, count: int, **variables: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITER, name, str(count), str(path)], env=environment(**variables), capture_output=True,
        timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    step = read_checkpoint(path)["global_step"]
    assert step in (1, 2, 3) and torch.equal(read_checkpoint(path)["w"], torch.full((1000,), float(step)))
    AtomicCheckpointIO().save_checkpoint({"global_step": 9}, path)
    assert read_checkpoint(path)["global_step"] == 9
    assert read_checkpoint(previous_generation(path))["global_step"] == step


def test_no_flipped_byte_is_taken(tmp_path: Path) -> None:
    """Refused, headers and directory of the archive included, and the generation before it is gone on with."""
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    weights = torch.arange(400.0)
    io.save_checkpoint({"global_step": 1}, path)
    io.save_checkpoint({"global_step": 2, "w": weights}, path)
    good = path.read_bytes()
    refused = 0
    for place in range(0, len(good), max(len(good) // 120, 1)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        if good.find(b"wsl sha256 ") <= place < good.find(b"wsl sha256 ") + 11:  # without its seal, otherwise whole
            found = read_checkpoint(path)
            assert found["global_step"] == 2 and torch.equal(found["w"], weights), place
            continue
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            read_checkpoint(path)
        with pytest.warns(UserWarning, match=r"previous\.ckpt"):
            assert io.load_checkpoint(path)["global_step"] == 1
        refused += 1
    assert refused > 100


def test_what_cannot_be_removed_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "best.ckpt"
    io.save_checkpoint({"global_step": 1}, path)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pytorch_lightning.plugins.io.TorchCheckpointIO.remove_checkpoint", refused)
    with pytest.warns(UserWarning, match=r"best\.ckpt: Permission denied"):
        io.remove_checkpoint(path)
    assert path.exists()


def test_no_variable_of_the_environment_makes_loading_unsafe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"state_dict": Payload()}, tmp_path / "evil.ckpt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CheckpointError, match="evil"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "owned").exists()


@pytest.fixture(scope="module")
def exported(small_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    fixed = [f"data.path={small_zoo}", "data.build=''", "compare=[]", "encoder=statnn", "logger=csv"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        train.run(run_config.config(compose("train", [*fixed, "trainer=debug", "trainer.progress=none"])), folder)
    return folder


DAMAGES = {
    "cut": "", "empty": "", "long header": "", "overlap": "", "shape": "",
    "other model": r"describes:\n.*\.waight: there \[.*in this model absent\n.*\.weight: there absent",
    "type": r"another type:\n  .*: there .* int32, in this model .* float32",
    "tensor twice": r"another type:\n  .*: there .* int32, in this model .* float32",
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_exported_weights_of_somebody_else(exported: Path, tmp_path: Path, damage: str) -> None:
    (tmp_path / "model.json").write_bytes((exported / "model.json").read_bytes())
    content = (exported / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size]
    if damage == "overlap":
        header = header.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1)
    elif damage == "shape":
        header = header.replace(b'"shape":[256', b'"shape":[257', 1)
    elif damage == "other model":
        header = header.replace(b".weight", b".waight", 1)
    elif damage == "type":
        header = header.replace(b'"dtype":"F32"', b'"dtype":"I32"', 1)
    elif damage == "tensor twice":
        name, entry = next((n, e) for n, e in json.loads(header).items() if n != "__metadata__")
        header = header.rstrip()[:-1] + f',"{name}":{json.dumps(entry | {"dtype": "I32"})}}}'.encode()
    assert damage in ("cut", "empty", "long header") or header != content[8 : 8 + size]
    changed = {"cut": content[:-5], "empty": b"", "long header": (2**40).to_bytes(8, "little") + content[8:]}
    whole = len(header).to_bytes(8, "little") + header + content[8 + size :]
    (tmp_path / "model.safetensors").write_bytes(changed.get(damage, whole))
    with pytest.raises(ConfigError, match=rf"(?s)model\.safetensors cannot be loaded.*{DAMAGES[damage]}"):
        build.exported_encoder(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b'{"spec": 3}', b"[" * 100_000, b'{"a": NaN}', b'{"a": 1, "a": 2}']
)
def test_cards_of_somebody_else(exported: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes((exported / "model.safetensors").read_bytes())
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.json"):
        build.exported_encoder(tmp_path)
