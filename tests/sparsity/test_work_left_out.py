"""Sparse layers do no more work than their outputs need, and the outputs are those of the plain way."""

from __future__ import annotations

import pytest
import torch
from node_batches import SPEC, batch
from torch import Tensor

from wsl.encoders.node.attention import GATv2Node
from wsl.encoders.node.convolutions import GCN, GIN, SAGE
from wsl.graphs.node_graph import NodeBatch, NodeGraph, NodeGraphSpec
from wsl.nn.sparse.dials import Dials
from wsl.nn.sparse.edge_set import EdgeSet
from wsl.nn.sparse.sparse_product import SparseWeight

# -- the order of transform and propagation --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SAGE, GIN])
@pytest.mark.parametrize("sparse", [False, True])
def test_few_channels_travel_unless_what_travels_is_judged(kind: type[SAGE] | type[GIN], sparse: bool) -> None:
    """12 features to 3: 3 are propagated, 12 where Unifews looks at the aggregate; the outputs are the same."""
    given = batch()
    x = torch.randn(given.graph.num_nodes, 12, dtype=torch.float64).relu()
    wide = NodeGraph(x, given.graph.edge_index, given.graph.y)
    nodes = NodeBatch(wide, given.row_ids)
    encoder = kind(NodeGraphSpec(12), 3, layers=1, dropout=0.0, norm="none", read_sparse=sparse).double()
    travelled: list[int] = []
    sieve = encoder.layers[0].sieve
    propagate = sieve.propagate

    def watched(edges: EdgeSet, kept: EdgeSet, x: Tensor) -> Tensor:
        travelled.append(x.shape[1])
        return propagate(edges, kept, x)

    sieve.propagate = watched
    dials = Dials(encoder)
    for dial in (*dials.weights, *dials.edges):
        dial.sparsity = 0.4
    dials.prune(edges=True, weights=True)
    while_pruned = encoder.train()(nodes)
    dials.prune(edges=False, weights=False)
    frozen = encoder(nodes)
    dials.prune(edges=True, weights=False)
    edges_alone = encoder(nodes)
    for other in (frozen, edges_alone, encoder.eval()(nodes)):
        torch.testing.assert_close(other, while_pruned, rtol=1e-12, atol=1e-12)
    assert travelled == [12, 3, 3, 3]
    assert encoder.costs(wide)[0].channels == 3


@pytest.mark.parametrize("absent", [False, True])
def test_pruned_attention_reads_features_by_their_entries(absent: bool) -> None:
    """GATv2 while it chooses, frozen, and in evaluation: outputs and gradients are those of dense features."""
    outputs, gradients = [], []
    for read_sparse in (False, True):
        torch.manual_seed(3)
        given = batch()
        options = {"hidden": 8, "heads": 2, "dropout": 0.0, "attention_dropout": 0.0, "read_sparse": read_sparse}
        encoder = GATv2Node(SPEC, 3, **options).double().train()
        dials = Dials(encoder)
        for dial in (*dials.weights, *dials.edges):
            dial.sparsity = 0.4
        for sieve in dials.edges:
            sieve.renormalize = absent
        dials.prune(edges=True, weights=True)
        found = [encoder(given)]
        dials.prune(edges=False, weights=False)
        found += [encoder(given), encoder.eval()(given)]
        sum(out.square().sum() for out in found).backward()
        outputs.append(torch.stack(found))
        gradients.append([p.grad for p in encoder.parameters()])
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


# -- dead channels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_channels_that_nobody_reads_are_not_computed(sparse: bool, training: bool) -> None:
    """With hooks on the maps: fewer channels, the same output, gradients and running statistics of what is read."""
    given = batch()
    encoder = GCN(SPEC, 3, hidden=40, layers=3, dropout=0.0, norm="batch", read_sparse=sparse).double()
    with torch.no_grad():
        encoder.layers[1].lin.weight[:, 4:31] *= 1e-6
        encoder.layers[2].lin.weight[:, :24] *= 1e-6
    dials = Dials(encoder)
    for weight in dials.weights:
        weight.sparsity = 0.7
    dials.prune(edges=False, weights=True)
    encoder.train()(given)
    dials.prune(edges=False, weights=False)
    live = [layer.lin.sieve.kept.any(0) for layer in encoder.layers]
    lines = [16 * -(-int(mask.sum()) // 16) for mask in live[1:]]
    assert lines[0] < 40 and lines[1] < 40
    widths: list[int] = []
    for layer in encoder.layers:
        layer.lin.register_forward_hook(lambda _, given, out: widths.append(out.shape[1]))
    encoder.train(training)

    def run() -> tuple[Tensor, list[Tensor], list[Tensor]]:
        state = {name: value.clone() for name, value in encoder.state_dict().items()}
        encoder.zero_grad()
        with torch.set_grad_enabled(training):
            out = encoder(given)
        if training:
            out.square().sum().backward()
        grads = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
        stats = [norm.running_var[mask].clone() for norm, mask in zip(encoder.norms, live[1:], strict=True)]
        encoder.load_state_dict(state)
        return out, grads, stats

    out, grads, stats = run()
    assert widths == [*lines, 3]
    encoder._channels_read = lambda: [None, None]  # the dense form
    expected = run()
    assert widths[3:] == [40, 40, 3]
    assert torch.allclose(out, expected[0], rtol=1e-12, atol=1e-12)
    assert len(grads) == len(expected[1]) and all(
        torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(grads, expected[1], strict=True)
    )
    assert all(torch.allclose(a, b) for a, b in zip(stats, expected[2], strict=True))


def test_the_kernel_is_used_where_its_work_is_less() -> None:
    """Weights in columns that are never used cost nothing; those in the one that is always used cost all."""
    kept = torch.zeros(8, 10, dtype=torch.bool)
    kept[:, 0] = True
    weight = SparseWeight.of(torch.randn(8, 10), kept)
    often, never = torch.ones(10, dtype=torch.int64), torch.ones(10, dtype=torch.int64)
    often[0], never[0] = 100, 0
    assert weight.pays(never) and not weight.pays(often)
