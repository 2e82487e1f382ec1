"""GATv2 whose attention is pruned: the parameters of :class:`wsl.nn.gatv2_conv.GATv2Conv`, other edges."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from wsl.nn.gatv2.graph import EdgeGraph
from wsl.nn.gatv2_conv import GATv2Conv
from wsl.nn.sparse.edge_set import EdgeSet
from wsl.nn.sparse.linear import apply_linear, input_norms, watch
from wsl.nn.sparse.sieve import EdgeSieve, WeightSieve
from wsl.nn.sparse.sparse_input import SparseInput
from wsl.sparsity.bound import layer_error
from wsl.sparsity.edges import EdgeScores, attention_scores
from wsl.sparsity.macs import LayerCost


class AttentionSieve(nn.Module):
    """Runs a GATv2 layer under pruning: the score is ‖α_e‖ / H times ‖x_src‖, loops stay.

    A pruned attention weight is 0 after the softmax and before dropout, and the others stay as they are; where the
    sieve renormalises, the edge is absent and the softmax is over what is left: then, once the edges are frozen, the
    layer's own closed-form kernels run on them alone. ``lin_l`` and ``lin_r`` share the thresholds of their common
    input; the attention vector and biases are never pruned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sieve = EdgeSieve()
        self.left, self.right = WeightSieve(), WeightSieve()
        self._graph: tuple[EdgeSet, EdgeGraph] | None = None

    @property
    def open(self) -> bool:
        return self.sieve.open and self.left.open and self.right.open

    def forward(self, layer: GATv2Conv, x: Tensor | SparseInput, edges: EdgeSet) -> tuple[Tensor, EdgeSet]:
        """The layer's output ``[N, …]`` and the edges that it kept of those it was given."""
        left = self.left(layer.lin_l.weight, lambda: input_norms(x))
        right = left if layer.share_weights else self.right(layer.lin_r.weight, lambda: input_norms(x))
        watch(self.left, x, layer.lin_l.weight, left)
        watch(self.right, x, layer.lin_r.weight, right)
        told = self.sieve.errors is not None
        if not told and (self.sieve.open or (not self._choosing and bool(self.sieve.absent))):
            kept = self.sieve(edges, lambda: _no_scores())
            return self._closed_form(layer, x, left, right, kept), kept
        heads = layer.heads
        source = apply_linear(x, left, layer.lin_l.bias)
        target = source if layer.share_weights else apply_linear(x, right, layer.lin_r.bias)
        alpha = _attention(layer, source, target, edges)
        kept = self.sieve(edges, lambda: attention_scores(alpha.detach(), edges.source, source.detach()))
        if bool(self.sieve.absent):  # just chosen: the softmax is over what is left
            alpha = _attention(layer, source, target, kept)
        else:
            alpha = alpha[torch.searchsorted(edges.ids, kept.ids)]
        if told:
            self._tell(layer, source, target, kept, alpha)
        alpha = nn.functional.dropout(alpha, layer.dropout, self.training)
        values = source.view(-1, heads, layer.out_channels)[kept.source] * alpha.unsqueeze(-1)
        out = source.new_zeros(edges.num_nodes, heads, layer.out_channels).index_add(0, kept.target, values)
        out = out.flatten(1) if layer.concat else out.mean(1)
        return out if layer.bias is None else out + layer.bias, kept

    def _tell(self, layer: GATv2Conv, source: Tensor, target: Tensor, kept: EdgeSet, alpha: Tensor) -> None:
        """The error against attention over all edges; heads side by side."""
        whole = kept.whole
        full = _attention(layer, source, target, whole)
        used = torch.zeros_like(full).index_add(0, kept.ids, alpha)
        values = source.view(-1, layer.heads, layer.out_channels)[whole.source]
        lost = ((full - used).unsqueeze(-1) * values).flatten(1).norm(dim=1)

        def output(weights: Tensor) -> Tensor:
            messages = (weights.unsqueeze(-1) * values).flatten(1)
            return torch.zeros_like(source).index_add(0, whole.target, messages)

        assert self.sieve.errors is not None
        some = lost > 0
        error = layer_error(output(full), output(used), lost[some], whole.target[some], whole.num_nodes)
        self.sieve.errors.append(error)

    @property
    def _choosing(self) -> bool:
        return self.training and self.sieve.pruning

    def _closed_form(
        self, layer: GATv2Conv, x: Tensor | SparseInput, left: Tensor, right: Tensor, kept: EdgeSet
    ) -> Tensor:
        if self._graph is None or self._graph[0] is not kept:
            self._graph = kept, EdgeGraph(kept.source, kept.target, None, kept.num_nodes, kept.num_nodes)
        weights = {"lin_l.weight": left} | ({} if layer.share_weights else {"lin_r.weight": right})
        loops, layer.add_self_loops = layer.add_self_loops, False  # the edges have them
        try:
            out: Tensor = functional_call(layer, weights, (x, self._graph[1]), tie_weights=True)
        finally:
            layer.add_self_loops = loops
        return out

    def cost(self, layer: GATv2Conv, given: EdgeSet) -> LayerCost:
        """2 MACs per edge and channel (score and sum) and 2 per edge and head, as for the dense layer."""
        maps = [(layer.lin_l, self.left)] + ([] if layer.share_weights else [(layer.lin_r, self.right)])
        kept = self.sieve.kept
        return LayerCost(
            rows=given.num_nodes,
            weights=sum(m.weight.numel() if s.kept is None else int(s.kept.sum()) for m, s in maps),
            all_weights=sum(m.weight.numel() for m, _ in maps),
            channels=layer.heads * (2 * layer.out_channels + 2),
            edges=len(given) if kept is None else int(kept.sum()),
            all_edges=len(given),
            loops=given.num_loops,
        )


def _attention(layer: GATv2Conv, source: Tensor, target: Tensor, edges: EdgeSet) -> Tensor:
    """α ``[E, H]``: softmax over the edges into each node."""
    heads, channels = layer.heads, layer.out_channels
    joined = (source[edges.source] + target[edges.target]).view(-1, heads, channels)
    score = (layer.score.value(joined) * layer.att).sum(-1)
    index = edges.target.unsqueeze(-1).expand_as(score)
    shape = (edges.num_nodes, heads)
    greatest = score.new_full(shape, -torch.inf).scatter_reduce(0, index, score.detach(), "amax")
    powers = (score - greatest[edges.target]).exp()
    return powers / powers.new_zeros(shape).scatter_add(0, index, powers)[edges.target]


def _no_scores() -> EdgeScores:
    raise AssertionError("a sieve that does not choose asks for no scores")
