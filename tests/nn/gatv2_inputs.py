"""Small graphs and inputs for the closed-form GATv2 function, and the textbook layer beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wsl.nn.gatv2.csr import CsrForm
from wsl.nn.gatv2.edge_list import EdgeListForm
from wsl.nn.gatv2.graph import EdgeGraph
from wsl.nn.gatv2.maps import Inputs
from wsl.nn.gatv2.problem import Form, draw_keep
from wsl.nn.gatv2_function import Plan, gatv2

H, C, D, F_IN = 3, 4, 2, 5

# isolated node 6, node 5 with one edge, a self loop, a double edge
EDGES = torch.tensor([[0, 1, 2, 3, 3, 4, 4, 0, 2, 0], [1, 0, 2, 0, 0, 1, 2, 5, 1, 2]])
NODES = 7

FORMS: dict[str, Callable[[EdgeGraph], Form]] = {
    "edge list": EdgeListForm,
    "edge list, chunks of 3": lambda graph: EdgeListForm(graph, 3),
    "csr": CsrForm,
}


def draw(
    sources: int, edges: int, targets: int | None = None, edge: bool = True, direct: int = 0, shared: bool = False,
    outputs: int = H * C, dtype: torch.dtype = torch.float64,
) -> Inputs:  # fmt: skip
    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype).requires_grad_()

    return Inputs(
        x_source=randn(sources, F_IN),
        weight_l=randn(H * C, F_IN),
        att=randn(H, C),
        x_target=None if targets is None else randn(targets, F_IN),
        bias_l=randn(H * C),
        weight_r=None if shared else randn(H * C, F_IN),
        bias_r=None if shared else randn(H * C),
        edge_attr=randn(edges, D) if edge else None,
        weight_edge=randn(H * C, D) if edge else None,
        weight_direct=randn(outputs, F_IN) if direct else None,
        bias=randn(outputs),
    )


def given(inputs: Inputs) -> list[Tensor]:
    return [t for t in inputs if t is not None]


def run(plan: Plan, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """y and α in the caller's order."""
    y, alpha = gatv2(plan, inputs)
    return y, plan.form.to_caller(alpha)


def reference(plan: Plan, edge_index: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The textbook layer, each edge by its definition, differentiated by autograd."""
    source, target = edge_index
    xl = (inputs.x_source @ inputs.weight_l.T + inputs.bias_l).view(-1, H, C)
    weight_r, bias_r = (inputs.weight_l, inputs.bias_l) if inputs.weight_r is None else (inputs.weight_r, inputs.bias_r)
    xr = (inputs.query @ weight_r.T + bias_r).view(-1, H, C)
    u = xl[source] + xr[target]
    if inputs.edge_attr is not None:
        u = u + (inputs.edge_attr @ inputs.weight_edge.T).view(-1, H, C)
    slope = getattr(plan.score, "slope", None)
    z = torch.nn.functional.softplus(u) if slope is None else torch.where(u > 0, u, slope * u)
    logit = (z * inputs.att).sum(-1)
    alpha, rows = torch.zeros_like(logit), []
    for node in range(len(xr)):
        into = (target == node).nonzero().squeeze(-1)
        alpha = alpha.index_put((into,), logit[into].softmax(0))
    keep = draw_keep(tuple(alpha.shape), plan.dropout, plan.seed, alpha) if plan.dropout else torch.ones_like(alpha)
    messages = xl[source] * (alpha * keep).unsqueeze(-1)
    for node in range(len(xr)):
        rows.append(messages[target == node].sum(0))
    out = torch.stack(rows) + (xr if plan.theta_r else 0)
    y = out.flatten(1) if plan.concat else out.mean(1)
    y = y if inputs.weight_direct is None else y + inputs.query @ inputs.weight_direct.T
    return y + inputs.bias, alpha


def results(function: Any, inputs: Inputs) -> list[Tensor]:
    """y, α and the gradients of a loss that reads both."""
    for tensor in given(inputs):
        tensor.grad = None
    y, alpha = function(inputs)
    generator = torch.Generator().manual_seed(3)
    draws = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in (y, alpha)]
    loss = sum((t * upstream).sum() for t, upstream in zip((y, alpha), draws, strict=True))
    loss.backward()
    return [y.detach(), alpha.detach(), *(t.grad for t in given(inputs))]


def assert_close(ours: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    assert len(ours) == len(expected)
    for number, (a, b) in enumerate(zip(ours, expected, strict=True)):
        assert a.shape == b.shape
        if b.numel():
            assert float((a - b).abs().max()) <= tolerance * max(float(b.abs().max()), 1e-3), number
