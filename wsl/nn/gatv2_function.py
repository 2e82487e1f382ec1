"""GATv2 as one autograd function with hand-derived gradients for every learnable parameter.

    xl = X_s W_l^T + b_l,  xr = X_t W_r^T + b_r          o, α = attention(xl, xr, a, v_e = W_e f_e)
    y_i = concat_h o_ih  or  mean_h o_ih,  + direct_i + b

``direct`` is what a node says to itself outside the softmax (GAT+): ``W_n x_i`` for ``theta_n``, ``xr_i`` for
``theta_r``. :class:`wsl.nn.gatv2.problem.Form` has the gradients of the attention, :mod:`wsl.nn.gatv2.maps` those of
the maps around it.

Kept for the backward pass: the inputs, xl, xr, o and α: N×H×C and E×H. No tensor of E×H×C is saved, and the edge-list
and block forms never make one. The derivation follows Neumeier et al., "Gradient Derivation for Learnable Parameters in
Graph Attention Networks", arXiv 2304.10939; the softmax's sum over edges is replaced by D_i = ⟨G_i, o_i⟩.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from wsl.nn.gatv2.maps import Inputs, map_gradients, map_nodes
from wsl.nn.gatv2.problem import Form, Problem, Wanted, draw_keep
from wsl.nn.gatv2.scores import LeakyReLUScore, Score


class Probe(Protocol):
    """Reads what the backward pass knows; see :mod:`wsl.nn.gatv2.probe`."""

    def read(
        self, form: Form, problem: Problem, alpha: Tensor, out: Tensor, grad: Tensor, grad_alpha: Tensor | None
    ) -> None: ...


@dataclass(frozen=True)
class Plan:
    """Everything about a call that is no tensor of values.

    Attributes:
        form: how and over which graph to run; see :mod:`wsl.nn.gatv2`.
        concat: heads side by side (H·C outputs) or averaged (C outputs).
        theta_r: add xr to each head's output.
        dropout: probability p with which an attention weight is dropped, its survivors scaled by 1/(1 − p).
        seed: of the dropout mask, which is drawn again in the backward pass instead of being kept.
        probe: takes gradient-flow readings in the backward pass; None costs nothing.
    """

    form: Form
    concat: bool = True
    score: Score = field(default_factory=LeakyReLUScore)
    theta_r: bool = False
    dropout: float = 0.0
    seed: int = 0
    probe: Probe | None = None


def gatv2(plan: Plan, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Attention layer with closed-form gradients.

    Returns:
        y ``[num_targets, H·C or C]`` and α ``[E, H]``, before dropout, in the order of ``plan.form``; both
        differentiable once. Half-precision inputs, and all inputs under autocast, are computed in float32; y has the
        type of the node features.

    Raises:
        NotImplementedError: when a second derivative is asked for.
    """
    dtype, device = inputs.x_source.dtype, inputs.x_source.device.type
    if dtype not in (torch.float16, torch.bfloat16) and not torch.is_autocast_enabled(device):
        return GATv2Function.apply(plan, *inputs)
    with torch.autocast(device, enabled=False):
        wide = (None if t is None else t.to(torch.promote_types(t.dtype, torch.float32)) for t in inputs)
        y, alpha = GATv2Function.apply(plan, *wide)
    return y.to(dtype), alpha


class GATv2Function(torch.autograd.Function):
    """``apply(plan, *Inputs) → (y, α)``; prefer :func:`gatv2`, which minds precision."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Any) -> tuple[Tensor, Tensor]:
        inputs = Inputs(*tensors)
        xl, xr = map_nodes(inputs)
        out, alpha = plan.form.forward(_problem(plan, inputs, xl, xr))
        ctx.plan, ctx.shared_query = plan, xr is xl
        ctx.save_for_backward(*inputs, xl, None if xr is xl else xr, out, alpha)
        ctx.set_materialize_grads(False)
        return _combine(plan, inputs, out, xr), alpha

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad(), torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            grads = _backward(ctx, *upstream)
        if torch.is_grad_enabled():
            grads = _refuse_second_order(grads, [*upstream, *ctx.saved_tensors])
        return (None, *grads)


def _problem(plan: Plan, inputs: Inputs, xl: Tensor, xr: Tensor) -> Problem:
    keep = None
    if plan.dropout > 0.0:
        keep = draw_keep((plan.form.num_edges, len(inputs.att)), plan.dropout, plan.seed, xl)
    # detached, for a compiler that meets a tensor with a history asks for its gradient
    return Problem(
        xl.detach(), xr.detach(), inputs.att.detach(), plan.score, inputs.edge_attr, inputs.weight_edge, keep
    )


def _combine(plan: Plan, inputs: Inputs, out: Tensor, xr: Tensor) -> Tensor:
    """y from o; a new tensor, for o is kept and must survive whatever is done to y in place."""
    heads = out + xr if plan.theta_r else out
    y = heads.flatten(1) if plan.concat else heads.mean(1)
    if inputs.weight_direct is not None:
        y = torch.addmm(y, inputs.query, inputs.weight_direct.t())
    if inputs.bias is not None:
        return y + inputs.bias
    return y.clone() if y.data_ptr() == out.data_ptr() else y


def _backward(ctx: Any, grad_y: Tensor | None, grad_alpha: Tensor | None) -> tuple[Tensor | None, ...]:
    plan: Plan = ctx.plan
    saved = ctx.saved_tensors
    inputs, (xl, xr) = Inputs(*saved[:-4]), saved[-4:-2]
    out, alpha = (tensor.detach() for tensor in saved[-2:])
    needed = Inputs(*ctx.needs_input_grad[1:])
    problem = _problem(plan, inputs, xl, xl if ctx.shared_query else xr)
    if grad_y is None:  # the loss reads α alone
        grad = torch.zeros_like(out)
    elif plan.concat:
        grad = grad_y.reshape(out.shape).contiguous()
    else:
        grad = (grad_y / out.shape[1]).unsqueeze(1).expand(out.shape).contiguous()
    inner = plan.form.backward(
        problem, alpha, out, grad, grad_alpha, Wanted(bool(needed.edge_attr), bool(needed.weight_edge))
    )
    if plan.probe is not None:
        plan.probe.read(plan.form, problem, alpha, out, grad, grad_alpha)
    if plan.theta_r:
        inner.xr += grad
    grads: dict[str, Tensor | None] = dict(map_gradients(inputs, needed, inner.xl, inner.xr, grad_y))
    grads |= {"att": inner.att, "edge_attr": inner.edge_attr, "weight_edge": inner.weight_edge}
    return tuple(grads.get(name) if flag else None for name, flag in needed._asdict().items())


class _FirstOrderOnly(torch.autograd.Function):
    """Hands gradients on, and says what is missing to whoever differentiates them."""

    @staticmethod
    def forward(ctx: Any, number: int, *tensors: Any) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors[:number])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(
            "the closed-form GATv2 layer has first derivatives only: its gradients cannot be differentiated again "
            "(gradient penalties, Hessians); use torch_geometric.nn.GATv2Conv for that"
        )


def _refuse_second_order(grads: tuple[Tensor | None, ...], causes: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    present = [g for g in grads if g is not None]
    marked = iter(_FirstOrderOnly.apply(len(present), *present, *causes))
    return tuple(None if g is None else next(marked) for g in grads)
