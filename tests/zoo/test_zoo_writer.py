"""A zoo is complete and right, or it is not there: nothing half-written, nothing lost."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from zoo_files import ROWS, SIREN, rows_of, write_inr_zoo, write_mixed_zoo

from wsl.spec import mlp_spec
from wsl.zoo import Zoo, ZooError, ZooWriter


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    one = write_inr_zoo(tmp_path / "one.h5", block=60).read_bytes()
    time.sleep(1.1)  # HDF5 keeps times in seconds
    assert write_inr_zoo(tmp_path / "two.h5", block=7).read_bytes() == one
    other = write_inr_zoo(tmp_path / "other.h5", rows_of(SIREN, ROWS, seed=1))
    assert other.read_bytes() != one and Zoo(other).digest != Zoo(tmp_path / "one.h5").digest
    mixed = [write_mixed_zoo(tmp_path / name)[0].read_bytes() for name in ("m1.h5", "m2.h5")]
    assert mixed[0] == mixed[1]


def _fill(writer: ZooWriter, rows: int = 6) -> None:
    writer.write(0, rows_of(writer.specs[0], rows))


CONTRADICTIONS: list[tuple[str, Callable[[ZooWriter], Any], str]] = [
    ("incomplete", lambda w: w.write(0, rows_of(SIREN, 4)), "2 of 6 rows were not written, the first is 4"),
    ("twice", lambda w: (_fill(w), w.write(5, rows_of(SIREN, 1))), "row 5 was written before"),
    ("too long", lambda w: w.write(4, rows_of(SIREN, 3)), r"block of shape \(3, 59\) at row 4 does not fit 6 rows"),
    ("other P", lambda w: w.write(0, np.zeros((2, 58))), r"shape \(2, 58\) at row 0 does not fit 6 rows with P = 59"),
    ("negative", lambda w: w.write(-1, rows_of(SIREN, 1)), "at row -1 does not fit"),
    ("integers", lambda w: w.write(0, np.zeros((1, 59), int)), "must be floating point, got int64"),
    ("infinite", lambda w: w.write(2, rows_of(SIREN, 2) * np.float32(1e39)), "row 2 holds"),
    ("column length", lambda w: w.set_columns({"label": [1, 2]}), r"column 'label' has shape \(2,\), expected \(6,\)"),
    ("objects", lambda w: w.set_columns({"a": np.array([{}] * 6)}), "column 'a' is object; use integers"),
    ("long text", lambda w: w.set_columns({"a": ["x" * 2000] * 6}), "strings of at most 1024"),
    ("column name", lambda w: w.set_columns({"../a": [0] * 6}), r"column name '../a' must be letters"),
    ("split name", lambda w: w.set_splits({"": [0]}), "split name '' must be letters"),
    ("run ids", lambda w: w.set_run_ids([1, 2]), r"\(2,\) run ids for 6 rows"),
    ("outside", lambda w: (_fill(w), w.set_splits({"train": [0, 6]})), "split 'train' names row 6; rows are 0 to 5"),
    ("empty", lambda w: (_fill(w), w.set_splits({"val": []})), "split 'val' is empty"),
    ("repeat", lambda w: (_fill(w), w.set_splits({"a": [0, 1, 1]})), "row 1 is in split 'a' and again in 'a'"),
    (
        "overlap",
        lambda w: (_fill(w), w.set_splits({"a": [0, 1], "b": [3, 1]})),
        "row 1 is in split 'a' and again in 'b'",
    ),
    (
        "straddling run",
        lambda w: (_fill(w), w.set_run_ids([0, 0, 1, 1, 2, 2]), w.set_splits({"a": [0, 1, 2], "b": [3, 4]})),
        "rows 2 and 3 of run 1 are in two splits; split by run",
    ),
    ("images", lambda w: w.set_images(np.zeros((2, 4, 4), np.uint8)), r"images must be uint8 \[n_images, pixels\]"),
]


@pytest.mark.parametrize(("fault", "message"), [c[1:] for c in CONTRADICTIONS], ids=[c[0] for c in CONTRADICTIONS])
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_contradictions_are_refused_and_leave_nothing(
    tmp_path: Path, fault: Callable[[ZooWriter], Any], message: str
) -> None:
    with (
        pytest.raises(ZooError, match=message) as caught,
        ZooWriter(tmp_path / "z.h5", SIREN, 6, {}) as writer,
    ):
        fault(writer)
    assert str(tmp_path / "z.h5") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((SIREN,), 0, {}), "got 0 rows"),
        (((), 3, {}), "at least one row, one spec"),
        ((SIREN, 3, {"rate": float("nan")}), "recipe is no plain JSON"),
        ((SIREN, 3, {"path": Path("a")}), "recipe is no plain JSON"),
        (((SIREN, mlp_spec((1, 1))), 3, {}), "with 2 specs, pass spec_ids"),
        (((SIREN, mlp_spec((1, 1))), 3, {}, False, [0, 0, 0]), "each of the 2 specs used"),
        (((SIREN, mlp_spec((1, 1))), 3, {}, False, [0, 2, 1]), "each of the 2 specs used"),
    ],
)
def test_impossible_zoos_are_refused(tmp_path: Path, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        ZooWriter(tmp_path / "z.h5", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_flat_blocks_must_have_the_lengths_of_their_specs(tmp_path: Path) -> None:
    other = mlp_spec((1, 1))
    for block, lengths in ((SIREN.numel + 2, [2, SIREN.numel]), (SIREN.numel + 1, None), (SIREN.numel, [1])):
        with (
            pytest.raises(ZooError, match="the lengths that spec_ids gives"),
            ZooWriter(tmp_path / "z.h5", (SIREN, other), 3, {}, spec_ids=[0, 1, 0]) as writer,
        ):
            writer.write(0, np.zeros(block, np.float32), lengths)


def test_an_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "z.h5"
    path.write_text("precious")
    with pytest.raises(ZooError, match="exists already; delete it"):
        ZooWriter(path, SIREN, 6, {})
    with pytest.raises(ZooError, match="rows were not written"), ZooWriter(path, SIREN, 6, {}, overwrite=True):
        pass
    assert path.read_text() == "precious" and list(tmp_path.iterdir()) == [path]
    path.unlink()
    with pytest.raises(ZooError, match="exists already"), ZooWriter(path, SIREN, 6, {}) as writer:
        _fill(writer)
        path.write_text("came in between")
    assert path.read_text() == "came in between" and list(tmp_path.iterdir()) == [path]


def test_an_exception_of_the_caller_passes_through(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ZooWriter(tmp_path / "z.h5", SIREN, 6, {}) as writer:
        _fill(writer)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZooError, match="the writer is closed"):
        writer.write(0, rows_of(SIREN, 1)[:0])


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match=r"file/z\.h5: cannot be written .*a file stands where"):
        ZooWriter(tmp_path / "file" / "z.h5", SIREN, 6, {})
    with pytest.raises(ZooError, match=r"missing/z\.h5: cannot be written \(No such file or directory\)"):
        ZooWriter(tmp_path / "missing" / "z.h5", SIREN, 6, {})
    with pytest.raises(ZooError, match="is a folder; give the path of a file in it"):
        ZooWriter(tmp_path, SIREN, 6, {}, overwrite=True)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(h5py.File, "__init__", refuse)
    with pytest.raises(ZooError, match=r"cannot be written \(Permission denied\); check that the folder exists"):
        ZooWriter(tmp_path / "z.h5", SIREN, 6, {})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fills_up_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = tmp_path / "z.h5"
    path.write_text("precious")

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with (
        pytest.raises(ZooError, match=rf"cannot be written \({os.strerror(number)}\)"),
        ZooWriter(path, SIREN, 6, {}, overwrite=True) as writer,
    ):
        monkeypatch.setattr(h5py.Dataset, "__setitem__", fail)
        _fill(writer)
    assert path.read_text() == "precious" and list(tmp_path.iterdir()) == [path]


LIMITED = """
import os, resource, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from zoo_files import write_inr_zoo
from wsl.zoo import ZooError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
before = sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else []
for limit in sys.argv[2].split(","):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    try:
        write_inr_zoo(Path(sys.argv[1]), overwrite=True)
    except ZooError as error:
        print(error)
assert not before or sorted(os.listdir("/proc/self/fd")) == before, "a failed writer left descriptors open"
"""


@pytest.fixture
def paths() -> list[str]:
    tests = Path(__file__).parents[1]
    return [str(tests.parent), str(tests), str(tests / "zoo")]


def test_real_write_errors_at_any_point(tmp_path: Path, paths: list[str]) -> None:
    path = write_inr_zoo(tmp_path / "z.h5")
    before = path.read_bytes()
    limits = [int(share * len(before)) for share in (0, 0.01, 0.2, 0.5, 0.8, 0.99)]
    arguments = [str(path), ",".join(map(str, limits)), *paths]
    done = subprocess.run([sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(limits)
    assert all("z.h5: cannot be written (File too large); raise the limit on file sizes" in line for line in lines)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


KILLED = """
import sys, time
sys.path[:0] = sys.argv[2:]
from zoo_files import SIREN, rows_of
from wsl.zoo import ZooWriter
writer = ZooWriter(sys.argv[1], SIREN, 60, {}, overwrite=True)
writer.write(0, rows_of(SIREN, 30))
print("writing", flush=True)
time.sleep(120)
"""


def test_a_killed_writer_leaves_the_old_zoo_and_its_rest_goes_with_the_next(tmp_path: Path, paths: list[str]) -> None:
    path = write_inr_zoo(tmp_path / "z.h5")
    before = path.read_bytes()
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path), *paths], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"writing\n"
        assert len(list(tmp_path.iterdir())) == 2
        write_inr_zoo(path, overwrite=True)
        assert len(list(tmp_path.iterdir())) == 2, "what another process is writing must stay"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 2
    write_inr_zoo(path, overwrite=True)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
