"""The linear maps around the attention, and their gradients.

xl = X_s W_l^T + b_l,  xr = X_t W_r^T + b_r,  direct = X_t W_n^T
dW_l = dxl^T X_s,  db_l = Σ_j dxl_j,  dX_s = dxl W_l;  the same for r, and their sum where the map is shared
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Inputs(NamedTuple):
    """The differentiable inputs of a layer.

    ``x_target`` absent: one set of nodes. ``weight_r`` absent: ``weight_l`` and ``bias_l`` are shared.
    """

    x_source: Tensor  # [num_sources, F]
    weight_l: Tensor  # [H·C, F]
    att: Tensor  # [H, C]
    x_target: Tensor | None = None  # [num_targets, F']
    bias_l: Tensor | None = None  # [H·C]
    weight_r: Tensor | None = None  # [H·C, F']
    bias_r: Tensor | None = None  # [H·C]
    edge_attr: Tensor | None = None  # [E, D]
    weight_edge: Tensor | None = None  # [H·C, D]
    weight_direct: Tensor | None = None  # [outputs, F']
    bias: Tensor | None = None  # [outputs]

    @property
    def query(self) -> Tensor:
        """Features of the targets."""
        return self.x_source if self.x_target is None else self.x_target


def map_nodes(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """xl and xr, ``[N, H, C]``; one tensor where map and nodes are shared."""
    xl = F.linear(inputs.x_source, inputs.weight_l, inputs.bias_l).view(-1, *inputs.att.shape)
    if inputs.weight_r is not None:
        return xl, F.linear(inputs.query, inputs.weight_r, inputs.bias_r).view(-1, *inputs.att.shape)
    if inputs.x_target is None:
        return xl, xl
    return xl, F.linear(inputs.x_target, inputs.weight_l, inputs.bias_l).view(-1, *inputs.att.shape)


def map_gradients(inputs: Inputs, needed: Inputs, dxl: Tensor, dxr: Tensor, grad_y: Tensor | None) -> dict[str, Tensor]:
    """Gradients of the maps, their biases and the node features, by name.

    Args:
        needed: true where a gradient is wanted, one flag per input.
        dxl, dxr: ``[N, H, C]``, used up. grad_y: Ȳ ``[num_targets, outputs]``, None if the loss reads α alone.
    """
    dxl, dxr = dxl.flatten(1), dxr.flatten(1)
    weight_r = inputs.weight_l if inputs.weight_r is None else inputs.weight_r
    query_name = "x_source" if inputs.x_target is None else "x_target"
    grads: dict[str, Tensor] = {} if grad_y is None else {"bias": grad_y.sum(0)}
    if inputs.weight_r is None and inputs.x_target is None:  # add first, multiply once
        dxl = dxl.add_(dxr)
    grads |= {"weight_l": dxl.t() @ inputs.x_source, "bias_l": dxl.sum(0)}
    if needed.x_source:
        grads["x_source"] = dxl @ inputs.weight_l
    if inputs.weight_r is not None:
        grads |= {"weight_r": dxr.t() @ inputs.query, "bias_r": dxr.sum(0)}
    elif inputs.x_target is not None:
        grads["weight_l"].addmm_(dxr.t(), inputs.x_target)
        grads["bias_l"] += dxr.sum(0)
    if getattr(needed, query_name) and not (inputs.weight_r is None and inputs.x_target is None):
        grads[query_name] = grads[query_name].addmm_(dxr, weight_r) if query_name in grads else dxr @ weight_r
    if inputs.weight_direct is not None and grad_y is not None:
        grads["weight_direct"] = grad_y.t() @ inputs.query
        if getattr(needed, query_name):
            grads[query_name].addmm_(grad_y, inputs.weight_direct)
    return grads
