"""Any folder of checkpoints as a zoo: labels, views, tables, and networks that names do not explain."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from published_layouts import write_nfn_sirens
from torch import nn

from wsl.batch import WeightBatch
from wsl.execute import execute
from wsl.zoo import Zoo, ZooError
from wsl.zoo.importers import Policies, import_zoo
from wsl.zoo.importers.folder import folder
from wsl.zoo.verify import verify_zoo

OPTIONS = {"format": "test", "source": "mini"}


def write_folder(place: Path) -> dict[str, nn.Module]:
    """Two architectures in three kinds of files, with labels."""
    place.mkdir()
    networks: dict[str, nn.Module] = {}
    lines = ["file,label,accuracy,note,run,split"]
    for i in range(8):
        widths = (3, 4, 2) if i % 2 else (3, 5, 4, 2)
        layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.Tanh())][:-1]
        torch.manual_seed(i)
        network = nn.Sequential(*layers).apply(lambda m: m.reset_parameters() if isinstance(m, nn.Linear) else None)
        name = f"part{i // 4}/net{i}." + ("safetensors", "pt", "pth")[i % 3]
        (place / name).parent.mkdir(exist_ok=True)
        if name.endswith("safetensors"):
            safetensors.torch.save_file(network.state_dict(), place / name)
        else:
            torch.save(
                {"state_dict": network.state_dict(), "epoch": 1} if i == 99 else network.state_dict(), place / name
            )
        networks[name] = network
        lines.append(f"{name},{i % 3},{i / 10},n{i},{i // 2},{'train' if i < 4 else 'val' if i < 6 else 'test'}")
    (place.parent / "labels.csv").write_text("\n".join(lines) + "\n")
    return networks


def test_any_folder(tmp_path: Path) -> None:
    networks = write_folder(tmp_path / "nets")
    source = folder(tmp_path / "nets", tmp_path / "labels.csv", {"activation": "tanh"}, classes=3)
    zoo_path = import_zoo(source, tmp_path / "z.h5", OPTIONS)
    zoo = Zoo(zoo_path)
    assert len(zoo.specs) == 2 and not any(spec.verified for spec in zoo.specs)
    x = torch.randn(5, 3)
    for row, name in enumerate(source.names):
        values, _, spec = zoo.read_mixed_rows([row])
        batch = WeightBatch(zoo.specs[int(spec[0])], torch.from_numpy(values).reshape(1, -1, 1))
        with torch.no_grad():
            torch.testing.assert_close(execute(batch, x)[0], networks[name](x))
    assert zoo.column("label").tolist() == [i % 3 for i in range(8)] and zoo.column("note")[3] == "n3"
    assert zoo.column("accuracy").dtype == np.float64
    assert {name: rows.tolist() for name, rows in zoo.splits.items()} == {
        "train": [0, 1, 2, 3], "val": [4, 5], "test": [6, 7],
    }  # fmt: skip
    assert zoo.run_ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert any("weights are stored (out, in)" in note for notes in zoo.recipe["assumed"].values() for note in notes)
    assert all(check.status != "FAILED" for check in verify_zoo(zoo_path))


def test_a_folder_without_labels_is_split_by_network(tmp_path: Path) -> None:
    write_folder(tmp_path / "nets")
    zoo = Zoo(import_zoo(folder(tmp_path / "nets", val=0.25, test=2), tmp_path / "z.h5", OPTIONS))
    assert {name: len(rows) for name, rows in zoo.splits.items()} == {"train": 4, "val": 2, "test": 2}
    assert zoo.columns == () and all(g.activation != "tanh" for spec in zoo.specs for g in spec.groups)


LABELS: dict[str, tuple[Callable[[str], str], str]] = {
    "unlabelled": (
        lambda text: "\n".join(text.splitlines()[:-1]),
        "1 without a usable label:\n  part1/net7.pt: labels.csv has no line",
    ),
    "twice": (lambda text: text + text.splitlines()[-1], "line 10 names part1/net7.pt again"),
    "short line": (lambda text: text.replace(",3,", ","), "should have the columns"),
    "no file column": (lambda text: text.replace("file,", "path,"), "header 'path,label.*' lacks a column 'file'"),
    "no label at all": (
        lambda text: re.sub(r",\d,0", ",x,0", text),
        "not one of 8 files has a usable label; the first is part0/net0.safetensors: line 2 of .*: label is 'x'",
    ),
    "other files": (lambda text: text.replace("part", "p"), "not one of 8 files .*labels.csv has no line for it"),
    "leak": (lambda text: text.replace("n3,1,train", "n3,1,test"), "are of one run .* and in two splits"),
    "label": (lambda text: text.replace("part1/net5.pth,2", "part1/net5.pth,3"), "label is 3: 0 to 2"),
    "missing file": (lambda text: text + "part9/net9.pt,0,0,n,9,train\n", "1 missing:\n  part9/net9.pt"),
}


@pytest.mark.parametrize("fault", LABELS)
def test_tables_of_labels(tmp_path: Path, fault: str) -> None:
    write_folder(tmp_path / "nets")
    spoil, message = LABELS[fault]
    table = tmp_path / "labels.csv"
    before = table.read_text()
    table.write_text(spoil(before))
    assert table.read_text() != before
    with pytest.raises(ZooError, match=rf"(?s){message}"):
        import_zoo(folder(tmp_path / "nets", table, {"activation": "tanh"}, 3), tmp_path / "z.h5", OPTIONS)


BAD_LABELS = {
    "word": ("net2.pth,2,", "net2.pth,x,", "label is 'x', no integer"),
    "empty": ("net2.pth,2,", "net2.pth,,", "label is '', no integer"),
    "fraction": ("net2.pth,2,", "net2.pth,0.5,", "label is '0.5', no integer"),
    "infinite": ("net2.pth,2,", "net2.pth,inf,", "label is 'inf', no integer"),
    "too large": ("net2.pth,2,", "net2.pth,99999999999999999999,", "no integer"),
    "accuracy": ("net2.pth,2,0.2,", "net2.pth,2,good,", "accuracy is 'good', no number"),
    "no line": ("part0/net2.pth,2,0.2,n2,1,train\n", "", "labels.csv has no line for it"),
}


@pytest.mark.parametrize("fault", BAD_LABELS)
def test_one_bad_label_is_one_faulty_network(tmp_path: Path, fault: str) -> None:
    """It blames no other one, and quarantine sets only this one aside; the labels of the others are integers."""
    write_folder(tmp_path / "nets")
    old, new, reason = BAD_LABELS[fault]
    table = tmp_path / "labels.csv"
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new))
    where = "" if fault == "no line" else "line 4 of labels.csv: .*"
    with pytest.raises(
        ZooError, match=rf"of 8 networks 1 without a usable label:\n  part0/net2.pth: {where}{reason}\n"
    ):
        import_zoo(folder(tmp_path / "nets", table, {"activation": "tanh"}, 3), tmp_path / "z.h5", OPTIONS)
    source = folder(tmp_path / "nets", table, {"activation": "tanh"}, 3)
    zoo = Zoo(import_zoo(source, tmp_path / "z.h5", OPTIONS, Policies(faulty="quarantine")))
    assert [fault["name"] for fault in zoo.recipe["left_out"]] == ["part0/net2.pth"]
    assert zoo.column("label").dtype.kind == "i" and zoo.column("label").tolist() == [0, 1, 0, 1, 2, 0, 1]
    assert {name: len(rows) for name, rows in zoo.splits.items()} == {"train": 3, "val": 2, "test": 2}
    assert all(check.status != "FAILED" for check in verify_zoo(tmp_path / "z.h5"))


def test_integers_written_as_numbers_are_labels(tmp_path: Path) -> None:
    """Tables that once had a gap have ``2.0`` for 2."""
    write_folder(tmp_path / "nets")
    table = tmp_path / "labels.csv"
    table.write_text(re.sub(r",(\d),0\.", r",\1.0,0.", table.read_text()))
    assert "net2.pth,2.0,0.2" in table.read_text()
    zoo = Zoo(import_zoo(folder(tmp_path / "nets", table, {"activation": "tanh"}, 3), tmp_path / "z.h5", OPTIONS))
    assert zoo.column("label").dtype.kind == "i" and zoo.column("label").tolist() == [i % 3 for i in range(8)]


def test_networks_that_names_do_not_explain(tmp_path: Path) -> None:
    gru = nn.GRU(2, 3)
    safetensors.torch.save_file(gru.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(ZooError, match="looks like a recurrent layer"):
        import_zoo(folder(tmp_path, val=0, test=0), tmp_path / "z.h5", OPTIONS)


def test_incomplete_views_are_told(tmp_path: Path) -> None:
    write_nfn_sirens(tmp_path)
    from wsl.zoo.importers.nfn_siren import nfn_siren

    with pytest.raises(ZooError, match="holds 3 copies of each image; views=4 is too many"):
        nfn_siren(tmp_path, views=4, split_points=(5, 7))
