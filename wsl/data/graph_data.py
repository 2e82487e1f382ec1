"""The LightningDataModule of one graph: splits its nodes, serves the whole graph in every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from wsl.data.base import Data
from wsl.data.graph_files import SPLITS, GraphDataError, read_graph
from wsl.data.sampler import mixed_seed
from wsl.graphs.node_graph import NodeBatch, NodeGraph, NodeGraphSpec
from wsl.ranges import NonNegativeInt, PositiveInt


class GraphData(Data):
    """One graph; an epoch is one step on all training nodes.

    Args:
        path: ``digits_graph`` (embedded: the symmetric nearest-neighbour graph of scikit-learn's 1,797 digit images),
            an ``.npz`` file, or a Planetoid folder ``ROOT/Cora`` whose folder ``raw/`` holds the eight raw files.
        split: "public" takes the file's masks; "random" draws 50 % training, 25 % validation and 25 % test nodes.
        split_seed: of the random split; the same for all runs that are to be compared.
        normalize_features: divide each node's features by their sum (of absolute values).
        neighbours: of each image in the embedded graph.
        seed: of the run (given by the program). One full batch has no order, so nothing depends on it.

    Raises:
        GraphDataError: if the graph cannot be read, has NaN features or edges to nowhere, has no public split where
            one is asked for, splits overlap or are empty, or a class has no training node.
    """

    def __init__(
        self,
        *,
        path: str,
        split: Literal["public", "random"] = "random",
        split_seed: NonNegativeInt = 0,
        normalize_features: bool = True,
        neighbours: PositiveInt = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.path, self.split = Path(path), split
        file = read_graph(self.path, neighbours)
        x = row_normalized(file.graph.x) if normalize_features else file.graph.x
        self.graph = NodeGraph(x, file.graph.edge_index, file.graph.y)
        self.spec, self.classes, self.digest = NodeGraphSpec(x.shape[1]), file.classes, file.digest
        edges = self.graph.edge_index.shape[1]
        self.inputs = f"of {self.graph.num_nodes:,} nodes with {x.shape[1]:,} features and {edges:,} edges"
        self.recipe: dict[str, Any] = {"split": split, "split_seed": split_seed, "neighbours": neighbours}
        if split == "random":
            self.rows = dict(zip(SPLITS, random_split(self.graph.num_nodes, split_seed), strict=True))
        elif missing := [s for s in SPLITS if s not in file.masks]:
            raise GraphDataError(f"{path} has no public split ({', '.join(missing)} missing); set data.split=random")
        else:
            self.rows = {s: file.masks[s].nonzero().flatten() for s in SPLITS}
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
        return self._loader("train")

    def val_dataloader(self) -> Any:
        return self._loader("val")

    def test_dataloader(self) -> Any:
        return self._loader("test")


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
