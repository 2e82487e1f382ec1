"""Which edges are worth most to their receivers: asked of a model that was trained before edges are chosen."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsl.nn.sparse.dials import Dials

Question = Literal["doubt", "need"]


@torch.no_grad()
def worth(encoder: nn.Module, batch: Any, question: Question) -> Tensor:
    """What the edge v → u is worth to u, ``[E]`` float32; q_i is what the model says of node i without any edge.

        doubt   H(q_u) · max_c q_v(c): a receiver that is unsure alone, a source that is sure alone
        need    (1 − q_u(ŷ_u)) · q_v(ŷ_u) with ŷ_u what the model says of u with all edges: a receiver that is wrong
                alone by that measure, a source that says alone what the neighbours say together

    A large message may say nothing new, and a receiver that is understood without neighbours needs no edge. "doubt"
    never looks at the whole graph; "need" does, so that the edges it chooses carry what the dense model found.
    """
    training = encoder.training
    encoder.eval()
    edges = encoder.edges(batch.graph)  # type: ignore[operator]
    alone = _output(encoder, batch, loops_only=True).softmax(-1)
    if question == "need":
        said = _output(encoder, batch, loops_only=False).argmax(-1)[edges.target]
        value = (1 - alone[edges.target, said]) * alone[edges.source, said]
    else:
        entropy = -torch.special.xlogy(alone, alone).sum(-1)
        value = entropy[edges.target] * alone.amax(-1)[edges.source]
    encoder.train(training)
    return torch.zeros(edges.total, device=value.device).index_add_(0, edges.ids, value.float())


def _output(encoder: nn.Module, batch: Any, loops_only: bool) -> Tensor:
    """What the encoder says with all edges, or with self loops alone; its sieves are left as they were."""
    sieves = Dials(encoder).edges
    before = [(sieve.kept, sieve.absent, sieve.view) for sieve in sieves]
    edges = encoder.edges(batch.graph)  # type: ignore[operator]
    for sieve in sieves:
        sieve.kept, sieve.absent, sieve.view = None, None, "true"
        if loops_only:
            sieve.kept = torch.zeros(edges.total, dtype=torch.bool, device=edges.ids.device)
            sieve.kept[edges.ids[edges.is_loop]] = True
            sieve.absent = torch.tensor(True, device=edges.ids.device)
    out: Tensor = encoder(batch)
    for sieve, (kept, absent, view) in zip(sieves, before, strict=True):
        sieve.kept, sieve.absent, sieve.view = kept, absent, view
    return out
