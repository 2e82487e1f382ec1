"""Splits within classes, the largest component, mini-batches of nodes."""

from __future__ import annotations

import torch

from wsl.data.graph_data import GraphData, largest, stratified_split
from wsl.graphs.node_graph import NodeGraph


def test_each_class_is_split_alike() -> None:
    y = torch.randint(3, (400,))
    parts = stratified_split(y, 1)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(400))
    for label in range(3):
        train, val, test = ((y[part] == label).sum().item() for part in parts)
        assert train == (train + val + test) // 2 and abs(val - test) <= 1
    again, other = stratified_split(y, 1), stratified_split(y, 2)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not torch.equal(parts[0], other[0])


def test_the_largest_component_keeps_order_features_and_edges() -> None:
    edges = torch.tensor([[0, 5, 5, 3, 1], [5, 3, 0, 5, 2]])
    graph, nodes = largest(NodeGraph(torch.arange(7.0)[:, None], edges, torch.arange(7)))
    assert nodes.tolist() == [0, 3, 5] and graph.x.flatten().tolist() == [0.0, 3.0, 5.0]
    assert graph.edge_index.tolist() == [[0, 2, 2, 1], [2, 1, 0, 2]] and graph.y.tolist() == [0, 3, 5]


def test_mini_batches_hold_every_training_node_once_in_another_order() -> None:
    data = GraphData(path="digits_graph", batch_size=100, seed=3)
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append([batch.row_ids for batch in loader])
    assert [len(ids) for ids in epochs[0]] == [100] * 8
    drawn = torch.cat(epochs[0])
    assert len(drawn.unique()) == 800 and torch.isin(drawn, data.rows["train"]).all()
    assert not torch.equal(drawn, torch.cat(epochs[1]))
    (whole,) = data.val_dataloader()
    assert len(whole) == len(data.rows["val"])
