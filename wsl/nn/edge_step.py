"""Edge update, messages and aggregation of one layer as a single operation with its backward in closed form.

Plain autograd would keep about ten arrays of the size of the edge states for each layer. Here a layer keeps the edge
states alone. The graph passes in pieces small enough for the cache, and the backward recomputes what is between.
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
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsl.nn.moments import VARIANCE_FLOOR

#: edge-state values of one piece: a handful of such arrays should fit the last-level cache
CHUNK_VALUES = 2**19


class Piece(Protocol):
    """Some of the nodes of some of the networks, with all edges that reach them.

    States of all nodes are ``[B, N, C]``, of all edges ``[B, E, C]``; a piece has ``[b, E', C]`` of the edges.
    """

    def edges(self, e: Tensor) -> Tensor:
        """The piece's part of all edges, a view."""

    def sum_on_edges(self, source: Tensor, target: Tensor) -> Tensor:
        """source_j + target_i on the edge from j to i, a new array, without gradients."""

    def add_node_grads(self, grad: Tensor, source: Tensor, target: Tensor) -> None:
        """Backward of :meth:`sum_on_edges`: add the edges' gradients to those of all nodes."""

    def aggregate(self, messages: Tensor, h: Tensor) -> None:
        """Write what the piece's nodes aggregate into ``h [B, N, 4C]``."""

    def aggregate_backward(self, messages: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """Gradient of the messages."""


class StepGraph(Protocol):
    """A graph on which a step runs: :class:`~wsl.nn.block_pieces.Blocks`, :class:`~wsl.nn.edge_runs.EdgeRuns`."""

    def pieces(self, e: Tensor, values: int) -> Iterator[Piece]:
        """All of the graph, in pieces with about that many values of edge states."""

    def on_edges(self, source: Tensor, target: Tensor) -> Tensor:
        """source_j + target_i on the edge from j to i: two ``[B, N, C]`` → ``[B, E, C]``."""

    def aggregate(self, messages: Tensor) -> Tensor:
        """Mean, minimum, maximum, deviation of what reaches each node: ``[B, E, C]`` → ``[B, N, 4C]``."""


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


def edge_step(e: Tensor, messages: Messages, update: Update | None, graph: StepGraph) -> tuple[Tensor, Tensor]:
    """Edge states e' ``[B, E, C]`` and aggregates h ``[B, N, 4C]``.

    On a CPU in little memory and in closed form; under autocast, compilation, and on other devices, which have fused
    kernels of their own, by :func:`plain_edge_step`.
    """
    if e.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return plain_edge_step(e, messages, update, graph)
    if update is None:
        return e, _MessageFunction.apply(graph, e, *messages)
    return _UpdateFunction.apply(graph, e, *messages, *update)


def plain_edge_step(e: Tensor, messages: Messages, update: Update | None, graph: StepGraph) -> tuple[Tensor, Tensor]:
    """:func:`edge_step` by operations that autograd knows."""
    if update is not None:
        e = F.linear(active_edges(e, update, graph), update.out, update.bias)
    return e, graph.aggregate(plain_messages(e, messages, graph))


def active_edges(e: Tensor, update: Update, graph: StepGraph) -> Tensor:
    """SiLU(z) ``[B, E, C]``: what the map R of an update reads."""
    return F.silu(F.linear(e, update.edge) + graph.on_edges(update.source, update.target))


def plain_messages(e: Tensor, messages: Messages, graph: StepGraph) -> Tensor:
    """m ``[B, E, C]`` of edge states that are updated already."""
    scale, shift = F.linear(e, messages.film, messages.bias).chunk(2, dim=-1)
    return torch.addcmul(shift, scale, graph.on_edges(messages.other, messages.own))


@torch.no_grad()
def message_norms(e: Tensor, messages: Messages, update: Update | None, graph: StepGraph) -> Tensor:
    """‖m‖ of every edge ``[B, E]``, without keeping messages; costs a forward of the step."""
    if e.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        if update is not None:
            e = F.linear(active_edges(e, update, graph), update.out, update.bias)
        return plain_messages(e, messages, graph).norm(dim=-1)
    out = e.new_empty(*e.shape[:2], 1)
    for piece in graph.pieces(e, CHUNK_VALUES):
        here = piece.edges(e)
        if update is not None:
            active = F.silu(_pre_update(here, update, piece), inplace=True)
            here = F.linear(active, update.out, update.bias)
        piece.edges(out).copy_(_messages(here, messages, piece)[2].norm(dim=-1, keepdim=True))
    return out.squeeze(-1)


class _MessageFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: StepGraph, e: Tensor, *tensors: Tensor) -> Tensor:
        h = nothing_aggregated(tensors[0])
        for piece in graph.pieces(e, CHUNK_VALUES):
            piece.aggregate(_messages(piece.edges(e), Messages(*tensors), piece)[2], h)
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
        for piece in ctx.graph.pieces(e, CHUNK_VALUES):
            piece.edges(grad_e).copy_(_messages_backward(piece.edges(e), messages, h, grad_h, grads, piece))
        return None, grad_e, *grads


class _UpdateFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: StepGraph, e: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        messages, update = Messages(*tensors[:4]), Update(*tensors[4:])
        new = torch.empty_like(e)
        h = nothing_aggregated(messages.own)
        for piece in graph.pieces(e, CHUNK_VALUES):
            active = F.silu(_pre_update(piece.edges(e), update, piece), inplace=True)
            here = piece.edges(new)
            torch.addmm(update.bias, active.flatten(0, 1), update.out.T, out=here.flatten(0, 1))
            piece.aggregate(_messages(here, messages, piece)[2], h)
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
        for piece in ctx.graph.pieces(e, CHUNK_VALUES):
            grad = _messages_backward(piece.edges(new), messages, h, grad_h, message_grads, piece)
            if grad_new is not None:
                grad += piece.edges(grad_new)
            _update_backward(piece.edges(e), update, grad, update_grads, piece.edges(grad_e), piece)
        return None, grad_e, *message_grads, *update_grads


def nothing_aggregated(nodes: Tensor) -> Tensor:
    """What nodes ``[B, N, C]`` aggregate that no edge reaches: zeros, and the floor of the deviation."""
    zeros = nodes.new_zeros(*nodes.shape[:2], 3 * nodes.shape[2])
    return F.pad(zeros, (0, nodes.shape[2]), value=VARIANCE_FLOOR**0.5)


def _zeros_like(terms: Any) -> Any:
    return type(terms)(*(torch.zeros_like(t) for t in terms))


def _pre_update(e: Tensor, update: Update, piece: Piece) -> Tensor:
    """z."""
    z = piece.sum_on_edges(update.source, update.target)
    z.flatten(0, 1).addmm_(e.flatten(0, 1), update.edge.T)
    return z


def _messages(e: Tensor, messages: Messages, piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
    """s, u, m."""
    of_scale, of_shift = messages.film.chunk(2)
    scale_bias, shift_bias = messages.bias.chunk(2)
    flat = e.flatten(0, 1)
    scale = torch.addmm(scale_bias, flat, of_scale.T).view_as(e)
    m = torch.addmm(shift_bias, flat, of_shift.T).view_as(e)
    pair = piece.sum_on_edges(messages.other, messages.own)
    return scale, pair, m.addcmul_(scale, pair)


def _messages_backward(
    e: Tensor, messages: Messages, h: Tensor, grad_h: Tensor, grads: Messages, piece: Piece
) -> Tensor:
    """ē' from h̄; adds to the gradients of the terms."""
    scale, pair, m = _messages(e, messages, piece)
    grad_m = piece.aggregate_backward(m, h, grad_h)
    piece.add_node_grads(scale.mul_(grad_m), grads.other, grads.own)
    grad_scale, grad_shift = pair.mul_(grad_m).flatten(0, 1), grad_m.flatten(0, 1)
    width = e.shape[2]
    flat = e.flatten(0, 1)
    grads.film[:width].addmm_(grad_scale.T, flat)
    grads.film[width:].addmm_(grad_shift.T, flat)
    grads.bias[:width].add_(grad_scale.sum(0))
    grads.bias[width:].add_(grad_shift.sum(0))
    out = torch.mm(grad_scale, messages.film[:width])
    return out.addmm_(grad_shift, messages.film[width:]).view_as(e)


def _update_backward(e: Tensor, update: Update, grad_new: Tensor, grads: Update, grad_e: Tensor, piece: Piece) -> None:
    """Writes ē and adds to the gradients of the terms."""
    z = _pre_update(e, update, piece)
    flat = grad_new.flatten(0, 1)
    grads.out.addmm_(flat.T, F.silu(z).flatten(0, 1))
    grads.bias.add_(flat.sum(0))
    grad_z = torch.ops.aten.silu_backward(torch.mm(flat, update.out), z.flatten(0, 1))
    grads.edge.addmm_(grad_z.T, e.flatten(0, 1))
    piece.add_node_grads(grad_z.view_as(e), grads.source, grads.target)
    torch.mm(grad_z, update.edge, out=grad_e.flatten(0, 1))
