"""What a node aggregates from its incoming messages: mean, minimum, maximum and standard deviation, with a backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wsl.graphs.blocks import Block, BlockGraph

#: floor of the variance under the root: the gradient of the deviation stays finite where all messages agree
VARIANCE_FLOOR = 1e-5


def aggregate(messages: Tensor, graph: BlockGraph) -> Tensor:
    """Mean, minimum, maximum and standard deviation of the incoming messages: ``[B, E, C]`` → ``[B, N, 4C]``.

    A node that no edge reaches aggregates zeros and the floor of the deviation.
    """
    parts = []
    for nodes, blocks in zip(graph.node_sets, graph.incoming, strict=True):
        if blocks:
            parts.append(moments(_incoming(messages, blocks)))
        else:
            zeros = messages.new_zeros(messages.shape[0], nodes.size, 3 * messages.shape[2])
            parts.append(F.pad(zeros, (0, messages.shape[2]), value=VARIANCE_FLOOR**0.5))
    return torch.cat(parts, dim=1)


def aggregate_backward(messages: Tensor, moments: Tensor, grad: Tensor, graph: BlockGraph) -> Tensor:
    r"""Gradient of the messages ``[B, E, C]``, from the aggregates and their gradient ``[B, N, 4C]``.

    .. math::
        \bar m = \frac{\bar h_{mean}}{n} + \frac{\bar h_{std} (m - mean)}{n\, std}
        + \frac{\bar h_{min} [m = min]}{\#min} + \frac{\bar h_{max} [m = max]}{\#max}

    for a node of n incoming edges; the second term is zero at the floor. Ties share evenly, so the gradient has the
    permutation symmetry of the aggregates.
    """
    out = torch.empty_like(messages)
    for nodes, blocks in zip(graph.node_sets, graph.incoming, strict=True):
        if not blocks:
            continue
        part = moments_backward(_incoming(messages, blocks), nodes.of(moments), nodes.of(grad))
        for block, piece in zip(blocks, part.split([b.source.size for b in blocks], dim=2), strict=True):
            block.of(out).copy_(piece if block.source_axis == 2 else piece.transpose(1, 2))
    return out


def _incoming(edges: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """Edges ``[B, E, C]`` sorted by the node of one set that they reach: ``[B, n, degree, C]``."""
    parts = [b.of(edges) if b.source_axis == 2 else b.of(edges).transpose(1, 2) for b in blocks]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def moments(incoming: Tensor) -> Tensor:
    """``[B, n, degree, C]`` → ``[B, n, 4C]``."""
    mean = incoming.mean(2)
    variance = (incoming - mean.unsqueeze(2)).square().mean(2)
    std = variance.clamp(min=VARIANCE_FLOOR).sqrt()
    return torch.cat([mean, incoming.amin(2), incoming.amax(2), std], dim=-1)


def moments_backward(incoming: Tensor, moments: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the incoming messages ``[B, n, degree, C]``, from their moments and the gradient of those."""
    mean, minimum, maximum, std = moments.unsqueeze(2).chunk(4, dim=-1)
    of_mean, of_minimum, of_maximum, of_std = grad.unsqueeze(2).chunk(4, dim=-1)
    degree = incoming.shape[2]
    slope = torch.where(std > VARIANCE_FLOOR**0.5, of_std / std, 0) / degree
    out = torch.addcmul(of_mean / degree - slope * mean, slope, incoming)
    for below, of_extreme in ((minimum - incoming, of_minimum), (incoming - maximum, of_maximum)):
        # 1 where the message is the extreme, else 0; many times faster than a comparison with its boolean result
        hit = below.sign_().add_(1)
        out.addcmul_(hit, of_extreme / hit.sum(2, keepdim=True))
    return out
