"""Message passing as transform, sieve, product: GCN, GraphSAGE, GIN and GCNII, each with Unifews' score.

Every layer is called with features and the edges that the layer before kept, and returns its output and the edges that
it kept itself, so that a pruned edge stays pruned in all later layers. What a pruned edge means is stated per layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from wsl.nn.sparse.edge_set import EdgeSet, Normalization
from wsl.nn.sparse.linear import SparseLinear, apply_linear
from wsl.nn.sparse.sieve import EdgeSieve
from wsl.nn.sparse.sparse_input import SparseInput
from wsl.sparsity.edges import message_scores, source_scores
from wsl.sparsity.macs import LayerCost
from wsl.sparsity.weights import column_norms

Features = Tensor | SparseInput


class SparseConv(nn.Module):
    """A layer with a ``sieve`` for its messages and :class:`SparseLinear` maps.

    Attributes:
        normalization: of the edges that it wants. loops: whether self loops are to be among them.
        sparse_input: whether it takes a :class:`SparseInput`.
        propagated: the numbers per edge that it multiplies.
    """

    normalization: ClassVar[Normalization]
    loops: ClassVar[bool] = True
    sparse_input: ClassVar[bool] = False
    propagated: int

    def __init__(self) -> None:
        super().__init__()
        self.sieve = EdgeSieve()

    def cost(self, given: EdgeSet) -> LayerCost:
        """Of one pass under what is kept now; ``given`` are all edges of the graph."""
        return linear_cost(self, given, self.propagated, self.sieve)


def linear_cost(layer: nn.Module, given: EdgeSet, propagated: int, sieve: EdgeSieve) -> LayerCost:
    """Cost of the sparse maps in a layer and of its propagation."""
    maps = [module for module in layer.modules() if isinstance(module, SparseLinear)]
    kept = sieve.kept
    return LayerCost(
        rows=given.num_nodes,
        weights=sum(m.left for m in maps),
        all_weights=sum(m.weight.numel() for m in maps),
        channels=propagated,
        edges=len(given) if kept is None else int(kept.sum()),
        all_edges=len(given),
        loops=given.num_loops,
    )


def map_of_sums(lin: SparseLinear, sieve: EdgeSieve, x: Features, sums: Callable[[Tensor], Tensor]) -> Tensor:
    """``lin`` of the ``sums`` over neighbours of x, as (A x) Wᵀ + b or, if W makes fewer channels travel, A (x Wᵀ) + b.

    The former while the entries of W are judged by A x, which Unifews' rule for propagate-then-transform layers asks
    for, and while the error of propagating x is measured.
    """
    if lin.out_features < lin.in_features and not lin.judging and sieve.errors is None:
        return sums(lin(x, with_bias=False)) + lin.bias
    out: Tensor = lin(sums(x if isinstance(x, Tensor) else x.dense()))
    return out


def row_norms(x: Features) -> Tensor:
    """‖x_i‖ ``[N]``."""
    return x.norm(dim=1) if isinstance(x, Tensor) else x.row_norms


class GCNLayer(SparseConv):
    """y_i = Σ_e w_e W x_source(e) + b with w = 1/√(d_i d_j), loops included: transform, then propagate.

    Score ‖w_e W x_j‖. A pruned message is 0 and the weights w of the others stay; where the sieve renormalises, the
    edge is absent and degrees are those of what is left.
    """

    normalization = "symmetric"
    sparse_input = True

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.lin = SparseLinear(in_features, out_features, bias=False, glorot=True)
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.propagated = out_features

    def forward(
        self, x: Features, edges: EdgeSet, inputs: Tensor | None = None, outputs: Tensor | None = None
    ) -> tuple[Tensor, EdgeSet]:
        """y ``[N, O]``, or only its channels ``outputs``; with ``inputs``, x holds only these of its channels."""
        h = self.lin(x, inputs, outputs)
        kept = self.sieve(edges, lambda: message_scores(edges.weight.to(h), edges.source, h))
        bias = self.bias if outputs is None else self.bias[outputs]
        return self.sieve.propagate(edges, kept, h) + bias, kept


class SAGELayer(SparseConv):
    """y_i = W_l mean_j x_j + b + W_r x_i, in the order of :func:`map_of_sums`.

    Score ‖x_j‖, so whole sources go. A pruned message is 0 and the mean still divides by all edges; where the sieve
    renormalises, the edge is absent and the mean is over what is left. W_l is judged by the aggregated values.
    """

    normalization = "mean"
    loops = False
    sparse_input = True

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.lin_l = SparseLinear(in_features, out_features)
        self.lin_r = SparseLinear(in_features, out_features, bias=False)
        self.propagated = min(in_features, out_features)

    def forward(self, x: Features, edges: EdgeSet) -> tuple[Tensor, EdgeSet]:
        kept = self.sieve(edges, lambda: source_scores(edges.source, row_norms(x)))
        around = map_of_sums(self.lin_l, self.sieve, x, lambda h: self.sieve.propagate(edges, kept, h))
        out: Tensor = around + self.lin_r(x)
        return out, kept


class GINLayer(SparseConv):
    """y_i = W_2 relu(W_1 ((1 + ε) x_i + Σ_j x_j) + b_1) + b_2, ε learned, in the order of :func:`map_of_sums`.

    The paper has none: the score is GraphSAGE's, ‖x_j‖, and each map follows the column-norm rule on its own input. In
    a sum, a pruned edge that is 0 and one that is absent are the same.
    """

    normalization = "none"
    loops = False
    sparse_input = True

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.epsilon = nn.Parameter(torch.zeros(()))
        self.first = SparseLinear(in_features, out_features)
        self.second = SparseLinear(out_features, out_features)
        self.propagated = min(in_features, out_features)

    def forward(self, x: Features, edges: EdgeSet) -> tuple[Tensor, EdgeSet]:
        kept = self.sieve(edges, lambda: source_scores(edges.source, row_norms(x)))

        def sums(h: Tensor) -> Tensor:
            return (1 + self.epsilon) * h + self.sieve.propagate(edges, kept, h)

        out: Tensor = self.second(torch.relu(map_of_sums(self.first, self.sieve, x, sums)))
        return out, kept


class GCNIILayer(SparseConv):
    """Z = (1 − α) Â x + α x_0, y = (1 − β) Z + β Z W with β = ln(θ / l + 1): propagate, then transform.

    Score ‖w_e x_j‖, pruned as in GCN. W is judged by (1 − α) times what is propagated, without the initial residual.

    Args:
        number: l, from 1.
    """

    normalization = "symmetric"

    def __init__(self, features: int, number: int, alpha: float = 0.1, theta: float = 0.5) -> None:
        super().__init__()
        self.lin = SparseLinear(features, features, bias=False, glorot=True)
        self.alpha, self.beta = alpha, math.log(theta / number + 1)
        self.propagated = features

    def forward(self, x: Tensor, edges: EdgeSet, initial: Tensor) -> tuple[Tensor, EdgeSet]:
        kept = self.sieve(edges, lambda: message_scores(edges.weight.to(x), edges.source, x))
        moved = (1 - self.alpha) * self.sieve.propagate(edges, kept, x)
        mixed = moved + self.alpha * initial
        weight = self.lin.sieve(self.lin.weight, lambda: column_norms(moved.detach()))
        return (1 - self.beta) * mixed + self.beta * apply_linear(mixed, weight, None), kept
