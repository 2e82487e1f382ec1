"""The closed-form GATv2 function in float32, half precision and compiled."""

from __future__ import annotations

import pytest
import torch
from gatv2_inputs import assert_close, draw, results, run

from wsl.graphs.blocks import block_graph
from wsl.nn.gatv2.csr import CsrForm
from wsl.nn.gatv2.dense_blocks import DenseBlocksForm
from wsl.nn.gatv2.edge_list import EdgeListForm
from wsl.nn.gatv2.graph import EdgeGraph
from wsl.nn.gatv2.maps import Inputs
from wsl.nn.gatv2_function import Plan, gatv2
from wsl.spec import mlp_spec


def test_float32_is_as_exact_as_float32_allows() -> None:
    inputs = draw(200, 2000)
    edge_index = torch.randint(200, (2, 2000))
    plan = Plan(EdgeListForm(EdgeGraph.from_edge_index(edge_index, 200), 100))
    exact = results(lambda i: run(plan, i), inputs)
    single = Inputs(*(None if t is None else t.detach().float().requires_grad_() for t in inputs))
    for a, b in zip(results(lambda i: run(plan, i), single), exact, strict=True):
        assert float((a - b).norm() / b.norm()) < 5e-6


def test_half_precision_is_computed_in_float32() -> None:
    inputs = draw(20, 70, dtype=torch.float32)
    edge_index = torch.randint(20, (2, 70))
    plan = Plan(EdgeListForm(EdgeGraph.from_edge_index(edge_index, 20)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast, _ = gatv2(plan, inputs)
    expected, _ = gatv2(plan, inputs)
    assert torch.equal(under_autocast, expected)
    low = Inputs(*(None if t is None else t.detach().bfloat16().requires_grad_() for t in inputs))
    y, alpha = gatv2(plan, low)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and alpha.dtype == torch.float32
    assert low.att.grad.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler imports what torch calls deprecated
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_compiled_kernels_agree(dropout: float) -> None:
    graph = block_graph(mlp_spec([3, 5, 4, 2]), True)
    blocks = DenseBlocksForm(graph, 3, 2)
    listed = blocks.sorted_edges(torch.device("cpu"))
    inputs = draw(3 * graph.num_nodes, blocks.num_edges)
    expected = results(lambda i: run(Plan(blocks, dropout=dropout, seed=5), i), inputs)
    for form in (DenseBlocksForm(graph, 3, 2, True), EdgeListForm(listed, 50, True), CsrForm(listed, True)):
        assert_close(results(lambda i: run(Plan(form, dropout=dropout, seed=5), i), inputs), expected)  # noqa: B023
