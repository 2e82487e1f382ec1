"""Graphs from files, checked: ``.npz``, Planetoid's raw files, and one that needs no file."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from wsl.errors import UserError
from wsl.graphs.geometric import geometric
from wsl.graphs.node_graph import NodeGraph

EMBEDDED = "digits_graph"
SPLITS = ("train", "val", "test")
NPZ_KEYS = ("edge_index", "x_data", "x_indices", "x_indptr", "x_shape", "y", "num_classes")


class GraphDataError(UserError, ValueError):
    """A graph cannot be used; the message names the file, what is wrong and the fix."""


@dataclass(frozen=True, eq=False)
class GraphFile:
    """A graph, its number of classes, the nodes of each published split (or none), and a digest of all of it."""

    graph: NodeGraph
    classes: int
    masks: Mapping[str, Tensor]

    @property
    def digest(self) -> str:
        """SHA-256 of features, edges, labels and masks."""
        parts = [self.graph.x, self.graph.edge_index, self.graph.y, *(self.masks[k] for k in sorted(self.masks))]
        state = hashlib.sha256()
        for part in parts:
            state.update(part.contiguous().numpy().tobytes())
        return state.hexdigest()


def read_graph(path: Path, neighbours: int) -> GraphFile:
    """The graph that ``path`` names: ``digits_graph``, an ``.npz`` file, or a Planetoid folder (``ROOT/Cora``).

    Args:
        neighbours: of the embedded graph.

    Raises:
        GraphDataError: if there is no such graph, a file is damaged, or its content is not a graph with labels.
    """
    if str(path) == EMBEDDED:
        return _digits(neighbours)
    if path.suffix == ".npz":
        return _checked(_npz(path), path)
    if path.name.lower() in ("cora", "citeseer", "pubmed"):
        return _checked(_planetoid(path), path)
    raise GraphDataError(
        f"data.path={path} is no graph: give {EMBEDDED}, a file NAME.npz, or a Planetoid folder ROOT/Cora, "
        "ROOT/CiteSeer or ROOT/PubMed with the raw files in its folder raw/"
    )


def _digits(neighbours: int) -> GraphFile:
    """The 1,797 digit images of scikit-learn; an edge both ways between each image and its nearest ones."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    sizes = np.square(images).sum(1)
    distances = sizes[:, None] + sizes - 2 * images @ images.T  # of whole numbers, so exact on every machine
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :neighbours]
    ends = np.stack([np.arange(len(images)).repeat(nearest.shape[1]), nearest.ravel()])
    edges = np.unique(np.concatenate([ends, ends[::-1]], axis=1), axis=1)
    x = torch.from_numpy(images).float()
    graph = NodeGraph(x, torch.from_numpy(edges).long(), torch.from_numpy(labels).long())
    return GraphFile(graph, int(labels.max()) + 1, {})


def _npz(path: Path) -> GraphFile:
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise GraphDataError(
            f"{path} does not exist; set data.path to an .npz graph, or use data=digits_graph"
        ) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise GraphDataError(f"{path} cannot be read as an .npz file of plain arrays: {error}") from None
    if missing := [key for key in NPZ_KEYS if key not in stored]:
        raise GraphDataError(f"{path} lacks {', '.join(missing)}; a graph file has {', '.join(NPZ_KEYS)}")
    try:
        x = scipy.sparse.csr_matrix(
            (stored["x_data"].astype(np.float32), stored["x_indices"], stored["x_indptr"]),
            shape=tuple(int(size) for size in stored["x_shape"]),
        )
        x.check_format(full_check=True)
    except ValueError as error:
        raise GraphDataError(f"{path}: x_data, x_indices, x_indptr, x_shape are no CSR matrix: {error}") from None
    masks = {}
    for split in SPLITS:
        if f"{split}_mask" in stored:
            mask = stored[f"{split}_mask"]
            if mask.dtype != bool:
                raise GraphDataError(f"{path}: {split}_mask is of {mask.dtype}, should be bool, one entry per node")
            masks[split] = torch.from_numpy(mask)
    graph = NodeGraph(
        torch.from_numpy(x.toarray()), _integers(path, "edge_index", stored), _integers(path, "y", stored)
    )
    return GraphFile(graph, int(_integers(path, "num_classes", stored)), masks)


def _integers(path: Path, key: str, stored: Mapping[str, np.ndarray]) -> Tensor:
    if not np.issubdtype(stored[key].dtype, np.integer):
        raise GraphDataError(f"{path}: {key} is of {stored[key].dtype}, should be integers")
    return torch.from_numpy(stored[key].astype(np.int64))


def _planetoid(path: Path) -> GraphFile:
    """Raw files through PyTorch Geometric's own reader; they are pickles, so they must come from a trusted source."""
    name = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed"}[path.name.lower()]
    parts = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
    needed = [path / "raw" / f"ind.{name.lower()}.{part}" for part in parts]
    if missing := [file.name for file in needed if not file.is_file()]:  # or PyG would start a download
        raise GraphDataError(
            f"{path / 'raw'} lacks {', '.join(missing)}; copy the eight files ind.{name.lower()}.* of "
            "github.com/kimiyoung/planetoid there (nothing is downloaded)"
        )
    if path.name != name:
        raise GraphDataError(f"data.path={path}: the folder's name must be {name}, as PyTorch Geometric spells it")
    data = geometric("datasets").Planetoid(str(path.parent), name)[0]
    masks = {split: data[f"{split}_mask"] for split in SPLITS}
    return GraphFile(NodeGraph(data.x, data.edge_index, data.y), int(data.y.max()) + 1, masks)


def _checked(file: GraphFile, path: Path) -> GraphFile:
    """Refuse what would fail later, or worse, not fail."""
    graph, nodes = file.graph, file.graph.num_nodes
    if graph.edge_index.dim() != 2 or graph.edge_index.shape[0] != 2:
        raise GraphDataError(f"{path}: edge_index is {list(graph.edge_index.shape)}, should be [2, E]")
    outside = ((graph.edge_index < 0) | (graph.edge_index >= nodes)).any(0)
    if outside.any():
        edge = int(outside.nonzero()[0])
        ends = " → ".join(str(int(end)) for end in graph.edge_index[:, edge])
        raise GraphDataError(f"{path}: edge {edge} joins {ends}, but there are {nodes} nodes; number them from 0")
    if graph.y.shape != (nodes,):
        raise GraphDataError(f"{path}: y is {list(graph.y.shape)}, should be [{nodes}], one label per node")
    wrong = (graph.y < 0) | (graph.y >= file.classes)
    if wrong.any():
        node = int(wrong.nonzero()[0])
        raise GraphDataError(f"{path}: node {node} has label {int(graph.y[node])}, there are {file.classes} classes")
    finite = graph.x.isfinite()
    if not finite.all():
        node, feature = (int(i) for i in (~finite).nonzero()[0])
        value = float(graph.x[node, feature])
        raise GraphDataError(f"{path}: feature {feature} of node {node} is {value}; repair or remove the node")
    for split, mask in file.masks.items():
        if mask.shape != (nodes,):
            raise GraphDataError(f"{path}: {split}_mask is {list(mask.shape)}, should be [{nodes}]")
    return file
