"""Bad input of importers: what is refused, what can be left out, and that nothing is lost."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from published_layouts import mnist_splits, siren_state, write_mnist_inrs, write_small_cnn_zoo
from torch import nn

from wsl.errors import UserError
from wsl.spec import mlp_spec
from wsl.state_dict.tensors import collected
from wsl.zoo import Zoo, ZooError
from wsl.zoo.importers import Network, Policies, Source, import_zoo
from wsl.zoo.importers.dwsnets import dwsnets
from wsl.zoo.importers.small_cnn_zoo import small_cnn_zoo
from wsl.zoo.verify import verify_zoo

ROOT = Path(__file__).parents[2]
QUARANTINE = Policies(faulty="quarantine")
OPTIONS = {"format": "test", "source": "mini"}


@pytest.fixture
def inrs(tmp_path: Path) -> Path:
    """A good source of ten INRs with a split file."""
    states = write_mnist_inrs(tmp_path / "source")
    mnist_splits(states, tmp_path / "source" / "mnist_splits.json")
    return tmp_path / "source"


def network_file(source: Path, image: int) -> Path:
    return source / f"mnist-inrs/mnist_png_training_{image}_{image}/checkpoints/model_final.pth"


def opened(source: Path) -> Source:
    return dwsnets(source, source / "mnist_splits.json")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def with_state(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    return spoil


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "1 damaged or unfit.*cannot be read: PytorchStreamReader"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read: EOFError"),
    "text": (lambda path: path.write_bytes(b"<html>Too many requests"), "cannot be read"),
    "no tensors": (lambda path: torch.save([1, 2], path), "no state dict but a list"),
    "nan": (
        with_state(lambda s: s["seq.1.weight"].fill_(float("nan"))), "1 not finite.*'seq.1.weight' holds nan",
    ),
    "infinity": (with_state(lambda s: s["seq.2.bias"].fill_(float("inf"))), "'seq.2.bias' holds inf"),
    "shape": (
        with_state(lambda s: s.update({"seq.1.bias": torch.zeros(9)})), r"'seq.1.bias' should be \(3,\), is \(9,\)",
    ),
    "missing tensor": (with_state(lambda s: s.__delitem__("seq.1.bias")), "'seq.1.bias' should be .*, is missing"),
    "more tensors": (with_state(lambda s: s.update({"seq.3.bias": torch.zeros(1)})), r"holds \['seq.3.bias'\], which"),
    "gone": (lambda path: shutil.rmtree(path.parent.parent), "1 missing.*listed, but not in the source"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_network_is_refused_or_left_out(inrs: Path, tmp_path: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    spoil(network_file(inrs, 3))
    out = tmp_path / "z.h5"
    with pytest.raises(ZooError, match=rf"(?s){message}.*--faulty quarantine") as raised:
        import_zoo(opened(inrs), out, OPTIONS)
    assert "mnist_png_training_3_3/checkpoints/model_final.pth" in str(raised.value)
    assert list(tmp_path.iterdir()) == [inrs], "a refused import leaves nothing behind"
    source = opened(inrs)
    import_zoo(source, out, OPTIONS, QUARANTINE)
    zoo = Zoo(out)
    assert len(zoo) == 9 and sum(map(len, zoo.splits.values())) == 9
    assert [(f["name"], str(tmp_path) in f["reason"]) for f in zoo.recipe["left_out"]] == [
        ("mnist_png_training_3_3/checkpoints/model_final.pth", False)
    ]
    assert zoo.recipe["policies"]["faulty"] == "quarantine"
    assert 3 not in zoo.column("source_index")[zoo.column("source") == 0]
    names = [n for n in source.names if "training_3_3" not in n]
    for split, rows in zoo.splits.items():
        expected = [source.names[i] for i in source.splits[split] if "training_3_3" not in source.names[i]]
        assert [names[row] for row in rows] == expected
    assert all(check.status != "FAILED" for check in verify_zoo(out))


def test_labels_out_of_range(inrs: Path, tmp_path: Path) -> None:
    old = inrs / "mnist-inrs" / "mnist_png_training_4_4"
    old.rename(old.with_name("mnist_png_training_10_4"))
    split = inrs / "mnist_splits.json"
    split.write_text(split.read_text().replace("mnist_png_training_4_4", "mnist_png_training_10_4"))
    with pytest.raises(ZooError, match=r"(?s)1 label out of range:\n  mnist_png_training_10_4.*label is 10: 0 to 9"):
        import_zoo(opened(inrs), tmp_path / "z.h5", OPTIONS)
    import_zoo(opened(inrs), tmp_path / "z.h5", OPTIONS, QUARANTINE)
    assert len(Zoo(tmp_path / "z.h5")) == 9


def test_duplicates(inrs: Path, tmp_path: Path) -> None:
    test_network = inrs / "mnist-inrs/mnist_png_testing_1_1/checkpoints/model_final.pth"
    shutil.copy(network_file(inrs, 0), test_network)
    out = tmp_path / "z.h5"
    message = r"(?s)1 duplicate:\n  mnist_png_testing_1_1.*the same weights as mnist_png_training_0_0.*--duplicates"
    with pytest.raises(ZooError, match=message):
        import_zoo(opened(inrs), out, OPTIONS, QUARANTINE)
    import_zoo(opened(inrs), out, OPTIONS, Policies(duplicates="quarantine"))
    zoo = Zoo(out)
    assert len(zoo) == 9 and len(zoo.splits["test"]) == 2 and zoo.recipe["duplicates"] == 1
    import_zoo(opened(inrs), out, OPTIONS, Policies(duplicates="keep", overwrite=True))
    assert len(Zoo(out)) == 10 and Zoo(out).recipe["left_out"] == []
    assert {c.name for c in verify_zoo(out) if c.status == "FAILED"} == {"no copies across splits"}


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("the payload ran",)


@pytest.mark.parametrize("legacy", [False, True])
def test_files_that_could_run_code_are_always_refused(
    inrs: Path, tmp_path: Path, legacy: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": Bomb()}, network_file(inrs, 2), _use_new_zipfile_serialization=not legacy)
    for policies in (Policies(), QUARANTINE):
        with pytest.raises(UserError, match=r"training_2_2/.*holds more than tensors.*scripts/convert_checkpoint.py"):
            import_zoo(opened(inrs), tmp_path / "z.h5", OPTIONS, policies)
    assert "payload" not in capsys.readouterr().out


def test_the_offline_converter_takes_tensors_and_runs_nothing(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    network.register_buffer("scale", torch.ones(2))
    torch.save({"model": network, "bomb": Bomb(), "epoch": 3}, tmp_path / "whole.pt")
    command = [sys.executable, str(ROOT / "scripts/convert_checkpoint.py"), str(tmp_path / "whole.pt")]
    command += [str(tmp_path / "state.safetensors"), "--under", "model"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and "payload" not in done.stdout + done.stderr, done.stderr
    found = safetensors.torch.load_file(tmp_path / "state.safetensors")
    assert {n: t.tolist() for n, t in found.items()} == {n: t.tolist() for n, t in network.state_dict().items()}
    torch.save({"a": [1, 2]}, tmp_path / "none.pt")
    with pytest.raises(UserError, match=r"none.pt: holds no tensors"):
        collected(tmp_path / "none.pt")
    truncate(tmp_path / "whole.pt")
    with pytest.raises(UserError, match=r"whole.pt cannot be read"):
        collected(tmp_path / "whole.pt")


class Command:
    """Runs a command of the system when it is unpickled, which no reader takes for a record either."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo the payload ran",)


def test_what_the_converter_refuses(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3), tmp_path / "module.pt")
    torch.save({"model": Command(), "w": torch.ones(2)}, tmp_path / "evil.pt")
    (tmp_path / "file").write_text("")
    for source, target, message in (
        ("evil.pt", "x.safetensors", r"evil.pt cannot be converted: .*save the state dict alone .*where it was made"),
        ("module.pt", "none/x.safetensors", r"none/x.safetensors: cannot be written \(No such file"),
        ("module.pt", "file/x.safetensors", r"file/x.safetensors: cannot be written .*a file stands where"),
    ):
        command = [sys.executable, str(ROOT / "scripts/convert_checkpoint.py"), str(tmp_path / source)]
        done = subprocess.run(
            [*command, str(tmp_path / target)], capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 1 and re.match(rf"error: \S*{message}", done.stderr), done.stderr
        assert "payload" not in done.stdout and "scripts/convert_checkpoint" not in done.stderr
        assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.pt", "file", "module.pt"]


# -- tables and arrays ------------------------------------------------------------------------------------------------


def cut_metrics(folder: Path) -> None:
    text = gzip.decompress((folder / "metrics.csv.gz").read_bytes()).splitlines(keepends=True)
    (folder / "metrics.csv.gz").write_bytes(gzip.compress(b"".join(text[:-1])))


TABLES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated weights": (lambda f: truncate(f / "weights.npy"), "weights.npy: missing or truncated"),
    "pickled weights": (
        lambda f: np.save(f / "weights.npy", np.array([{}], dtype=object)), "weights.npy: missing or truncated",
    ),
    "no weights": (lambda f: (f / "weights.npy").unlink(), "weights.npy: missing or truncated"),
    "integers": (lambda f: np.save(f / "weights.npy", np.zeros((3, 4), int)), "expected floats .* got int64"),
    "truncated metrics": (lambda f: truncate(f / "metrics.csv.gz"), "metrics.csv.gz: missing or truncated"),
    "short metrics": (cut_metrics, "has 89 lines, weights.npy 90 rows; one of them is not complete"),
    "layout of another zoo": (
        lambda f: (f / "layout.csv").write_text((f / "layout.csv").read_text().rsplit("sequential", 1)[0]),
        "layout.csv: layer 'sequential/dense' has",
    ),
    "layout with code": (
        lambda f: (f / "layout.csv").write_text("varname,start_idx,end_idx,shape\na/bias:0,0,1,__import__('os')\n"),
        "layout.csv: missing or damaged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", TABLES)
def test_damaged_tables(tmp_path: Path, fault: str) -> None:
    write_small_cnn_zoo(tmp_path)
    spoil, message = TABLES[fault]
    spoil(tmp_path)
    with pytest.raises(ZooError, match=message):
        small_cnn_zoo(tmp_path)


def test_rows_that_are_not_finite_keep_the_published_splits_of_the_others(tmp_path: Path) -> None:
    truth = write_small_cnn_zoo(tmp_path)
    truth["weights"][8, 5] = np.nan
    np.save(tmp_path / "weights.npy", truth["weights"])
    source = small_cnn_zoo(tmp_path, tmp_path / "cifar10_split.csv")
    with pytest.raises(ZooError, match=r"weights.npy row 8: 'conv.0.weight' holds nan"):
        import_zoo(source, tmp_path / "z.h5", OPTIONS)
    import_zoo(source, tmp_path / "z.h5", OPTIONS, QUARANTINE)
    zoo, rows = Zoo(tmp_path / "z.h5"), source.columns["source_row"]
    for name, index in source.splits.items():
        expected = [row for row in rows[index].tolist() if row != 8]
        assert zoo.column("source_row")[zoo.splits[name]].tolist() == expected


SPLITS: dict[str, tuple[Any, str]] = {
    "twice": ({"train": ["a_1_1/c/m.pth"], "val": ["x/a_1_1/c/m.pth"]}, "is in split 'train' and again in 'val'"),
    "numbers": ({"train": [1, 2]}, "train should be a list of paths"),
    "list": (["a"], "no split file"),
}


@pytest.mark.parametrize("fault", SPLITS)
def test_damaged_split_files(inrs: Path, fault: str) -> None:
    content, message = SPLITS[fault]
    (inrs / "mnist_splits.json").write_text(json.dumps(content))
    with pytest.raises(ZooError, match=message):
        opened(inrs)
    (inrs / "mnist_splits.json").write_text('{"train": {"path"')
    with pytest.raises(ZooError, match="cannot be read as JSON"):
        opened(inrs)


def test_paths_of_a_split_file_open_nothing(inrs: Path, tmp_path: Path) -> None:
    outside = tmp_path / "mnist_png_training_1_77" / "checkpoints"
    outside.mkdir(parents=True)
    torch.save(siren_state(5), outside / "model_final.pth")
    content = json.loads((inrs / "mnist_splits.json").read_text())
    content["train"]["path"].append(str(outside / "model_final.pth"))
    (inrs / "mnist_splits.json").write_text(json.dumps(content))
    assert opened(inrs).missing == ["mnist_png_training_1_77/checkpoints/model_final.pth"]


# -- targets ----------------------------------------------------------------------------------------------------------


def test_a_target_that_exists_stays(inrs: Path, tmp_path: Path) -> None:
    out = tmp_path / "z.h5"
    out.write_bytes(b"something else")
    with pytest.raises(ZooError, match=r"exists already; .* --overwrite of scripts/import_zoo\.py, overwrite=True in"):
        import_zoo(opened(inrs), out, OPTIONS)
    truncate(network_file(inrs, 1))
    with pytest.raises(ZooError, match="damaged or unfit"):
        import_zoo(opened(inrs), out, OPTIONS, Policies(overwrite=True))
    assert out.read_bytes() == b"something else"
    import_zoo(opened(inrs), out, OPTIONS, Policies("quarantine", overwrite=True))
    assert len(Zoo(out)) == 9 and sorted(tmp_path.iterdir()) == [inrs, out]


HOLDER = """
import sys
from pathlib import Path
from wsl.zoo.build.work_folder import WorkFolder
with WorkFolder(Path(sys.argv[1]), {"any": 1}) as folder:
    print("held", flush=True)
    sys.stdin.read()
    folder.remove()
"""


def test_two_on_one_target(inrs: Path, tmp_path: Path) -> None:
    out = tmp_path / "z.h5"
    command = [sys.executable, "-c", HOLDER, str(out)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as other:
        assert other.stdout is not None and other.stdin is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(ZooError, match=f"process {other.pid} is building this zoo"):
            import_zoo(opened(inrs), out, OPTIONS)
        other.stdin.close()
    import_zoo(opened(inrs), out, OPTIONS)
    assert len(Zoo(out)) == 10 and sorted(tmp_path.iterdir()) == [inrs, out]


def test_an_unfinished_build_is_not_touched(inrs: Path, tmp_path: Path) -> None:
    partial = tmp_path / "z.h5.partial"
    partial.mkdir()
    (partial / "recipe.json").write_text('{"config": 1}')
    (partial / "block_000000.npz").write_bytes(b"hours of work")
    with pytest.raises(ZooError, match="holds the unfinished zoo of another recipe"):
        import_zoo(opened(inrs), tmp_path / "z.h5", OPTIONS)
    assert (partial / "block_000000.npz").read_bytes() == b"hours of work"


def test_a_disk_that_fills_up(inrs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("wsl.zoo.temporary._sync", full)
    with pytest.raises(ZooError, match=r"No space left on device.*free some space"):
        import_zoo(opened(inrs), tmp_path / "z.h5", OPTIONS)
    assert list(tmp_path.iterdir()) == [inrs]


LIMITED = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))
from wsl.zoo import ZooError
from wsl.zoo.importers import import_zoo
from wsl.zoo.importers.dwsnets import dwsnets
try:
    import_zoo(dwsnets(Path(sys.argv[1]), val=2), Path(sys.argv[2]), {"format": "test"})
except ZooError as error:
    print(error)
"""


def test_the_file_system_refuses_to_write_more(inrs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(inrs), str(tmp_path / "z.h5")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert "cannot be written (File too large); raise the limit" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == [inrs]


def test_a_source_that_changes_meanwhile(inrs: Path, tmp_path: Path) -> None:
    def meddle(what: str, done: int, total: int) -> None:
        if what == "checking" and done == total:
            torch.save(siren_state(999), network_file(inrs, 1))

    with pytest.raises(ZooError, match=r"training_1_1.*changed while it was imported"):
        import_zoo(opened(inrs), tmp_path / "z.h5", OPTIONS, progress=meddle)
    assert list(tmp_path.iterdir()) == [inrs]


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    spec = mlp_spec((8, 250, 8), "relu")

    def peak(rows: int) -> int:
        def read(number: int) -> Network:
            return Network(spec, np.arange(spec.numel, dtype=np.float32) + number)

        runs = np.arange(rows)
        source = Source(tmp_path, {}, [f"row {n}" for n in range(rows)], read, runs, {"train": runs})
        tracemalloc.start()
        import_zoo(source, tmp_path / f"{rows}.h5", OPTIONS)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    small, large = peak(1500), peak(4500)  # both more than the blocks that are read and written at once
    assert large - small < 0.1 * 3000 * spec.numel * 4, (small, large)
    assert small > 2**22, "the measure sees the blocks"
