"""Dense blocks of the neural graph: layout, degrees, round trip, refusals."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from wsl.batch import WeightBatch
from wsl.graphs.blocks import BlockError, block_graph
from wsl.spec import Connection, Label, NeuronGroup, StoredTensor, VirtualTensor, WeightSpec, mlp_spec

SPEC = mlp_spec([2, 4, 3, 1])


def skip_spec(transposed: bool = False) -> WeightSpec:
    """Not a chain: input → hidden → output and input → output, the first weight perhaps stored as [in, out]."""
    labels = (Label("x", 2, "input"), Label("h", 3, "hidden", ("permutation",)), Label("y", 1, "output"))
    first = VirtualTensor("a", "weight", 0, (3, 2), (2, 1), ("h", "x"), (1, -1))
    if transposed:
        first = VirtualTensor("a", "weight", 0, (2, 3), (3, 1), ("x", "h"), (-1, 1))
    tensors = (
        first,
        VirtualTensor("b", "weight", 6, (1, 3), (3, 1), ("y", "h"), (1, -1)),
        VirtualTensor("c", "weight", 9, (1, 2), (2, 1), ("y", "x"), (1, -1)),
        VirtualTensor("d", "bias", 11, (1,), (1,), ("y",), (1,)),
    )
    return WeightSpec(
        tuple(StoredTensor(t.name, t.shape, t.offset) for t in tensors),
        tensors,
        labels,
        tuple(NeuronGroup(label.name, label.name) for label in labels),
        (
            Connection("x", "h", "linear", {"weight": "a"}),
            Connection("h", "y", "linear", {"weight": "b", "bias": "d"}),
            Connection("x", "y", "linear", {"weight": "c"}),
        ),
    )


def test_sizes_and_degrees() -> None:
    forward, both = block_graph(SPEC), block_graph(SPEC, reverse_edges=True)
    assert (forward.num_nodes, forward.num_edges, both.num_edges) == (10, 23, 46)
    assert forward.degrees().tolist() == [0, 0, 2, 2, 2, 2, 4, 4, 4, 3]
    assert both.degrees().tolist() == [4, 4, 5, 5, 5, 5, 5, 5, 5, 3]
    assert torch.equal(both.degrees(reverse=False), forward.degrees())
    assert [nodes.individual for nodes in both.node_sets] == [True, False, False, True]


@pytest.mark.parametrize("spec", [SPEC, skip_spec(), skip_spec(transposed=True)], ids=["chain", "skip", "transposed"])
def test_round_trip_recovers_every_weight_and_bias(spec: WeightSpec) -> None:
    graph = block_graph(spec)
    batch = WeightBatch(spec, torch.randn(2, spec.numel, 1))
    edges = batch.values[:, graph.weight_index]
    seen = torch.cat([graph.weight_index, graph.bias_index]).sort().values
    assert torch.equal(seen, torch.arange(spec.numel))
    for block, connection in zip(graph.blocks, spec.connections, strict=True):
        weight = batch[connection.tensors["weight"]]
        out_first = spec.tensor[connection.tensors["weight"]].scaling == (1, -1)
        assert torch.equal(block.of(edges), weight if out_first else weight.transpose(1, 2))
    nodes = torch.zeros(2, graph.num_nodes, 1).index_add(1, graph.bias_nodes, batch.values[:, graph.bias_index])
    for connection in spec.connections:
        if "bias" in connection.tensors:
            (target,) = (n for n in graph.node_sets if n.name == connection.target)
            assert torch.equal(target.of(nodes), batch[connection.tensors["bias"]])


@pytest.mark.parametrize("reverse", [False, True])
def test_blocks_put_nodes_at_the_right_ends(reverse: bool) -> None:
    """An edge's ends, read through the blocks, are those of an explicit edge list."""
    graph = block_graph(SPEC, reverse)
    number = torch.arange(graph.num_nodes).reshape(1, -1, 1)
    starts = [0, 2, 6, 9, 10]
    expected = [
        (i, o) for k in range(3) for o in range(starts[k + 1], starts[k + 2]) for i in range(starts[k], starts[k + 1])
    ]
    expected += [(o, i) for i, o in expected] if reverse else []
    ends = []
    for block in graph.blocks:
        source, target = torch.broadcast_tensors(block.at_sources(number), block.at_targets(number))
        assert source.shape == (1, *block.shape, 1)
        assert source.shape[block.source_axis] == block.source.size
        ends += list(zip(source.flatten().tolist(), target.flatten().tolist(), strict=True))
    assert ends == expected


def test_refuses_what_is_not_linear() -> None:
    convolution = [dataclasses.replace(c, kind="conv") for c in SPEC.connections]
    with pytest.raises(BlockError, match=r"'input' → 'hidden1' is of kind 'conv'"):
        block_graph(SPEC.replace(connections=tuple(convolution)))


def test_refuses_tensors_that_no_connection_uses() -> None:
    with pytest.raises(BlockError, match=r"seq.2.bias.*seq.2.weight"):
        block_graph(SPEC.replace(connections=SPEC.connections[:2]))


def test_refuses_a_spec_without_connections() -> None:
    with pytest.raises(BlockError, match="needs connections"):
        block_graph(SPEC.replace(connections=()))


def test_refuses_a_weight_with_foreign_axes() -> None:
    first, second, third = SPEC.connections
    tensors = (second.tensors, first.tensors)
    swapped = tuple(dataclasses.replace(c, tensors=t) for c, t in zip((first, second), tensors, strict=True))
    with pytest.raises(BlockError, match=r"axes \('hidden2', 'hidden1'\), its connection joins \('hidden1', 'input'\)"):
        block_graph(SPEC.replace(connections=(*swapped, third)))
