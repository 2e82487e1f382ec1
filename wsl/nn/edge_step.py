"""Edge update, messages and aggregation of one layer as a single operation with its backward in closed form.

Plain autograd would keep about ten arrays of the size of the edge states for each layer. Here a layer keeps the edge
states alone. Networks pass through in chunks small enough for the cache, and the backward recomputes what is between.
With e the edge states that come in, for the edge from j to i:

    z = Q e + source_j + target_i          e' = R SiLU(z) + r                 (without update: e' = e)
    u = own_i + other_j                    [s, t] = A e' + a                  m = s ⊙ u + t
    h_i = [mean, min, max, std] of m                                          (:mod:`wsl.nn.moments`)

Backwards, a bar marking gradients and m̄ coming from :func:`~wsl.nn.moments.aggregate_backward`:

    t̄ = m̄     s̄ = m̄ ⊙ u     ū = m̄ ⊙ s     ē' += A_sᵀ s̄ + A_tᵀ t̄     z̄ = (Rᵀ ē') ⊙ SiLU'(z)     ē = Qᵀ z̄

and the gradients of node terms are sums of ū and z̄ over the edges that the node sends or receives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsl.graphs.blocks import BlockGraph
from wsl.nn.moments import aggregate, aggregate_backward

#: edge-state values of one chunk: a handful of such arrays should fit the last-level cache
CHUNK_VALUES = 2**19


class Messages(NamedTuple):
    """Terms of the messages.

    ``own``, ``other``: node terms of u at the receiving and the sending end, ``[B, N, C]``, with all biases of u;
    ``film``: A ``[2C, C]``; ``bias``: a ``[2C]``.
    """

    own: Tensor
    other: Tensor
    film: Tensor
    bias: Tensor


class Update(NamedTuple):
    """Terms of the edge update.

    ``source``, ``target``: node terms of z at the sending and the receiving end, ``[B, N, C]``, with all biases of z;
    ``edge``: Q ``[C, C]``; ``out``: R ``[C, C]``; ``bias``: r ``[C]``.
    """

    source: Tensor
    target: Tensor
    edge: Tensor
    out: Tensor
    bias: Tensor


def edge_step(e: Tensor, messages: Messages, update: Update | None, graph: BlockGraph) -> tuple[Tensor, Tensor]:
    """Edge states e' ``[B, E, C]`` and aggregates h ``[B, N, 4C]``.

    On a CPU in little memory and in closed form; under autocast, compilation, and on other devices, which have fused
    kernels of their own, by :func:`plain_edge_step`.
    """
    if e.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return plain_edge_step(e, messages, update, graph)
    if update is None:
        return e, _MessageFunction.apply(graph, e, *messages)
    return _UpdateFunction.apply(graph, e, *messages, *update)


def plain_edge_step(e: Tensor, messages: Messages, update: Update | None, graph: BlockGraph) -> tuple[Tensor, Tensor]:
    """:func:`edge_step` by operations that autograd knows."""
    if update is not None:
        z = F.linear(e, update.edge) + on_edges(update.source, update.target, graph)
        e = F.linear(F.silu(z), update.out, update.bias)
    scale, shift = F.linear(e, messages.film, messages.bias).chunk(2, dim=-1)
    return e, aggregate(torch.addcmul(shift, scale, on_edges(messages.other, messages.own, graph)), graph)


def on_edges(source: Tensor, target: Tensor, graph: BlockGraph) -> Tensor:
    """source_j + target_i on the edge from j to i: two ``[B, N, C]`` → ``[B, E, C]``."""
    return torch.cat([(b.at_sources(source) + b.at_targets(target)).flatten(1, 2) for b in graph.blocks], dim=1)


class _MessageFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: BlockGraph, e: Tensor, *tensors: Tensor) -> Tensor:
        h = e.new_empty(*tensors[0].shape[:2], 4 * e.shape[2])
        for part in _chunks(e):
            h[part] = aggregate(_messages(e[part], _rows(Messages(*tensors), part), graph)[2], graph)
        ctx.graph = graph
        ctx.save_for_backward(e, h, *tensors)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor) -> tuple[Any, ...]:
        e, h, *tensors = ctx.saved_tensors
        messages = Messages(*tensors)
        grad_e = torch.empty_like(e)
        grads = _zeros_like(messages)
        for part in _chunks(e):
            grad_e[part] = _messages_backward(
                e[part], _rows(messages, part), h[part], grad_h[part], _rows(grads, part), ctx.graph
            )
        return None, grad_e, *grads


class _UpdateFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: BlockGraph, e: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        messages, update = Messages(*tensors[:4]), Update(*tensors[4:])
        new = torch.empty_like(e)
        h = e.new_empty(*messages.own.shape[:2], 4 * e.shape[2])
        for part in _chunks(e):
            active = F.silu(_pre_update(e[part], _rows(update, part), graph), inplace=True)
            torch.addmm(update.bias, active.flatten(0, 1), update.out.T, out=new[part].flatten(0, 1))
            h[part] = aggregate(_messages(new[part], _rows(messages, part), graph)[2], graph)
        ctx.graph = graph
        ctx.save_for_backward(e, new, h, *tensors)
        ctx.set_materialize_grads(False)
        return new, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_new: Tensor | None, grad_h: Tensor | None) -> tuple[Any, ...]:
        e, new, h, *tensors = ctx.saved_tensors
        messages, update = Messages(*tensors[:4]), Update(*tensors[4:])
        grad_h = torch.zeros_like(h) if grad_h is None else grad_h
        grad_e = torch.empty_like(e)
        message_grads, update_grads = _zeros_like(messages), _zeros_like(update)
        for part in _chunks(e):
            grad = _messages_backward(
                new[part], _rows(messages, part), h[part], grad_h[part], _rows(message_grads, part), ctx.graph
            )
            if grad_new is not None:
                grad += grad_new[part]
            _update_backward(e[part], _rows(update, part), grad, _rows(update_grads, part), grad_e[part], ctx.graph)
        return None, grad_e, *message_grads, *update_grads


def _chunks(e: Tensor) -> Iterator[slice]:
    """Slices of networks whose edge states have about ``CHUNK_VALUES`` values."""
    size = max(1, CHUNK_VALUES // max(1, e[:1].numel()))
    return (slice(start, start + size) for start in range(0, e.shape[0], size))


def _rows(terms: Any, part: slice) -> Any:
    """The terms of some networks: node terms have three axes, weights and biases fewer."""
    return type(terms)(*(t[part] if t.dim() == 3 else t for t in terms))


def _zeros_like(terms: Any) -> Any:
    return type(terms)(*(torch.zeros_like(t) for t in terms))


def _sum_on_edges(source: Tensor, target: Tensor, graph: BlockGraph) -> Tensor:
    """:func:`on_edges` without gradients, written once."""
    out = source.new_empty(source.shape[0], graph.num_edges, source.shape[2])
    for block in graph.blocks:
        torch.add(block.at_sources(source), block.at_targets(target), out=block.of(out))
    return out


def _add_node_grads(grad: Tensor, source: Tensor, target: Tensor, graph: BlockGraph) -> None:
    """Backward of :func:`on_edges`: add the edges' gradients to those of the nodes at both ends."""
    for block in graph.blocks:
        on_block = block.of(grad)
        block.target.of(target).add_(on_block.sum(block.source_axis))
        block.source.of(source).add_(on_block.sum(3 - block.source_axis))


def _pre_update(e: Tensor, update: Update, graph: BlockGraph) -> Tensor:
    """z."""
    z = _sum_on_edges(update.source, update.target, graph)
    z.flatten(0, 1).addmm_(e.flatten(0, 1), update.edge.T)
    return z


def _messages(e: Tensor, messages: Messages, graph: BlockGraph) -> tuple[Tensor, Tensor, Tensor]:
    """s, u, m."""
    of_scale, of_shift = messages.film.chunk(2)
    scale_bias, shift_bias = messages.bias.chunk(2)
    flat = e.flatten(0, 1)
    scale = torch.addmm(scale_bias, flat, of_scale.T).view_as(e)
    m = torch.addmm(shift_bias, flat, of_shift.T).view_as(e)
    pair = _sum_on_edges(messages.other, messages.own, graph)
    return scale, pair, m.addcmul_(scale, pair)


def _messages_backward(
    e: Tensor, messages: Messages, h: Tensor, grad_h: Tensor, grads: Messages, graph: BlockGraph
) -> Tensor:
    """ē' from h̄; adds to the gradients of the terms."""
    scale, pair, m = _messages(e, messages, graph)
    grad_m = aggregate_backward(m, h, grad_h, graph)
    _add_node_grads(scale.mul_(grad_m), grads.other, grads.own, graph)
    grad_scale, grad_shift = pair.mul_(grad_m).flatten(0, 1), grad_m.flatten(0, 1)
    width = e.shape[2]
    flat = e.flatten(0, 1)
    grads.film[:width].addmm_(grad_scale.T, flat)
    grads.film[width:].addmm_(grad_shift.T, flat)
    grads.bias[:width].add_(grad_scale.sum(0))
    grads.bias[width:].add_(grad_shift.sum(0))
    out = torch.mm(grad_scale, messages.film[:width])
    return out.addmm_(grad_shift, messages.film[width:]).view_as(e)


def _update_backward(
    e: Tensor, update: Update, grad_new: Tensor, grads: Update, grad_e: Tensor, graph: BlockGraph
) -> None:
    """Writes ē and adds to the gradients of the terms."""
    z = _pre_update(e, update, graph)
    flat = grad_new.flatten(0, 1)
    grads.out.addmm_(flat.T, F.silu(z).flatten(0, 1))
    grads.bias.add_(flat.sum(0))
    grad_z = torch.ops.aten.silu_backward(torch.mm(flat, update.out), z.flatten(0, 1))
    grads.edge.addmm_(grad_z.T, e.flatten(0, 1))
    _add_node_grads(grad_z.view_as(e), grads.source, grads.target, graph)
    torch.mm(grad_z, update.edge, out=grad_e.flatten(0, 1))
