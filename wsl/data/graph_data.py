"""The LightningDataModule of one graph: splits its nodes, serves the whole graph in every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wsl.data.base import Data
from wsl.data.graph_files import SPLITS, GraphDataError, read_graph
from wsl.data.sampler import BatchSampler, mixed_seed
from wsl.graphs.node_graph import NodeBatch, NodeGraph, NodeGraphSpec
from wsl.ranges import NonNegativeInt, PositiveInt


class GraphData(Data):
    """One graph; an epoch is one step on all training nodes.

    Args:
        path: ``digits_graph`` (embedded: the symmetric nearest-neighbour graph of scikit-learn's 1,797 digit images),
            an ``.npz`` file, or a Planetoid folder ``ROOT/Cora`` whose folder ``raw/`` holds the eight raw files.
        split: "public" takes the file's masks; "random" draws 50 % training, 25 % validation and 25 % test nodes;
            "stratified" draws these shares within each class.
        largest_component: leave out all nodes that are not in the largest connected component.
        split_seed: of the random split; the same for all runs that are to be compared.
        normalize_features: divide each node's features by their sum (of absolute values).
        neighbours: of each image in the embedded graph.
        batch_size: training nodes per step (decoupled encoders); null: all, one step per epoch. Evaluation takes all.
        seed: of the run (given by the program); mini-batches are drawn by it and the epoch.

    Raises:
        GraphDataError: if the graph cannot be read, has NaN features or edges to nowhere, has no public split where
            one is asked for, splits overlap or are empty, or a class has no training node.
    """

    def __init__(
        self,
        *,
        path: str,
        split: Literal["public", "random", "stratified"] = "random",
        split_seed: NonNegativeInt = 0,
        normalize_features: bool = True,
        largest_component: bool = False,
        neighbours: PositiveInt = 8,
        batch_size: PositiveInt | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.path, self.split, self.batch_size, self.seed = Path(path), split, batch_size, seed
        file = read_graph(self.path, neighbours)
        whole, part = (file.graph, None) if not largest_component else largest(file.graph)
        x = row_normalized(whole.x) if normalize_features else whole.x
        self.graph = NodeGraph(x, whole.edge_index, whole.y)
        self.spec, self.classes, self.digest = NodeGraphSpec(x.shape[1]), file.classes, file.digest
        edges = self.graph.edge_index.shape[1]
        self.inputs = f"of {self.graph.num_nodes:,} nodes with {x.shape[1]:,} features and {edges:,} edges"
        self.recipe: dict[str, Any] = {"split": split, "split_seed": split_seed, "neighbours": neighbours}
        self.recipe["largest_component"] = largest_component
        if split == "random":
            self.rows = dict(zip(SPLITS, random_split(self.graph.num_nodes, split_seed), strict=True))
        elif split == "stratified":
            self.rows = dict(zip(SPLITS, stratified_split(self.graph.y, split_seed), strict=True))
        elif missing := [s for s in SPLITS if s not in file.masks]:
            raise GraphDataError(f"{path} has no public split ({', '.join(missing)} missing); set data.split=random")
        else:
            masks = {s: file.masks[s] if part is None else file.masks[s][part] for s in SPLITS}
            self.rows = {s: mask.nonzero().flatten() for s, mask in masks.items()}
        self._check_split()
        self._moved: NodeGraph | None = None

    def _check_split(self) -> None:
        uses = torch.zeros(self.graph.num_nodes, dtype=torch.int64)
        for split, nodes in self.rows.items():
            if not len(nodes):
                raise GraphDataError(f"{self.path}: the {split} split has no node")
            uses[nodes] += 1
        if (uses > 1).any():
            node = int((uses > 1).nonzero()[0])
            raise GraphDataError(f"{self.path}: node {node} is in more than one split; the masks must not overlap")
        present = torch.bincount(self.graph.y[self.rows["train"]], minlength=self.classes) > 0
        if not present.all():
            absent = (~present).nonzero().flatten().tolist()
            raise GraphDataError(
                f"{self.path}: no training node of class {', '.join(map(str, absent))}; label some, or set "
                "data.split=random with another data.split_seed"
            )

    def batch(self, split: str) -> NodeBatch:
        """The graph with the nodes of a split."""
        return NodeBatch(self.graph, self.rows[split])

    def example(self) -> NodeBatch:
        """The training nodes, for statistics of the data."""
        return self.batch("train")

    def transfer_batch_to_device(self, batch: NodeBatch, device: torch.device, dataloader_idx: int) -> NodeBatch:
        """The graph is moved once, not in every step; layers remember what they worked out for it."""
        if self._moved is None or self._moved.x.device != device:
            self._moved = batch.graph.to(device)
        return NodeBatch(self._moved, batch.row_ids.to(device))

    def _loader(self, split: str) -> Any:
        return DataLoader([self.batch(split)], batch_size=None)  # type: ignore[arg-type]

    def train_dataloader(self) -> Any:
        if self.batch_size is None:
            return self._loader("train")
        sampler = BatchSampler(self.rows["train"], self.batch_size, mixed_seed(self.seed))
        return DataLoader(_Nodes(self.graph), sampler=sampler, batch_size=None)

    def val_dataloader(self) -> Any:
        return self._loader("val")

    def test_dataloader(self) -> Any:
        return self._loader("test")


class _Nodes(Dataset[NodeBatch]):
    """The graph with any of its nodes."""

    def __init__(self, graph: NodeGraph) -> None:
        self.graph = graph

    def __getitem__(self, nodes: list[int]) -> NodeBatch:
        return NodeBatch(self.graph, torch.tensor(nodes))


def row_normalized(x: Tensor) -> Tensor:
    """Rows divided by the sum of their absolute values; rows of zeros stay zero."""
    total = x.abs().sum(1, keepdim=True)
    return x / torch.where(total > 0, total, 1.0)


def random_split(nodes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """50 % training, 25 % validation, the rest test nodes, ascending; a function of the seed alone."""
    order = torch.randperm(nodes, generator=torch.Generator().manual_seed(mixed_seed(seed)))
    train, val = nodes // 2, nodes // 4
    parts = order.split([train, val, nodes - train - val])
    return tuple(part.sort().values for part in parts)


def stratified_split(y: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """50 % training, 25 % validation, the rest test nodes of each class of ``y [N]``, ascending."""
    generator = torch.Generator().manual_seed(mixed_seed(seed))
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for label in y.unique():
        nodes = (y == label).nonzero().flatten()
        nodes = nodes[torch.randperm(len(nodes), generator=generator)]
        train, end = len(nodes) // 2, len(nodes) * 3 // 4
        for part, some in zip(parts, nodes.tensor_split((train, end)), strict=True):
            part.append(some)
    train_nodes, val_nodes, test_nodes = (torch.cat(part).sort().values for part in parts)
    return train_nodes, val_nodes, test_nodes


def largest(graph: NodeGraph) -> tuple[NodeGraph, Tensor]:
    """The largest connected component (edges in either direction) in the same order, and its nodes' old numbers."""
    nodes = graph.num_nodes
    ends = graph.edge_index.numpy()
    adjacency = scipy.sparse.coo_matrix((np.ones(ends.shape[1]), (ends[0], ends[1])), shape=(nodes, nodes))
    _, component = scipy.sparse.csgraph.connected_components(adjacency, directed=False)
    inside = torch.from_numpy(component == np.bincount(component).argmax())
    number = inside.cumsum(0) - 1
    edges = graph.edge_index[:, inside[graph.edge_index[0]]]
    return NodeGraph(graph.x[inside], number[edges], graph.y[inside]), inside.nonzero().flatten()
