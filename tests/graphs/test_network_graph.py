"""The neural graph of a spec: what is a node, what an edge, and that nothing else is kept or lost."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from graph_specs import NAMES, random_batch, spec_named
from torch import Tensor, nn

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.graphs.edge_list import EdgeList, edge_list
from wsl.graphs.frame import frame_of
from wsl.graphs.network import GraphError, GraphOptions, network_graph
from wsl.graphs.network.attention import tied_attention
from wsl.graphs.tables import edge_classes, node_classes
from wsl.spec import Connection, Label, NeuronGroup, StoredTensor, VirtualTensor, mlp_spec
from wsl.symmetry import GroupElement, act, draw
from wsl.trace import trace

OPTIONS = [
    GraphOptions(),
    GraphOptions(flatten="repeat", linear="own"),
    GraphOptions(flatten="layer", attention="triple"),
]


def graph_of(batch: WeightBatch | MixedWeightBatch, options: GraphOptions, reverse: bool = False) -> EdgeList:
    specs = (batch.spec,) if isinstance(batch, WeightBatch) else batch.specs
    return edge_list(batch, frame_of(specs, options), reverse)


def flat(batch: WeightBatch | MixedWeightBatch) -> Tensor:
    return batch.values.flatten(0, -2)


# -- nothing is lost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", OPTIONS)
def test_network_to_graph_to_network_is_exact(name: str, options: GraphOptions) -> None:
    batch = random_batch(spec_named(name))
    graph = graph_of(batch, options, reverse=True)
    back = graph.rows(graph.node_values(flat(batch)), graph.edge_values(flat(batch)))
    assert torch.equal(back, flat(batch))


@pytest.mark.parametrize("options", OPTIONS)
def test_round_trip_of_all_architectures_in_one_batch(options: GraphOptions) -> None:
    batch = MixedWeightBatch.collate([random_batch(spec_named(name), 2) for name in NAMES]).select(
        torch.randperm(2 * len(NAMES))
    )
    graph = graph_of(batch, options)
    back = graph.rows(graph.node_values(batch.values), graph.edge_values(batch.values))
    assert torch.equal(back, batch.values)
    assert bool((graph.target.diff() >= 0).all()) and bool((graph.directed_target.diff() >= 0).all())
    owner = graph.node_owner
    assert torch.equal(owner[graph.source], owner[graph.target]), "an edge joins two networks"
    assert int(graph.row_pointer[-1]) == graph.num_edges
    assert int(graph.node_cells.classes.max()) < node_classes(graph.frame)
    assert int(graph.edge_cells.classes.max()) < edge_classes(graph.frame)


def test_gradients_flow_back_through_the_graph() -> None:
    batch = random_batch(spec_named("gpt"), 1)
    values = flat(batch).requires_grad_()
    graph = graph_of(batch, GraphOptions())

    def there_and_back(x: Tensor) -> Tensor:
        return graph.rows(graph.node_values(x).square(), graph.edge_values(x).sin())

    out = there_and_back(values)
    (grad,) = torch.autograd.grad(out.sum(), values)
    on_nodes = torch.zeros_like(values, dtype=torch.bool)
    on_nodes[graph.node_cells.positions] = True
    assert torch.allclose(grad, torch.where(on_nodes, 2 * values, values.cos()))


# -- symmetry --------------------------------------------------------------------------------------------------------


def embedding(batch: WeightBatch | MixedWeightBatch, options: GraphOptions) -> Tensor:
    """``[B, 8]`` of random message passing that reads everything that a graph holds."""
    graph = graph_of(batch, options, reverse=True)
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    rows = torch.stack([graph.role, graph.row, graph.position, graph.function], dim=1).double()
    x = torch.sin(rows @ random(4, 8)) + graph.node_values(flat(batch)).squeeze(-1) @ random(len(graph.frame.slots), 8)
    e = graph.edge_values(flat(batch)).squeeze(-1) @ random(graph.frame.width, 8)
    e = torch.sin(e + random(len(graph.frame.types), 8)[graph.type])[graph.directed_edge]
    e = e + graph.reversed.unsqueeze(-1) * random(8)
    for _ in range(4):
        message = torch.tanh(x[graph.directed_source] @ random(8, 8) * 0.5) * e
        x = torch.tanh(x + torch.zeros_like(x).index_add(0, graph.directed_target, message) * 0.3)
    return x.new_zeros(len(graph), 8).index_add(0, graph.node_owner, x.sin())


@pytest.mark.parametrize("name, options", list(product(NAMES, OPTIONS)))
def test_graph_has_the_symmetries_of_the_network(name: str, options: GraphOptions) -> None:
    spec = spec_named(name)
    spec = tied_attention(spec) if options.attention == "triple" else spec
    batch = random_batch(spec)
    before = embedding(batch, options)
    moved = act(draw(spec, len(batch), dtype=torch.float64), batch)
    assert not torch.equal(moved.values, batch.values)
    assert torch.allclose(embedding(moved, options), before, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_graph_tells_apart_what_is_no_symmetry(name: str) -> None:
    """Negative control: every tensor of which one axis is turned alone gives another graph."""
    spec = spec_named(name)
    batch = random_batch(spec)
    before = embedding(batch, GraphOptions())
    for tensor in (t for t in spec.tensors if t.role in ("weight", "embedding") and max(t.shape) > 1):
        index = torch.from_numpy(tensor.index())
        axis = max(range(index.dim()), key=lambda a: index.shape[a])
        values = batch.values.clone()
        values[:, index.flatten()] = batch.values[:, index.roll(1, axis).flatten()]
        assert (embedding(batch.with_values(values), GraphOptions()) - before).abs().max() > 1e-4, tensor.name


def test_triple_attention_ties_queries_and_values() -> None:
    """The single node of (Q, K, V) has the smaller group: values permuted alone change it, and separate nodes not."""
    spec = spec_named("gpt")
    batch = random_batch(spec)
    order = torch.tensor([1, 2, 3, 0]).expand(len(batch), -1)
    moved = act(GroupElement(permutation={"blocks.0.qkv.value": order}), batch)
    separate, triple = GraphOptions(), GraphOptions(attention="triple")
    assert torch.allclose(embedding(moved, separate), embedding(batch, separate), atol=1e-10)
    assert (embedding(moved, triple) - embedding(batch, triple)).abs().max() > 1e-4
    assert len(tied_attention(spec).labels) == len(spec.labels) - 1


@pytest.mark.parametrize("kind", ["input", "output"])
def test_inputs_and_outputs_are_not_interchangeable(kind: str) -> None:
    spec = mlp_spec([4, 6, 5])
    batch = random_batch(spec)
    turned = torch.arange(spec.label[kind].size).roll(1).expand(len(batch), -1)
    moved = act(GroupElement(permutation={kind: turned}), batch)
    assert (embedding(moved, GraphOptions()) - embedding(batch, GraphOptions())).abs().max() > 1e-4


def test_tied_channels_of_a_skip_permute_jointly_only() -> None:
    """Two groups under one label: the joint permutation passes, that of one tensor's axis does not."""
    spec = spec_named("resnet_a")
    batch = random_batch(spec)
    before = embedding(batch, GraphOptions())
    label = next(t.axes[0] for t in spec.tensors if t.name == "conv.weight")
    order = torch.arange(spec.label[label].size).roll(1).expand(len(batch), -1)
    assert torch.allclose(embedding(act(GroupElement(permutation={label: order}), batch), GraphOptions()), before)
    index = torch.from_numpy(spec.tensor["layers.0.conv2.weight"].index())
    values = batch.values.clone()
    values[:, index.flatten()] = batch.values[:, index.roll(1, 0).flatten()]
    assert (embedding(batch.with_values(values), GraphOptions()) - before).abs().max() > 1e-4


# -- what is where ---------------------------------------------------------------------------------------------------


def test_mlp_is_a_node_per_neuron_and_an_edge_per_weight() -> None:
    graph = network_graph(mlp_spec([2, 5, 4, 3], "tanh"))
    assert [(n.size, n.role, n.depth, n.function) for n in graph.nodes] == [
        (2, "input", 0, "identity"), (5, "hidden", 1, "tanh"), (4, "hidden", 2, "tanh"), (3, "output", 3, "identity"),
    ]  # fmt: skip
    assert graph.num_edges == 2 * 5 + 5 * 4 + 4 * 3


class Kernels(nn.Sequential):
    """Kernels of 3 × 3, 5 × 5, 7 × 7 and 1 × 4 cells."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 5, padding=2), nn.ReLU(),
            nn.Conv2d(2, 2, 7, padding=3), nn.ReLU(), nn.Conv2d(2, 2, (1, 4)), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3),
        )  # fmt: skip


def test_kernels_are_centred_and_pooling_needs_no_nodes() -> None:
    spec = trace(Kernels(), torch.randn(1, 1, 9, 9))
    batch = WeightBatch(spec, torch.ones(1, spec.numel, 1))
    graph = graph_of(batch, GraphOptions())
    assert graph.frame.kernel == (7, 7) and graph.num_nodes == 1 + 4 * 2 + 3
    values = graph.edge_values(flat(batch)).view(-1, 7, 7)
    depth = [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5]
    for edge, target in enumerate(graph.target.tolist()):
        rows, columns = {
            1: (slice(2, 5), slice(2, 5)),
            2: (slice(1, 6), slice(1, 6)),
            3: (slice(0, 7), slice(0, 7)),
            4: (slice(3, 4), slice(1, 5)),  # of three spare columns, the odd one is last
            5: (slice(3, 4), slice(3, 4)),  # a linear layer is the centre
        }[depth[target]]
        expected = torch.zeros(7, 7)
        expected[rows, columns] = 1
        assert torch.equal(values[edge], expected)


@pytest.mark.parametrize("rank, conv", [(1, nn.Conv1d), (3, nn.Conv3d)])
def test_kernels_of_one_and_three_axes(rank: int, conv: type[nn.Module]) -> None:
    net = nn.Sequential(
        conv(1, 2, 3), nn.ReLU(), conv(2, 4, 2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 2**rank, 3)
    )
    spec = trace(net, torch.randn(1, 1, *(5,) * rank))
    graph = network_graph(spec)
    assert set(graph.kernels()) == {(3,) * rank, (2,) * rank}
    batch = random_batch(spec)
    moved = act(draw(spec, 3, dtype=torch.float64), batch)
    for options in OPTIONS:
        assert torch.allclose(embedding(moved, options), embedding(batch, options), atol=1e-10)


def test_flattened_maps_in_three_forms() -> None:
    """LeNet: 6 channels at 4 positions feed 12 neurons."""
    sizes = {}
    for flatten in ("kernel", "repeat", "layer"):
        graph = network_graph(spec_named("lenet"), GraphOptions(flatten=flatten))  # type: ignore[arg-type]
        sizes[flatten] = (graph.num_nodes, graph.num_edges)
    first, last = 1 * 4, 12 * 10
    assert sizes["kernel"] == (1 + 4 + 6 + 12 + 10, first + 24 + 72 + last)
    assert sizes["repeat"] == (1 + 4 + 24 + 12 + 10, first + 24 * 4 + 72 * 4 + last)
    assert sizes["layer"] == (1 + 4 + 6 + 24 + 12 + 10, first + 24 + 24 + 72 * 4 + last)


def test_skip_edges_carry_one_at_the_centre() -> None:
    spec = spec_named("resnet_b")
    batch = WeightBatch(spec, torch.zeros(1, spec.numel, 1))
    graph = graph_of(batch, GraphOptions())
    values = graph.edge_values(flat(batch))[graph.type == graph.frame.number_of("kernel")].squeeze(-1)
    skipped = values[values.abs().sum(1) > 0]
    assert len(skipped) == 4 and torch.equal(skipped, torch.eye(9)[4].expand(4, -1))


def test_attention_has_nodes_for_query_keys_and_for_values() -> None:
    graph = network_graph(spec_named("gpt"))
    sizes = {n.function: n.size for n in graph.nodes}
    assert sizes["query_key"] == sizes["value"] == 12 and sizes["table"] == 8
    counts: dict[str, int] = {}
    for edges in graph.edges:
        counts[edges.type] = counts.get(edges.type, 0) + len(edges)
    assert counts["query_key"] == 12 * 12 and counts["head"] == 3 * 4 * 4 and counts["layer_norm"] == 3 * 12


def test_recurrent_edges_hold_all_gates() -> None:
    graph = network_graph(spec_named("lstm"))
    by_type = {e.type: e for e in graph.edges}
    assert by_type["lstm"].positions.shape == (5 * 3, 4)
    assert by_type["lstm_hidden"].positions.shape == (5 * 5, 4) and by_type["lstm_hidden"].recurrent


# -- refusals --------------------------------------------------------------------------------------------------------


def test_refuses_a_spec_without_connections() -> None:
    with pytest.raises(GraphError, match="needs connections"):
        network_graph(mlp_spec([2, 3]).replace(connections=()))


def test_refuses_values_that_no_connection_uses() -> None:
    spec = mlp_spec([2, 3])
    stored = (*spec.stored, StoredTensor("temperature", (1,), spec.numel))
    tensors = (*spec.tensors, VirtualTensor("temperature", "other", spec.numel, (1,), (1,), ("one",), (0,)))
    more = spec.replace(stored=stored, tensors=tensors, labels=(*spec.labels, Label("one", 1, "fixed")))
    with pytest.raises(GraphError, match="temperature"):
        network_graph(more)


def test_refuses_a_kind_that_it_does_not_know_and_circles() -> None:
    spec = mlp_spec([2, 3, 3])
    odd = (*spec.connections, Connection("hidden1", "output", "telepathy"))
    with pytest.raises(GraphError, match="telepathy"):
        network_graph(spec.replace(connections=odd))
    back = (
        *spec.connections,
        Connection("output", "hidden1", "skip"),
        Connection("output", "end", "skip", {}, {"scale": 2}),
    )
    circle = spec.replace(connections=back, groups=(*spec.groups, NeuronGroup("end", "output")))
    with pytest.raises(GraphError, match="circle"):
        network_graph(circle)


def test_a_network_of_another_architecture_must_fit_the_frame() -> None:
    frame = frame_of([mlp_spec([2, 5, 3])])
    deeper = random_batch(mlp_spec([2, 4, 4, 4, 3]))
    graph = edge_list(deeper, frame)
    assert set(graph.row[graph.role == 1].tolist()) == {0}, "deeper layers count as the deepest of the frame"
    for other, what in (
        (mlp_spec([3, 5, 3]), "3 inputs"),
        (mlp_spec([2, 5, 4]), "4 outputs"),
        (mlp_spec([2, 5, 3], "tanh"), "tanh"),
        (spec_named("lstm"), "lstm"),
    ):
        with pytest.raises(GraphError, match=what):
            edge_list(random_batch(other), frame)


def test_a_kernel_must_fit_the_frame() -> None:
    small = trace(nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.randn(1, 1, 5, 5))
    large = trace(nn.Sequential(nn.Conv2d(1, 2, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.randn(1, 1, 5, 5))
    edge_list(random_batch(small), frame_of([large]))
    with pytest.raises(GraphError, match=r"\[5, 5\]"):
        edge_list(random_batch(large), frame_of([small]))
