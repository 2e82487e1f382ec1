"""The closed-form GATv2 function: finite differences, exact identities, forms, dropout, memory, refusals."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from gatv2_inputs import EDGES, F_IN, FORMS, NODES, C, D, H, assert_close, draw, given, reference, results, run
from torch import Tensor

from wsl.graphs.blocks import block_graph
from wsl.nn.gatv2.dense_blocks import DenseBlocksForm
from wsl.nn.gatv2.edge_list import EdgeListForm
from wsl.nn.gatv2.graph import EdgeGraph
from wsl.nn.gatv2.maps import Inputs
from wsl.nn.gatv2.problem import Form, draw_keep
from wsl.nn.gatv2.scores import LeakyReLUScore, SoftplusScore
from wsl.nn.gatv2_function import Plan, gatv2
from wsl.spec import mlp_spec


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("concat", "shared", "theta_r", "direct", "dropout", "softplus"),
    [
        (True, False, False, False, 0.0, False),
        (False, True, False, False, 0.0, False),
        (True, True, True, False, 0.5, False),
        (False, False, True, True, 0.3, True),
        (True, False, False, True, 0.0, True),
    ],
)
def test_equals_the_textbook_layer(
    form: str, concat: bool, shared: bool, theta_r: bool, direct: bool, dropout: float, softplus: bool
) -> None:
    inputs = draw(NODES, EDGES.shape[1], shared=shared, direct=direct, outputs=H * C if concat else C)
    score = SoftplusScore() if softplus else LeakyReLUScore(0.1)
    graph = EdgeGraph.from_edge_index(EDGES, NODES)
    plan = Plan(FORMS[form](graph), concat, score, theta_r, dropout, seed=11)
    assert_close(
        results(lambda i: run(plan, i), inputs), results(lambda i: reference(plan, EDGES, i), inputs)
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shared", [False, True])
def test_bipartite_equals_the_textbook_layer(form: str, shared: bool) -> None:
    edge_index = torch.tensor([[0, 4, 2, 1, 3, 4], [1, 1, 0, 3, 3, 3]])
    inputs = draw(5, 6, targets=4, shared=shared, direct=1)
    plan = Plan(FORMS[form](EdgeGraph.from_edge_index(edge_index, 5, 4)))
    assert_close(results(lambda i: run(plan, i), inputs), results(lambda i: reference(plan, edge_index, i), inputs))


@pytest.mark.parametrize("form", [*FORMS, "dense blocks"])
@pytest.mark.parametrize(("dropout", "softplus"), [(0.0, False), (0.4, True)])
def test_finite_differences(form: str, dropout: float, softplus: bool) -> None:
    if form == "dense blocks":
        graph = block_graph(mlp_spec([2, 3, 1]), reverse_edges=True)
        built: Form = DenseBlocksForm(graph, 2, 1)
        inputs = draw(2 * graph.num_nodes, built.num_edges, direct=1)
    else:
        built = FORMS[form](EdgeGraph.from_edge_index(EDGES, NODES))
        inputs = draw(NODES, EDGES.shape[1], direct=1)
    plan = Plan(
        built, theta_r=softplus, dropout=dropout, seed=5, score=SoftplusScore() if softplus else LeakyReLUScore()
    )
    assert torch.autograd.gradcheck(lambda *tensors: gatv2(plan, Inputs(*tensors)), tuple(inputs), fast_mode=True)
    if form == "edge list":
        assert torch.autograd.gradcheck(lambda *tensors: gatv2(plan, Inputs(*tensors)), tuple(inputs))


@pytest.mark.parametrize(("targets", "shared", "concat"), [(4, False, True), (4, True, False), (None, True, True)])
def test_finite_differences_bipartite_shared_and_mean(targets: int | None, shared: bool, concat: bool) -> None:
    edge_index = torch.tensor([[0, 4, 2, 1, 3, 4], [1, 1, 0, 3, 3, 3]])
    inputs = draw(5, 6, targets=targets, shared=shared, outputs=H * C if concat else C)
    plan = Plan(EdgeListForm(EdgeGraph.from_edge_index(edge_index, 5, targets)), concat, dropout=0.2, seed=9)
    names = [name for name in Inputs._fields if getattr(inputs, name) is not None]

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return gatv2(plan, Inputs(**dict(zip(names, tensors, strict=True))))

    assert torch.autograd.gradcheck(function, tuple(given(inputs)))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("chunk", [None, 2])
def test_dense_blocks_equal_the_edge_list(
    reverse: bool, dropout: float, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = block_graph(mlp_spec([3, 5, 4, 2]), reverse)
    form = DenseBlocksForm(graph, 3, chunk)
    inputs = draw(3 * graph.num_nodes, form.num_edges)
    blocks = results(lambda i: run(Plan(form, dropout=dropout, seed=5), i), inputs)
    listed = EdgeListForm(form.sorted_edges(torch.device("cpu")))
    assert_close(blocks, results(lambda i: run(Plan(listed, dropout=dropout, seed=5), i), inputs))
    monkeypatch.setattr("wsl.nn.gatv2.edge_list.CHUNK_FLOATS", 2 * 4 * H * C)  # blocks in pieces of two rows
    assert_close(blocks, results(lambda i: run(Plan(form, dropout=dropout, seed=5), i), inputs))


@pytest.mark.parametrize("form", FORMS)
def test_graph_without_edges_and_without_nodes(form: str) -> None:
    for nodes in (4, 0):
        none = torch.zeros(2, 0, dtype=torch.int64)
        inputs = draw(nodes, 0)
        plan = Plan(FORMS[form](EdgeGraph.from_edge_index(none, nodes)))
        y, alpha = run(plan, inputs)
        (y.sum() + alpha.sum()).backward()
        assert torch.equal(y, inputs.bias.expand(nodes, -1)) and alpha.shape == (0, H)
        assert torch.equal(inputs.bias.grad, torch.full_like(inputs.bias, nodes))
        for name in ("x_source", "weight_l", "att", "bias_l", "weight_r", "edge_attr", "weight_edge"):
            assert not getattr(inputs, name).grad.any(), name


def test_huge_logits_and_straddling_chunks_stay_finite() -> None:
    """The running maximum must be carried from chunk to chunk: one node, logits that rise and fall by hundreds."""
    edges = 50
    edge_index = torch.stack([torch.arange(edges), torch.zeros(edges, dtype=torch.int64)])
    inputs = draw(edges, edges)
    scaled = inputs._replace(att=(inputs.att.detach() * 500).requires_grad_())
    for chunk in (1, 7):
        plan = Plan(EdgeListForm(EdgeGraph.from_edge_index(edge_index, edges), chunk))
        ours = results(lambda i: run(plan, i), scaled)  # noqa: B023
        assert_close(ours, results(lambda i: reference(plan, edge_index, i), scaled))  # noqa: B023


@pytest.mark.parametrize("seed", range(3))
def test_exact_identities(seed: int) -> None:
    """Softmax shift, sign disagreement, bias and scaling identities of the derivation (float64)."""
    torch.manual_seed(seed)
    edge_index = torch.randint(17, (2, 70))
    inputs = draw(20, 70)
    form = EdgeListForm(EdgeGraph.from_edge_index(edge_index, 20), 16)
    plan = Plan(form)
    results(lambda i: (run(plan, i)[0], torch.zeros(())), inputs)
    y, _ = run(plan, inputs)
    out = (y - inputs.bias).detach()
    generator = torch.Generator().manual_seed(3)
    grad = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    reached = torch.bincount(edge_index[1], minlength=20) > 0
    assert_close([inputs.bias_l.grad - inputs.bias_r.grad], [grad[reached].sum(0)])

    def inner(weight: Tensor) -> Tensor:
        return (weight * weight.grad).flatten(1).sum(1) if weight.dim() > 1 else weight * weight.grad

    names = ("weight_l", "bias_l", "weight_r", "bias_r", "weight_edge")
    scaling = sum(inner(getattr(inputs, name)) for name in names) - (inputs.att * inputs.att.grad).flatten()
    assert_close([scaling.detach()], [(grad * out).sum(0)])


def test_query_map_learns_nothing_where_all_scores_agree_in_sign() -> None:
    inputs = draw(20, 70)
    edge_index = torch.randint(20, (2, 70))
    inputs.bias_r.data += 1000.0
    run(Plan(EdgeListForm(EdgeGraph.from_edge_index(edge_index, 20))), inputs)[0].square().sum().backward()
    assert float(inputs.weight_r.grad.abs().max()) < 1e-9 * float(inputs.weight_l.grad.abs().max())


def test_order_of_edges_does_not_matter() -> None:
    inputs = draw(20, 70)
    edge_index = torch.randint(20, (2, 70))
    order = torch.randperm(70)
    permuted = inputs._replace(edge_attr=inputs.edge_attr.detach()[order].requires_grad_())
    a = run(Plan(EdgeListForm(EdgeGraph.from_edge_index(edge_index, 20))), inputs)
    b = run(Plan(EdgeListForm(EdgeGraph.from_edge_index(edge_index[:, order], 20))), permuted)
    assert_close([a[0].detach(), a[1][order].detach()], [t.detach() for t in b])


def test_dropout_is_a_function_of_the_seed_and_scales_what_it_keeps() -> None:
    like = torch.zeros((), dtype=torch.float64)
    keep = draw_keep((1000, 4), 0.25, 7, like)
    assert torch.equal(keep, draw_keep((1000, 4), 0.25, 7, like))
    assert not torch.equal(keep, draw_keep((1000, 4), 0.25, 8, like))
    assert set(keep.unique().tolist()) == {0.0, 1.0 / 0.75}
    assert abs(float((keep > 0).double().mean()) - 0.75) < 0.03
    assert not draw_keep((10, 4), 1.0, 7, like).any()


def test_second_derivatives_are_refused_by_name() -> None:
    inputs = draw(NODES, EDGES.shape[1])
    y, _ = run(Plan(EdgeListForm(EdgeGraph.from_edge_index(EDGES, NODES))), inputs)
    (grad,) = torch.autograd.grad(y.square().sum(), inputs.x_source, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        grad.square().sum().backward()


@pytest.mark.parametrize("form", ["edge list", "csr", "dense blocks"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_saves_nothing_of_the_size_of_edges_times_channels(form: str, dropout: float) -> None:
    graph = block_graph(mlp_spec([8, 16, 16, 8]), reverse_edges=True)
    blocks = DenseBlocksForm(graph, 4)
    built: Form = blocks if form == "dense blocks" else FORMS[form](blocks.sorted_edges(torch.device("cpu")))
    inputs = draw(4 * graph.num_nodes, built.num_edges)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.numel()), t)[1], lambda t: t):
        gatv2(Plan(built, dropout=dropout), inputs)
    edges, nodes = built.num_edges, 4 * graph.num_nodes
    assert nodes * H * C < edges * H * C / 4  # or the bound would say nothing
    assert saved and max(saved) <= max(edges * H, edges * D, nodes * H * C)
    parameters = sum(t.numel() for t in given(inputs)) - edges * D - nodes * F_IN
    assert sum(saved) <= 3 * nodes * H * C + edges * (H + D) + nodes * F_IN + parameters


def peak_bytes(step: Callable[[], None]) -> int:
    """Largest running sum of what a step allocates and frees."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    total = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak


def test_a_step_never_holds_a_tensor_of_edges_times_channels() -> None:
    nodes, edges = 500, 50_000
    inputs = draw(nodes, edges, edge=False, dtype=torch.float32)
    edge_index = torch.randint(nodes, (2, edges))
    whole = 4 * edges * H * C
    peaks = {}
    for name, form in FORMS.items():
        plan = Plan(form(EdgeGraph.from_edge_index(edge_index, nodes)))
        if name == "edge list":
            plan = Plan(EdgeListForm(plan.form.sorted_edges(torch.device("cpu")), 1024))
        if name != "edge list, chunks of 3":
            peaks[name] = peak_bytes(lambda: gatv2(plan, inputs)[0].sum().backward())  # noqa: B023
    assert peaks["edge list"] < 0.8 * whole  # α and the logits' gradient among it: H / (H·C) of it each
    assert peaks["csr"] > 3 * whole  # or the measurement would say nothing


@pytest.mark.parametrize(("shared", "bias", "edge"), list(itertools.product([False, True], repeat=3)))
def test_only_wanted_gradients_are_returned(shared: bool, bias: bool, edge: bool) -> None:
    inputs = draw(NODES, EDGES.shape[1], shared=shared, edge=edge)
    inputs.x_source.requires_grad_(False)
    if inputs.edge_attr is not None:
        inputs.edge_attr.requires_grad_(False)
    inputs.bias.requires_grad_(bias)
    run(Plan(EdgeListForm(EdgeGraph.from_edge_index(EDGES, NODES))), inputs)[0].sum().backward()
    for tensor in given(inputs):
        assert (tensor.grad is not None) == tensor.requires_grad


def test_output_may_be_written_to_in_place() -> None:
    inputs = draw(NODES, EDGES.shape[1])._replace(bias=None)
    plan = Plan(EdgeListForm(EdgeGraph.from_edge_index(EDGES, NODES)))
    plain, _ = run(plan, inputs)
    plain.relu().sum().backward()
    expected = inputs.att.grad.clone()
    inputs.att.grad = None
    run(plan, inputs)[0].relu_().sum().backward()
    assert torch.equal(inputs.att.grad, expected)
