"""Every published layout in miniature: imported networks do what the plain ones do, in the published splits."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_layouts import (
    STEPS,
    mnist_splits,
    run_keras,
    run_siren,
    write_fashion_inrs,
    write_mnist_inrs,
    write_modelzoo,
    write_nfn_sirens,
    write_small_cnn_zoo,
    write_wild_park,
)
from torch import Tensor

from wsl.batch import WeightBatch
from wsl.execute import execute
from wsl.zoo import Zoo, ZooError
from wsl.zoo.coordinates import grid
from wsl.zoo.importers import Policies, Source, import_zoo
from wsl.zoo.importers.cnn_wild_park import cnn_wild_park
from wsl.zoo.importers.dwsnets import dwsnets
from wsl.zoo.importers.modelzoo import modelzoo
from wsl.zoo.importers.nfn_siren import nfn_siren
from wsl.zoo.importers.small_cnn_zoo import small_cnn_zoo
from wsl.zoo.verify import verify_zoo


def imported(source: Source, out: Path, **policies: Any) -> Zoo:
    """The zoo, after every check of it has passed."""
    import_zoo(source, out, {"format": "test", "source": "mini"}, Policies(**policies))
    failed = [check for check in verify_zoo(out) if check.status == "FAILED"]
    assert not failed, failed
    assert not list(out.parent.glob(f"{out.name}.partial"))
    return Zoo(out)


def output(zoo: Zoo, row: int, inputs: Tensor) -> Tensor:
    values, _, spec_ids = zoo.read_mixed_rows([row])
    spec = zoo.specs[int(spec_ids[0])]
    return execute(WeightBatch(spec, torch.from_numpy(values).reshape(1, -1, 1)), inputs)[0]


def names_in(source: Source, split: str) -> list[str]:
    return [source.names[n] for n in source.splits[split].tolist()]


@pytest.mark.parametrize("with_file", [True, False])
def test_mnist_inrs(tmp_path: Path, with_file: bool) -> None:
    states = write_mnist_inrs(tmp_path)
    split = mnist_splits(states, tmp_path / "mnist_splits.json")
    source = dwsnets(tmp_path, tmp_path / "mnist_splits.json" if with_file else None, val=2)
    zoo = imported(source, tmp_path / "z.h5")
    assert zoo.specs[0].verified and len(zoo) == 10 and zoo.recipe["classes"] == 10
    x = torch.from_numpy(grid(28, 28))
    for row, name in enumerate(source.names):
        torch.testing.assert_close(output(zoo, row, x), run_siren(states[name], x, 0.5), atol=1e-5, rtol=0)
        part, label, image = name.split("/")[0].split("_")[2:]
        assert zoo.column("label")[row] == int(label) and zoo.column("source_index")[row] == int(image)
        assert zoo.column("source")[row] == (part == "testing")
    if with_file:
        assert {name: names_in(source, name) for name in split} == split
        assert zoo.splits["train"].tolist() == list(range(5))
    else:
        assert {name: len(rows) for name, rows in zoo.splits.items()} == {"train": 5, "val": 2, "test": 3}
        assert (zoo.column("source")[zoo.splits["test"]] == 1).all() and zoo.recipe["split"]["seed"] == 0


def test_fashion_inrs(tmp_path: Path) -> None:
    states = write_fashion_inrs(tmp_path)
    source = dwsnets(tmp_path)
    zoo = imported(source, tmp_path / "z.h5")
    assert names_in(source, "train") == [f"train/model_{i}.pth" for i in (5, 4, 3, 2)]
    assert names_in(source, "val") == ["train/model_1.pth", "train/model_0.pth"]
    for row, name in enumerate(source.names):
        assert zoo.column("label")[row] == states[name]["label"]
        expected = torch.cat([t.ravel() for key, t in states[name].items() if key != "label"])
        assert np.array_equal(zoo.read(row, row + 1)[0], expected.numpy())


@pytest.mark.parametrize("views", [0, 1, 2])
def test_nfn_sirens_and_the_glob_trap(tmp_path: Path, views: int) -> None:
    states = write_nfn_sirens(tmp_path / "siren_mnist_wts")
    source = nfn_siren(tmp_path / "siren_mnist_wts", views=views, split_points=(5, 7))
    zoo = imported(source, tmp_path / "z.h5")
    copies = views or 3
    assert len(zoo) == 9 + 5 * (copies - 1)
    image, view = zoo.column("image_index"), zoo.column("view")
    here, there = torch.from_numpy(grid(4, 4)), torch.from_numpy(grid(4, 4)).flip(1)
    for row, key in enumerate(zip(view.tolist(), image.tolist(), strict=True)):  # (row, column) was read, (x, y) is
        expected = run_siren(states[key], there, 0.0)
        torch.testing.assert_close(output(zoo, row, here), expected, atol=1e-5, rtol=0)
        assert zoo.column("label")[row] == key[1] % 3
    assert sorted(set(image[zoo.splits["train"]].tolist())) == [0, 1, 2, 3, 4]
    assert image[zoo.splits["val"]].tolist() == [5, 6] and image[zoo.splits["test"]].tolist() == [7, 8]
    assert len(zoo.splits["train"]) == 5 * copies


def test_nfn_sirens_with_gaps_or_other_prefixes_are_refused(tmp_path: Path) -> None:
    write_nfn_sirens(tmp_path)
    with pytest.raises(ZooError, match=r"no folder other_.*prefixes found: \['randinit_smaller'"):
        nfn_siren(tmp_path, prefix="other", split_points=(5, 7))
    with pytest.raises(ZooError, match="split points 45000 and 50000 do not divide 9"):
        nfn_siren(tmp_path)
    (tmp_path / "randinit_smaller_2s" / "net2.pth").rename(tmp_path / "randinit_smaller_0s" / "net0x.pth")
    with pytest.raises(ZooError, match=r"net0x.pth: the file should be net\{image\}.pth"):
        nfn_siren(tmp_path, split_points=(5, 7))
    (tmp_path / "randinit_smaller_0s" / "net0x.pth").unlink()
    with pytest.raises(ZooError, match=r"image 2 has no network net2.pth"):
        nfn_siren(tmp_path, split_points=(5, 7))


# -- Small CNN Zoo ----------------------------------------------------------------------------------------------------


def published_split(order: list[int], final: set[int]) -> dict[str, list[int]]:
    """The protocol of nfn, on a list."""
    rows = [row for row in order if row in final]
    half = int(0.5 * len(rows))
    first = list(range(half))
    random.Random(0).shuffle(first)
    cut = int(0.8 * half)
    return {"train": [rows[i] for i in first[:cut]], "val": [rows[i] for i in first[cut:]], "test": rows[half:]}


@pytest.fixture(scope="module")
def small_cnns(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("cifar10")
    return folder, write_small_cnn_zoo(folder)


@pytest.mark.parametrize("activation", ["both", "relu"])
@pytest.mark.parametrize("kept", ["before", "after"])
def test_small_cnn_zoo(small_cnns: tuple[Path, dict[str, Any]], tmp_path: Path, activation: str, kept: str) -> None:
    folder, truth = small_cnns
    source = small_cnn_zoo(
        folder, folder / "cifar10_split.csv", activation=activation, keep_activation=kept  # type: ignore[arg-type]
    )  # fmt: skip
    zoo = imported(source, tmp_path / "z.h5")
    final = {row for row in range(truth["rows"]) if STEPS[row % 3] == 86}
    relu = {row for row in final if truth["activations"][row // 3] == "relu"}
    mine = relu if activation == "relu" else final
    order = [0, *truth["order"]]  # the header line is read as a row, as published
    if kept == "before":
        expected = published_split(order, mine)
    else:
        expected = {name: [r for r in rows if r in mine] for name, rows in published_split(order, final).items()}
    rows = zoo.column("source_row")
    assert {name: rows[index].tolist() for name, index in zoo.splits.items()} == expected
    assert len(zoo) == len(mine) and len(zoo.specs) == (1 if activation == "relu" else 2)
    x = torch.randn(2, 1, 32, 32)
    for number, row in enumerate(rows.tolist()):
        wanted = run_keras(truth["weights"][row], truth["starts"], truth["activations"][row // 3], x)
        torch.testing.assert_close(output(zoo, number, x), wanted, atol=1e-5, rtol=1e-5)
        assert zoo.column("test_accuracy")[number] == pytest.approx(row / truth["rows"])
        assert zoo.column("activation")[number] == truth["activations"][row // 3]
    assert all(spec.verified for spec in zoo.specs)
    tanh = [s for s in zoo.specs if any(g.activation == "tanh" for g in s.groups)]
    assert all("sign" in spec.label["conv.0"].symmetries for spec in tanh)


def test_small_cnn_zoo_all_checkpoints_follow_their_run(small_cnns: tuple[Path, Any], tmp_path: Path) -> None:
    folder, truth = small_cnns
    zoo = imported(small_cnn_zoo(folder, folder / "cifar10_split.csv", step=None), tmp_path / "z.h5")
    assert len(zoo) == truth["rows"] and sum(map(len, zoo.splits.values())) == truth["rows"]
    runs = {name: {row // 3 for row in zoo.column("source_row")[index]} for name, index in zoo.splits.items()}
    final = published_split([0, *truth["order"]], {r for r in range(truth["rows"]) if STEPS[r % 3] == 86})
    assert runs == {name: {row // 3 for row in rows} for name, rows in final.items()}


def test_header_line_of_the_split_file(small_cnns: tuple[Path, Any], tmp_path: Path) -> None:
    """A repeated row 0 shifts the published halves; dropped, it does not."""
    folder, truth = small_cnns
    order = [2, *(row for row in truth["order"] if row != 2), 2]
    split = tmp_path / "split.csv"
    split.write_text("".join(f"{row}\n" for row in order))  # row 2 is a last checkpoint: first line counts twice
    final = {r for r in range(truth["rows"]) if STEPS[r % 3] == 86}
    kept, dropped = (small_cnn_zoo(folder, split, header_line=how) for how in ("keep", "drop"))  # type: ignore[arg-type]
    rows = np.array(sorted(final))
    assert {n: rows[i].tolist() for n, i in dropped.splits.items()} == published_split(order[1:], final)
    published = published_split(order, final)
    assert rows[kept.splits["test"]].tolist() == published["test"] and 2 in published["test"]
    for name in ("train", "val"):
        assert rows[kept.splits[name]].tolist() == [row for row in published[name] if row != 2]
    with pytest.raises(ZooError, match="row numbers should lie between 0 and"):
        split.write_text("99999\n")
        small_cnn_zoo(folder, split)


# -- CNN Wild Park, Model Zoos ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_file", [True, False])
def test_cnn_wild_park(tmp_path: Path, with_file: bool) -> None:
    networks = write_wild_park(tmp_path)
    if not with_file:
        (tmp_path / "cnn_park_splits.json").unlink()
    source = cnn_wild_park(tmp_path, val=1, test=2)
    zoo = imported(source, tmp_path / "z.h5")
    assert len(zoo) == 12 and len(zoo.specs) == 3 and all(spec.verified for spec in zoo.specs)
    x = torch.randn(2, 3, 8, 8)
    for row, name in enumerate(source.names):
        with torch.no_grad():
            torch.testing.assert_close(output(zoo, row, x), networks[name](x), atol=1e-5, rtol=1e-5)
        run, number = int(name.split("/")[0][-1]), int(name.split("_")[-1].split("/")[0])
        assert zoo.column("test_accuracy")[row] == pytest.approx(run / 10 + number / 100)
        assert zoo.column("step")[row] == number
    runs = {name: set(zoo.column("run")[index].tolist()) for name, index in zoo.splits.items()}
    assert sum(map(len, runs.values())) == 6 and [len(runs[n]) for n in ("train", "val", "test")] == [3, 1, 2]
    if with_file:
        assert runs["val"] == {"NN_tune_trainable_2"}
        assert names_in(source, "test") == [n for r in (1, 4) for n in networks if f"_{r}/" in n][::-1]


@pytest.mark.parametrize("epochs", [None, (0, 2)])
def test_modelzoo(tmp_path: Path, epochs: tuple[int, ...] | None) -> None:
    networks = write_modelzoo(tmp_path)
    source = modelzoo(tmp_path, epochs)
    zoo = imported(source, tmp_path / "z.h5")
    assert len(zoo) == 8 * (1 if epochs is None else 2)
    x = torch.randn(2, 1, 28, 28)
    for row, name in enumerate(source.names):
        with torch.no_grad():
            torch.testing.assert_close(output(zoo, row, x), networks[name](x), atol=1e-5, rtol=1e-5)
        assert zoo.column("test_accuracy")[row] == zoo.column("epoch")[row] / 4
    assert ("train_accuracy" in zoo.columns) == (epochs is None)
    assert [len(zoo.splits[n]) // len(epochs or [1]) for n in ("train", "val", "test")] == [6, 1, 1]
    assert zoo.specs[0].verified and "sign" not in zoo.specs[0].label["module_list.0"].symmetries  # max pool


def test_the_seed_draws_the_split(tmp_path: Path) -> None:
    write_modelzoo(tmp_path)
    a, b, c = (modelzoo(tmp_path, seed=seed).splits for seed in (0, 0, 1))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert any(not np.array_equal(a[name], c[name]) for name in a)
    with pytest.raises(ZooError, match="leave none of 8 to train on"):
        modelzoo(tmp_path, val=4, test=4)
