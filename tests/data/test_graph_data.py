"""Graphs from memory and files: what they hold, how nodes are split, and what is refused and how."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsl.data.graph_data import GraphData, random_split, row_normalized
from wsl.data.graph_files import EMBEDDED, GraphDataError


def write(path: Path, **changes: Any) -> Path:
    """A ring of six nodes with two features and two classes; ``changes`` replaces or, with None, removes arrays."""
    ends = np.arange(6)
    edges = np.stack([np.concatenate([ends, (ends + 1) % 6]), np.concatenate([(ends + 1) % 6, ends])])
    arrays = {
        "edge_index": edges.astype(np.int32),
        "x_data": np.arange(1, 13, dtype=np.float32),
        "x_indices": np.tile(np.arange(2, dtype=np.int32), 6),
        "x_indptr": np.arange(0, 13, 2, dtype=np.int32),
        "x_shape": np.array([6, 2]),
        "y": np.array([0, 1, 0, 1, 0, 1]),
        "train_mask": np.array([1, 1, 0, 0, 0, 0], bool),
        "val_mask": np.array([0, 0, 1, 1, 0, 0], bool),
        "test_mask": np.array([0, 0, 0, 0, 1, 1], bool),
        "num_classes": np.array(2),
    }
    np.savez(path, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return path


def test_an_npz_graph_is_read_as_it_is(tmp_path: Path) -> None:
    data = GraphData(path=str(write(tmp_path / "ring.npz")), split="public", normalize_features=False)
    assert torch.equal(data.graph.x, torch.arange(1.0, 13.0).view(6, 2))
    assert data.graph.edge_index.shape == (2, 12) and data.graph.edge_index.dtype == torch.int64
    assert {split: rows.tolist() for split, rows in data.rows.items()} == {
        "train": [0, 1],
        "val": [2, 3],
        "test": [4, 5],
    }
    assert (data.classes, data.spec.features) == (2, 2)
    (batch,) = data.test_dataloader()
    assert len(batch) == 2 and batch.target.tolist() == [0, 1] and batch.graph is data.graph


def test_features_are_divided_by_their_row_sum() -> None:
    x = row_normalized(torch.tensor([[1.0, 3.0], [0.0, 0.0], [-1.0, 1.0]]))
    assert torch.equal(x, torch.tensor([[0.25, 0.75], [0.0, 0.0], [-0.5, 0.5]]))


def test_the_digest_sees_every_part(tmp_path: Path) -> None:
    plain = GraphData(path=str(write(tmp_path / "a.npz")), split="public").digest
    assert GraphData(path=str(write(tmp_path / "b.npz")), split="public").digest == plain
    changes: list[dict[str, Any]] = [
        {"x_data": np.arange(2, 14, dtype=np.float32)},
        {"y": np.array([0, 1, 0, 1, 1, 1])},
        {"test_mask": np.array([0, 0, 0, 0, 0, 1], bool)},
        {"edge_index": np.array([[0, 1], [1, 0]])},
    ]
    digests = {GraphData(path=str(write(tmp_path / "c.npz", **c)), split="public").digest for c in changes}
    assert len(digests | {plain}) == 5


def test_a_random_split_is_half_a_quarter_a_quarter_and_depends_on_its_seed_alone() -> None:
    parts = random_split(101, 3)
    assert [len(p) for p in parts] == [50, 25, 26]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(101))
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(parts, random_split(101, 3), strict=True))
    assert not torch.equal(parts[0], random_split(101, 4)[0])


def test_the_embedded_graph_is_symmetric_and_joins_nearest_images() -> None:
    data = GraphData(path=EMBEDDED, neighbours=4, normalize_features=False)
    graph = data.graph
    assert (graph.num_nodes, data.spec.features, data.classes) == (1797, 64, 10)
    pairs = set(map(tuple, graph.edge_index.T.tolist()))
    assert len(pairs) == graph.edge_index.shape[1]
    assert all((b, a) in pairs and a != b for a, b in pairs)
    node = 100
    distance = (graph.x - graph.x[node]).square().sum(1)
    nearest = distance.argsort()[1:4].tolist()
    assert all((other, node) in pairs for other in nearest)
    assert torch.bincount(graph.edge_index[1]).min() >= 4
    same = graph.y[graph.edge_index[0]] == graph.y[graph.edge_index[1]]
    assert same.float().mean() > 0.95, "near images mostly show the same digit"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_data": np.array([1, 2, 3, np.nan, *range(8)], np.float32)}, ["feature 1 of node 1", "nan"]),
        ({"x_data": np.array([np.inf, *range(11)], np.float32)}, ["feature 0 of node 0", "inf"]),
        ({"edge_index": np.array([[0, 1], [1, 6]])}, ["edge 1", "1 → 6", "6 nodes"]),
        ({"edge_index": np.array([[0, -1], [1, 0]])}, ["edge 1", "-1 → 0"]),
        ({"edge_index": np.array([0, 1, 2])}, ["edge_index", "[3]", "[2, E]"]),
        ({"edge_index": np.array([[0.0], [1.0]])}, ["edge_index", "float64", "integers"]),
        ({"y": np.array([0, 1, 0, 1, 0])}, ["y is [5]", "[6]"]),
        ({"y": np.array([0, 1, 0, 1, 0, 2])}, ["node 5", "label 2", "2 classes"]),
        ({"y": np.array([0, 0, 0, 1, 0, 1])}, ["no training node of class 1", "split_seed"]),
        ({"val_mask": np.array([1, 0, 0, 0, 0, 0], bool)}, ["node 0", "more than one split"]),
        ({"val_mask": np.zeros(6, bool)}, ["val split has no node"]),
        ({"val_mask": np.zeros(5, bool)}, ["val_mask", "[5]", "[6]"]),
        ({"val_mask": np.zeros(6, int)}, ["val_mask", "int64", "bool"]),
        ({"val_mask": None}, ["no public split", "val", "data.split=random"]),
        ({"y": None, "x_indptr": None}, ["lacks x_indptr, y"]),
        ({"x_indices": np.tile(np.array([0, 2], np.int32), 6)}, ["CSR"]),
        ({"x_shape": np.array([6, 2, 1])}, ["CSR"]),
        ({"y": np.array([0, None, 0, 1, 0, 1], object)}, ["plain arrays"]),
    ],
)  # fmt: skip
def test_what_is_no_graph_is_refused_with_the_place(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    path = write(tmp_path / "bad.npz", **changes)
    with pytest.raises(GraphDataError) as error:
        GraphData(path=str(path), split="public")
    assert all(word in str(error.value) for word in [*words, "bad.npz"]), str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    for path, words in (("text.npz", "cannot be read"), ("absent.npz", "does not exist"), ("graph.csv", "is no graph")):
        with pytest.raises(GraphDataError, match=words):
            GraphData(path=str(tmp_path / path))
    with pytest.raises(GraphDataError, match="no public split"):
        GraphData(path=EMBEDDED, split="public")


def test_nothing_is_downloaded_when_raw_files_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a download was attempted")

    monkeypatch.setattr("urllib.request.urlopen", forbidden)
    raw = tmp_path / "Cora" / "raw"
    raw.mkdir(parents=True)
    for part in ("x", "tx", "allx", "y", "ty", "ally", "graph"):
        (raw / f"ind.cora.{part}").write_bytes(b"")
    with pytest.raises(GraphDataError, match=r"lacks ind\.cora\.test\.index.*nothing is downloaded"):
        GraphData(path=str(tmp_path / "Cora"), split="public")


def test_planetoid_raw_files_and_npz_say_the_same(shared_data: Path, tmp_path: Path) -> None:
    raw = tmp_path / "Cora" / "raw"
    raw.mkdir(parents=True)
    for file in (shared_data / "planetoid").glob("ind.cora.*"):
        shutil.copy(file, raw)
    planetoid = GraphData(path=str(tmp_path / "Cora"), split="public")
    stored = GraphData(path=str(shared_data / "cora.npz"), split="public")
    assert torch.equal(planetoid.graph.x, stored.graph.x) and torch.equal(planetoid.graph.y, stored.graph.y)
    edges = [set(map(tuple, d.graph.edge_index.T.tolist())) for d in (planetoid, stored)]
    assert edges[0] == edges[1]
    assert all(torch.equal(planetoid.rows[s], stored.rows[s]) for s in ("train", "val", "test"))
    assert {s: len(r) for s, r in stored.rows.items()} == {"train": 140, "val": 500, "test": 1000}
