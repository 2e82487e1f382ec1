"""Node classifiers: relabelling nodes, reach, agreement with PyTorch Geometric, attention, refusals."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from as_on_gpu import AsOnGPU
from torch import Tensor

from wsl.encoders.base import UnsupportedSpecError
from wsl.encoders.node.attention import GAT, GATv2Node
from wsl.encoders.node.base import NodeEncoder
from wsl.encoders.node.convolutions import GCN, GCNII, GIN, SAGE
from wsl.graphs.geometric import geometric
from wsl.graphs.node_graph import NodeBatch, NodeGraph, NodeGraphSpec
from wsl.spec import mlp_spec

SPEC = NodeGraphSpec(5)
ENCODERS: dict[str, Callable[[], NodeEncoder]] = {
    "gcn": lambda: GCN(SPEC, 3, hidden=8),
    "sage": lambda: SAGE(SPEC, 3, hidden=8, layers=3),
    "gin": lambda: GIN(SPEC, 3, hidden=8),
    "gcnii": lambda: GCNII(SPEC, 3, hidden=8, layers=3),
    "gat": lambda: GAT(SPEC, 3, hidden=8, heads=4),
    "gatv2": lambda: GATv2Node(SPEC, 3, hidden=8, heads=4),
    "gatv2_plus": lambda: GATv2Node(SPEC, 3, hidden=8, heads=2, layers=3, score="softplus", direct="theta_n"),
    "gatv2_shared": lambda: GATv2Node(SPEC, 3, hidden=8, heads=2, share_weights=True, init="balanced"),
}
SHARED, DIRECT = partial(GATv2Node, share_weights=True), partial(GATv2Node, direct="theta_n")
EACH = pytest.mark.parametrize("name", ENCODERS)


def graph(nodes: int = 12, edges: int = 40) -> NodeBatch:
    x = torch.randn(nodes, 5, dtype=torch.float64)
    return NodeBatch(NodeGraph(x, torch.randint(nodes, (2, edges)), torch.randint(3, (nodes,))), torch.arange(nodes))


def built(name: str) -> NodeEncoder:
    encoder = ENCODERS[name]().double().eval()
    for parameter in encoder.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)  # no bias or attention vector at 0
    return encoder


@EACH
def test_relabelled_nodes_have_relabelled_outputs(name: str) -> None:
    encoder, batch = built(name), graph()
    order = torch.randperm(batch.graph.num_nodes)
    place = order.argsort()  # where each node went
    moved = NodeGraph(batch.graph.x[order], place[batch.graph.edge_index], batch.graph.y[order])
    expected = encoder(batch)
    assert (encoder(NodeBatch(moved, batch.row_ids)) - expected[order]).abs().max() < 1e-12 * expected.abs().max()
    half = NodeGraph(batch.graph.x[order], batch.graph.edge_index, batch.graph.y)
    assert (encoder(NodeBatch(half, batch.row_ids)) - expected[order]).abs().max() > 1e-3, "the control"


@EACH
def test_a_node_sees_as_many_steps_as_there_are_layers(name: str) -> None:
    encoder = built(name)
    path = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    out = encoder(NodeBatch(NodeGraph(x, path, torch.zeros(6, dtype=torch.int64)), torch.arange(6)))
    (reached,) = torch.autograd.grad(out[5].sum(), x)
    assert (reached.abs().sum(1) > 0).tolist() == [node >= 5 - len(encoder.layers) for node in range(6)]


def test_gatv2_is_pygs_with_other_gradients_code() -> None:
    encoder, batch = built("gatv2"), graph()
    theirs = [geometric("nn").GATv2Conv(i, o, 4, concat=c).double() for i, o, c in ((5, 2, True), (8, 3, False))]
    for mine, other in zip(encoder.layers, theirs, strict=True):
        other.load_state_dict(mine.state_dict())
    x = torch.nn.functional.elu(theirs[0](batch.graph.x, batch.graph.edge_index))
    expected = theirs[1](x, batch.graph.edge_index)
    assert (encoder(batch) - expected).abs().max() < 1e-12 * expected.abs().max()


def test_attention_adds_up_to_one_and_leaves_the_mode_alone() -> None:
    encoder, batch = built("gatv2").train(), graph()
    found = encoder.attention(batch)  # type: ignore[operator]
    assert encoder.training and len(found) == 2
    for edges, weights in found:
        sums = torch.zeros(12, 4, dtype=torch.float64).index_add_(0, edges[1], weights)
        assert torch.allclose(sums, torch.ones_like(sums))
        assert (edges[0] == edges[1]).sum() == 12
    again = encoder.attention(batch)  # type: ignore[operator]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(found, again, strict=True)), "no dropout in explanations"


def test_conserved_pairs_are_declared_where_the_law_holds() -> None:
    assert GATv2Node(SPEC, 3, hidden=8, heads=2, layers=3, activation="relu").conserved_pairs == (
        ("layers.0", "layers.1"),
        ("layers.1", "layers.2"),
    )
    assert GATv2Node(SPEC, 3, hidden=8, heads=2, activation="elu").conserved_pairs == ()


def test_refusals() -> None:
    with pytest.raises(UnsupportedSpecError, match="nodes of a graph"):
        GCN(mlp_spec([2, 3, 1], "relu"), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"heads=5 cannot share encoder\.hidden=8"):
        GAT(SPEC, 3, hidden=8, heads=5)
    with pytest.raises(ValueError, match=r"init=balanced.*homogeneous"):
        GATv2Node(SPEC, 3, hidden=8, heads=2, score="softplus", init="balanced")
    batch = graph()
    wide = NodeBatch(NodeGraph(torch.zeros(12, 6), batch.graph.edge_index, batch.graph.y), batch.row_ids)
    with pytest.raises(ValueError, match="features=5"):
        built("gcn")(wide)


def test_descriptions_survive_json() -> None:
    assert NodeGraphSpec.from_dict(SPEC.to_dict()) == SPEC
    for wrong in ({}, {"format": "node-graph"}, {"format": "node-graph", "features": "5"}, SPEC.to_dict() | {"x": 1}):
        with pytest.raises(ValueError, match="not the description"):
            NodeGraphSpec.from_dict(wrong)


def test_gradients_agree_with_finite_differences() -> None:
    encoder, batch = built("gatv2_plus"), graph(6, 14)

    def run(x: Tensor) -> Tensor:
        return encoder(NodeBatch(NodeGraph(x, batch.graph.edge_index, batch.graph.y), batch.row_ids))

    assert torch.autograd.gradcheck(run, (batch.graph.x.requires_grad_(),), atol=1e-6)


@pytest.mark.parametrize("encoder", [GCN, GCNII, SAGE, GIN, GAT, GATv2Node, SHARED, DIRECT])
def test_features_read_by_their_entries_give_the_same(encoder: Callable[..., Any]) -> None:
    graph = bag_of_words_graph()
    torch.manual_seed(0)
    dense = encoder(NodeGraphSpec(40), 3, hidden=8, layers=2).double()
    torch.manual_seed(0)
    sparse = encoder(NodeGraphSpec(40), 3, hidden=8, layers=2, read_sparse=True).double()
    batch = NodeBatch(graph, torch.arange(30))
    outputs, gradients = [], []
    for built in (dense.eval(), sparse.eval()):
        out = built(batch)
        out.square().sum().backward()
        outputs.append(out)
        gradients.append([p.grad for p in built.parameters()])
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("encoder", [GAT, GATv2Node, SAGE, GIN])
def test_bags_of_words_train(encoder: Callable[..., Any]) -> None:
    """Dropout that draws for entries alone still reaches every layer: outputs differ from draw to draw."""
    batch = NodeBatch(bag_of_words_graph(), torch.arange(30))
    built = encoder(NodeGraphSpec(40), 3, hidden=8, layers=2).double().train()
    first, second = built(batch), built(batch)
    assert not torch.equal(first, second)
    first.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in built.parameters())


def bag_of_words_graph() -> NodeGraph:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(30, 40, generator=generator, dtype=torch.float64)
    x = x * (torch.rand(30, 40, generator=generator) < 0.08)
    edges = torch.randint(30, (2, 90), generator=generator)
    return NodeGraph(x, torch.cat([edges, edges.flip(0)], 1).unique(dim=1), torch.zeros(30, dtype=torch.int64))


@pytest.mark.parametrize("read_sparse", [False, True])
@pytest.mark.parametrize(
    "encoder", [GCN, SAGE, GIN, GCNII, *(partial(e, attention_dropout=0.0) for e in (GAT, GATv2Node))]
)
@pytest.mark.parametrize("rules", [nullcontext, AsOnGPU])
def test_half_precision_sums_over_neighbours_in_single(
    rules: Callable[[], Any], encoder: Callable[..., Any], read_sparse: bool
) -> None:
    graph = bag_of_words_graph()
    batch = NodeBatch(NodeGraph(graph.x.float(), graph.edge_index, graph.y), torch.arange(30))
    built = encoder(NodeGraphSpec(40), 3, hidden=8, dropout=0.0, read_sparse=read_sparse)
    expected = built(batch)
    with rules():
        with torch.autocast("cpu", torch.bfloat16):
            found = built(batch)
        found.float().square().sum().backward()
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in built.parameters())
