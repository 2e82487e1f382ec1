"""Archives: good ones give what the folder gives, hostile ones leave nothing outside."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from published_layouts import write_fashion_inrs

from wsl.zoo import Zoo, ZooError
from wsl.zoo.importers.archive import unpacked

ROOT = Path(__file__).parents[2]


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, members: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] = lambda i: None) -> Path:
    with tarfile.open(path, "w:xz" if path.suffix == ".xz" else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            change(info)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("make", [zipped, tarred])
@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.xz"])
def test_unpacks_beside_the_target_and_cleans_up(tmp_path: Path, make: Callable[..., Path], suffix: str) -> None:
    content = {"a/b.txt": b"one", "a/c/d.bin": os.urandom(3_000_000), "e": b""}
    archive = make(tmp_path / f"x{suffix}", content)
    told: list[tuple[int, int]] = []
    with unpacked(archive, tmp_path / "out" / "z.h5", lambda done, total: told.append((done, total))) as folder:
        assert folder.parent == tmp_path / "out"
        assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == content
    assert list((tmp_path / "out").iterdir()) == [] and told[-1] == (3_000_003, 3_000_003)


def test_a_folder_is_itself(tmp_path: Path) -> None:
    with unpacked(tmp_path, tmp_path / "z.h5") as folder:
        assert folder == tmp_path
    assert list(tmp_path.iterdir()) == []


def zip_link(path: Path) -> Path:
    info = zipfile.ZipInfo("a/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return path


def kind(value: bytes, target: str = "") -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = value, target, 0

    return change


def lying(path: Path) -> Path:
    """A zip that says 100 bytes where it holds three million."""
    zipped(path, {"bomb": bytes(3_000_000)})
    data = bytearray(path.read_bytes())
    for signature, where in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(signature) + where
        data[at : at + 4] = (100).to_bytes(4, "little")
    path.write_bytes(data)
    return path


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "parent": (lambda p: zipped(p, {"a/../../evil": b"x"}), "'a/../../evil' leads out of the archive"),
    "absolute": (lambda p: zipped(p, {"/tmp/evil": b"x"}), "'/tmp/evil' leads out"),
    "backslash": (lambda p: tarred(p, {"..\\evil": b"x"}), "leads out"),
    "drive": (lambda p: tarred(p, {"C:evil": b"x"}), "leads out"),
    "parent in tar": (lambda p: tarred(p, {"../evil": b"x"}), "leads out"),
    "zip symlink": (zip_link, "'a/link' is a symbolic link"),
    "symlink": (lambda p: tarred(p, {"l": b""}, kind(tarfile.SYMTYPE, "/etc")), "'l' is a link"),
    "hard link": (lambda p: tarred(p, {"l": b""}, kind(tarfile.LNKTYPE, "/etc/passwd")), "'l' is a link"),
    "device": (lambda p: tarred(p, {"d": b""}, kind(tarfile.CHRTYPE)), "'d' is a special file"),
    "fifo": (lambda p: tarred(p, {"f": b""}, kind(tarfile.FIFOTYPE)), "'f' is a special file"),
    "same name": (lambda p: tarred(p, {"A/x": b"1", "a/X": b"2"}), "'A/x' and 'a/X' would be one file"),
    "bomb": (lambda p: zipped(p, {"b": bytes(2**27 + 2**20)}), "unpacks to 135,266,304 bytes"),
    "lying": (lying, "damaged or cut short|larger than it says"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives(tmp_path: Path, name: str) -> None:
    make, message = HOSTILE[name]
    inner = tmp_path / "deep" / "inner"
    inner.mkdir(parents=True)
    archive = make(tmp_path / "x.zip")
    with pytest.raises(ZooError, match=message), unpacked(archive, inner / "z.h5"):
        pass
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [archive] and list(inner.iterdir()) == []


def test_sizes_are_limited(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "x.zip", {"a": os.urandom(2000)})
    with (
        pytest.raises(ZooError, match=r"unpacks to 2,000 bytes \(at most 1,000"),
        unpacked(archive, tmp_path / "z.h5", largest=1000),
    ):
        pass


@pytest.mark.parametrize("make", [zipped, tarred])
def test_partial_downloads(tmp_path: Path, make: Callable[..., Path]) -> None:
    archive = make(tmp_path / "x.tar.xz", {"a": os.urandom(50_000), "b": os.urandom(50_000)})
    archive.write_bytes(archive.read_bytes()[:70_000])
    with pytest.raises(ZooError, match=r"x.tar.xz: .*(cut short|damaged)"), unpacked(archive, tmp_path / "z.h5"):
        pass
    assert list(tmp_path.iterdir()) == [archive]
    with pytest.raises(ZooError, match="no such folder or archive"), unpacked(tmp_path / "no.zip", tmp_path / "z.h5"):
        pass


def test_the_script_on_an_archive(tmp_path: Path) -> None:
    write_fashion_inrs(tmp_path / "s")
    members = {p.relative_to(tmp_path / "s").as_posix(): p.read_bytes() for p in (tmp_path / "s").rglob("*.*")}
    archive = zipped(tmp_path / "fmnist_inrs.zip", {name: content for name, content in members.items() if "." in name})
    command = [sys.executable, str(ROOT / "scripts/import_zoo.py"), "dwsnets", str(archive), str(tmp_path / "z.h5")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    zoo = Zoo(tmp_path / "z.h5")
    assert len(zoo) == 8 and "writing" in done.stderr
    assert zoo.recipe["import"] == {"format": "dwsnets", "source": "fmnist_inrs.zip"}
    again = subprocess.run(command, capture_output=True, text=True, env=env)
    assert again.returncode == 1 and again.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "exists already" in again.stderr and "Traceback" not in again.stderr
