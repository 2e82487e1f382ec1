"""GATv2Conv against PyTorch Geometric's layer: outputs, every gradient, state dicts, attention weights."""

from __future__ import annotations

import gc
import itertools
import os
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wsl.graphs.blocks import block_graph
from wsl.nn.gatv2.graph import EdgeGraph
from wsl.nn.gatv2.topology import topology
from wsl.nn.gatv2_conv import GATv2Conv
from wsl.spec import mlp_spec

with warnings.catch_warnings():  # importing torch_geometric scripts a class, which torch calls deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch_geometric.nn import GATv2Conv as PyGConv

NODES, EDGES = 20, 70


def awkward_graph(seed: int) -> Tensor:
    """20 nodes of which the last 3 are isolated, 70 edges with 4 self loops and 6 duplicates, unsorted."""
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(NODES - 3, (2, EDGES), generator=generator)
    edge_index[1, :4] = edge_index[0, :4]
    edge_index[:, 10:16] = edge_index[:, 20:26]
    return edge_index


def twins(in_channels: Any = 7, **options: Any) -> tuple[GATv2Conv, PyGConv]:
    """Both layers in float64 with the same weights, biases away from zero."""
    theirs = PyGConv(in_channels, **options).double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = GATv2Conv(in_channels, **options).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))


def gradients(layer: nn.Module, inputs: list[Tensor], run: Any) -> tuple[Tensor, dict[str, Tensor]]:
    for tensor in inputs:
        tensor.grad = None
        tensor.requires_grad_()
    out = run(layer)
    generator = torch.Generator().manual_seed(1)
    out.backward(torch.randn(out.shape, generator=generator, dtype=out.dtype))
    grads = {f"input {i}": t.grad.clone() for i, t in enumerate(inputs) if t.grad is not None}
    return out.detach(), grads | {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}


def assert_same(ours: nn.Module, theirs: nn.Module, inputs: list[Tensor], run: Any, tolerance: float = 1e-12) -> None:
    out, grads = gradients(ours, inputs, run)
    expected, expected_grads = gradients(theirs, inputs, run)
    assert relative(out, expected) <= tolerance
    assert grads.keys() == expected_grads.keys()
    for name, grad in expected_grads.items():
        assert relative(grads[name], grad) <= tolerance, name


@pytest.mark.parametrize(
    ("heads", "concat", "share", "edge_dim", "loops"),
    list(itertools.product((1, 3), (True, False), (True, False), (None, 3), (True, False))),
)
def test_outputs_and_all_gradients_equal_those_of_pyg(
    heads: int, concat: bool, share: bool, edge_dim: int | None, loops: bool
) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        ours, theirs = twins(
            out_channels=5 if heads == 1 else 4, heads=heads, concat=concat, share_weights=share,
            edge_dim=edge_dim, add_self_loops=loops, residual=seed == 1, bias=seed != 2,
        )  # fmt: skip
        inputs = [torch.randn(NODES, 7, dtype=torch.float64)]
        inputs += [] if edge_dim is None else [torch.randn(EDGES, edge_dim, dtype=torch.float64)]
        edge_index = awkward_graph(seed)
        assert_same(ours, theirs, inputs, lambda layer: layer(inputs[0], edge_index, *inputs[1:]))  # noqa: B023


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("loops", [False, True])
def test_bipartite_graphs_equal_those_of_pyg(share: bool, loops: bool) -> None:
    sizes = (7, 7) if share else (7, 4)
    ours, theirs = twins(sizes, out_channels=3, heads=2, share_weights=share, add_self_loops=loops, residual=True)
    inputs = [torch.randn(8, sizes[0], dtype=torch.float64), torch.randn(5, sizes[1], dtype=torch.float64)]
    edge_index = torch.stack([torch.randint(8, (30,)), torch.randint(5, (30,))])
    assert_same(ours, theirs, inputs, lambda layer: layer((inputs[0], inputs[1]), edge_index))


@pytest.mark.parametrize("fill", ["add", "mean", "min", "max", "mul", 0.5, torch.tensor([0.1, 0.2, 0.3])])
def test_every_fill_value_equals_that_of_pyg(fill: Any) -> None:
    ours, theirs = twins(out_channels=4, heads=2, edge_dim=3, fill_value=fill)
    inputs = [torch.randn(NODES, 7, dtype=torch.float64), torch.randn(EDGES, 3, dtype=torch.float64)]
    edge_index = awkward_graph(0)
    assert_same(ours, theirs, inputs, lambda layer: layer(inputs[0], edge_index, inputs[1]))


@pytest.mark.parametrize("loops", [False, True])
def test_reverse_flow_and_flat_edge_features(loops: bool) -> None:
    ours, theirs = twins(out_channels=4, edge_dim=1, flow="target_to_source", add_self_loops=loops)
    inputs = [torch.randn(NODES, 7, dtype=torch.float64), torch.randn(EDGES, dtype=torch.float64)]
    edge_index = awkward_graph(2)
    assert_same(ours, theirs, inputs, lambda layer: layer(inputs[0], edge_index, inputs[1]))


@pytest.mark.parametrize("form", ["edge_list", "csr"])
@pytest.mark.parametrize("loops", [False, True])
def test_attention_weights_come_in_the_callers_order_and_carry_gradients(form: Any, loops: bool) -> None:
    ours, theirs = twins(out_channels=4, heads=3, add_self_loops=loops)
    ours.form = form
    x = torch.randn(NODES, 7, dtype=torch.float64)
    edge_index = awkward_graph(1)
    _, (edges, alpha) = ours(x, edge_index, return_attention_weights=True)
    _, (expected_edges, expected) = theirs(x, edge_index, return_attention_weights=True)
    assert torch.equal(edges, expected_edges)
    assert relative(alpha.detach(), expected.detach()) <= 1e-12

    def entropy(layer: nn.Module) -> Tensor:
        _, (_, weights) = layer(x, edge_index, return_attention_weights=True)
        return torch.special.entr(weights)

    x.requires_grad_()
    assert_same(ours, theirs, [x], entropy)


def test_attention_weights_are_returned_without_dropout_and_dropout_follows_the_seed() -> None:
    layer = GATv2Conv(7, 4, heads=2, dropout=0.6)
    x, edge_index = torch.randn(NODES, 7), awkward_graph(0)
    layer.eval()
    plain, (_, expected) = layer(x, edge_index, return_attention_weights=True)
    layer.train()
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        y, (_, alpha) = layer(x, edge_index, return_attention_weights=True)
        assert torch.equal(alpha, expected)
        outputs.append(y)
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], plain)


def test_dropped_outputs_average_to_those_without_dropout() -> None:
    layer = GATv2Conv(7, 2, dropout=0.3).double()
    x = torch.randn(NODES, 7, dtype=torch.float64)
    copies = 2000  # of one graph side by side: as many draws in one call
    edge_index = (awkward_graph(0).unsqueeze(1) + NODES * torch.arange(copies).view(1, -1, 1)).flatten(1)
    with torch.no_grad():
        mean = layer(x.repeat(copies, 1), edge_index).view(copies, NODES, -1).mean(0)
        torch.testing.assert_close(mean, layer.eval()(x, awkward_graph(0)), rtol=0.0, atol=0.1)


def test_state_dicts_go_both_ways() -> None:
    for options in ({}, {"share_weights": True}, {"edge_dim": 3, "residual": True, "bias": False}):
        ours = GATv2Conv(7, 4, heads=2, **options)
        theirs = PyGConv(7, 4, heads=2, **options)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        theirs.load_state_dict(ours.state_dict())
        ours.load_state_dict(theirs.state_dict())


def test_initialisation_has_the_bounds_of_pyg() -> None:
    layer = GATv2Conv(30, 40, heads=2, edge_dim=6)
    for weight, bound in (
        (layer.lin_l.weight, (6 / 110) ** 0.5),
        (layer.lin_edge.weight, (6 / 86) ** 0.5),
        (layer.att, (6 / 42) ** 0.5),
    ):
        assert 0.9 * bound < float(weight.detach().abs().max()) <= bound
    assert not any(layer.state_dict()[name].any() for name in ("bias", "lin_l.bias", "lin_r.bias"))


@pytest.mark.parametrize("sizes", [-1, (-1, -1)])
def test_lazy_sizes(sizes: Any) -> None:
    layer = GATv2Conv(sizes, 4, heads=2, residual=True, add_self_loops=False)
    x = torch.randn(NODES, 7)
    layer(x if sizes == -1 else (x, torch.randn(NODES, 5)), awkward_graph(0)).sum().backward()
    assert layer.lin_l.weight.shape == (8, 7)
    assert layer.lin_r.weight.shape == layer.res.weight.shape == (8, 7 if sizes == -1 else 5)
    assert float(layer.lin_l.weight.detach().abs().max()) <= (6 / 15) ** 0.5
    assert layer.lin_r.weight.grad is not None


def test_direct_terms() -> None:
    """theta_n is PyG's residual on a graph without loops; theta_r adds the query map."""
    x = torch.randn(NODES, 7, dtype=torch.float64)
    edge_index = awkward_graph(0)
    loopless = edge_index[:, edge_index[0] != edge_index[1]]
    theirs = PyGConv(7, 4, heads=2, residual=True, add_self_loops=False).double()
    theta_n = GATv2Conv(7, 4, heads=2, direct="theta_n").double()
    theta_n.load_state_dict({name.replace("res.", "lin_n."): value for name, value in theirs.state_dict().items()})
    assert relative(theta_n(x, edge_index).detach(), theirs(x, loopless).detach()) <= 1e-12
    theirs = PyGConv(7, 4, heads=2, add_self_loops=False, concat=False).double()
    theta_r = GATv2Conv(7, 4, heads=2, direct="theta_r", concat=False).double()
    theta_r.load_state_dict(theirs.state_dict())
    expected = theirs(x, loopless) + theirs.lin_r(x).view(-1, 2, 4).mean(1)
    assert relative(theta_r(x, edge_index).detach(), expected.detach()) <= 1e-12
    lonely = torch.tensor([[0], [1]])
    for direct, learns in (("none", False), ("theta_r", True)):
        layer = GATv2Conv(7, 4, direct=direct, add_self_loops=False).double()
        layer(x, lonely).square().sum().backward()
        assert bool(layer.lin_r.weight.grad.abs().max() > 1e-12) == learns


def test_topology_is_remembered_and_follows_writes_to_the_edges() -> None:
    layer = GATv2Conv(7, 4).double()
    x, edge_index = torch.randn(NODES, 7, dtype=torch.float64), awkward_graph(0)
    before = layer(x, edge_index)
    first = topology(edge_index, NODES, NODES, "replace")
    assert topology(edge_index, NODES, NODES, "replace") is first
    assert topology(edge_index, NODES, NODES, "keep") is not first
    edge_index[0, 5] = (edge_index[0, 5] + 1) % 17
    assert topology(edge_index, NODES, NODES, "replace") is not first
    after = layer(x, edge_index)
    assert not torch.equal(before, after)
    assert torch.equal(after, layer(x, edge_index.clone()))
    known = weakref.ref(topology(edge_index, NODES, NODES, "replace"))
    del edge_index
    gc.collect()
    assert known() is None


def test_prepared_graphs() -> None:
    layer = GATv2Conv(7, 4, heads=2, edge_dim=1, add_self_loops=False).double()
    graph = block_graph(mlp_spec([3, 4, 2]), reverse_edges=True)
    x = torch.randn(5 * graph.num_nodes, 7, dtype=torch.float64)
    edge_attr = torch.randn(5 * graph.num_edges, 1, dtype=torch.float64)
    y, (edge_index, alpha) = layer(x, graph, edge_attr, return_attention_weights=True)
    listed, (_, expected) = layer(x, edge_index, edge_attr, return_attention_weights=True)
    assert relative(y.detach(), listed.detach()) <= 1e-12
    assert relative(alpha.detach(), expected.detach()) <= 1e-12
    prepared = EdgeGraph.from_edge_index(edge_index, len(x))
    assert torch.equal(layer(x, prepared, edge_attr), listed)
    with pytest.raises(ValueError, match="add_self_loops=False"):
        GATv2Conv(7, 4)(x.float(), prepared)
    with pytest.raises(ValueError, match="features are given for"):
        layer(x[:-1], graph, edge_attr)


def test_wrong_input_is_named() -> None:
    x, edge_index = torch.randn(NODES, 7), awkward_graph(0)
    with pytest.raises(ValueError, match="edge_dim is None"):
        GATv2Conv(7, 4)(x, edge_index, torch.randn(EDGES, 3))
    with pytest.raises(ValueError, match="edge_dim is 3"):
        GATv2Conv(7, 4, edge_dim=3)(x, edge_index)
    with pytest.raises(ValueError, match=r"\[E, 3\]"):
        GATv2Conv(7, 4, edge_dim=3)(x, edge_index, torch.randn(EDGES, 2))
    with pytest.raises(ValueError, match="69 rows"):
        GATv2Conv(7, 4, edge_dim=3)(x, edge_index, torch.randn(EDGES - 1, 3))
    with pytest.raises(ValueError, match="there are 10"):
        GATv2Conv(7, 4)(x[:10], edge_index)
    with pytest.raises(ValueError, match=r"\[2, E\]"):
        GATv2Conv(7, 4, add_self_loops=False)(x, edge_index.t())
    with pytest.raises(ValueError, match="dropout is a probability"):
        GATv2Conv(7, 4, dropout=1.5)
    with pytest.raises(ValueError, match="same map"):
        GATv2Conv(7, 4, residual=True, direct="theta_n")
    with pytest.raises(ValueError, match="no reduction"):
        GATv2Conv(7, 4, edge_dim=3, fill_value="median")(x, edge_index, torch.randn(EDGES, 3))
    for name in ("flow", "score", "direct", "form"):
        with pytest.raises(ValueError, match=f"{name} is .*'other'"):
            GATv2Conv(7, 4, **{name: "other"})


def test_memory_is_flat_over_200_steps() -> None:
    """Heads, edge features and a shared map: the combination of which PyG users report growth."""
    layer = GATv2Conv(16, 16, heads=8, edge_dim=4, share_weights=True, dropout=0.1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    x, edge_attr = torch.randn(100, 16), torch.randn(1000, 4)
    page = os.sysconf("SC_PAGE_SIZE")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    def step() -> None:
        edge_index = torch.randint(100, (2, 1000))  # a new graph each time: remembered ones must go
        optimizer.zero_grad()
        layer(x, edge_index, edge_attr).square().mean().backward()
        optimizer.step()

    for _ in range(30):
        step()
    gc.collect()
    before = resident()
    for _ in range(200):
        step()
    gc.collect()
    one_step = 1000 * 8 * 16 * 4  # one E×H×C tensor
    assert resident() - before < 16 * one_step, f"grew by {(resident() - before) / 2**20:.1f} MiB in 200 steps"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler imports what torch calls deprecated
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # asked by torch's compiler where it takes over again
def test_compiled_layers_and_compiled_models_agree() -> None:
    ours, theirs = twins(out_channels=4, heads=2, edge_dim=3)
    inputs = [torch.randn(NODES, 7, dtype=torch.float64), torch.randn(EDGES, 3, dtype=torch.float64)]
    edge_index = awkward_graph(0)
    ours.compiled = True
    for form in ("auto", "edge_list"):
        ours.form = form
        assert_same(ours, theirs, inputs, lambda layer: layer(inputs[0], edge_index, inputs[1]))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = GATv2Conv(7, 4, heads=2), GATv2Conv(8, 3)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return self.second(self.first(x, edges).relu(), edges)

    net = Net().double()
    compiled = torch.compile(net, dynamic=True)
    for seed, nodes in enumerate((20, 30)):
        x, edges = torch.randn(nodes, 7, dtype=torch.float64), awkward_graph(seed)
        assert relative(compiled(x, edges).detach(), net(x, edges).detach()) <= 1e-12
