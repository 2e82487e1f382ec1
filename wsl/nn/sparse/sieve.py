"""What a layer keeps. A sieve is a module, so that what it keeps is in the state dict: a reloaded model is as sparse.

Sieves start open: they keep everything, have no state, and cost nothing. A callback turns their dials
(:class:`wsl.callbacks.sparsify.UnifewsSparsification`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsl.nn.sparse.edge_set import EdgeSet
from wsl.sparsity import SparsityError, edges, weights
from wsl.sparsity.bound import LayerError, layer_error
from wsl.sparsity.edges import EdgeScores

View = Literal["true", "locked", "full"]
Choice = Literal["message", "random", "magnitude", "given"]


class Sieve(nn.Module):
    """A boolean buffer ``kept`` that is absent until something was pruned.

    Attributes:
        pruning: make the mask anew in every training forward.
        threshold: δ; sparsity: the share to remove instead, or None. absolute: thresholds of the paper's text.
    """

    kept: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", None)
        self.pruning, self.absolute = False, False
        self.threshold: float = 0.0
        self.sparsity: float | None = None

    @property
    def open(self) -> bool:
        """Whether nothing is or will be pruned."""
        return self.kept is None and not (self.training and self.pruning)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *others: Any) -> None:
        """What is kept has the size of a graph or weight that the file knows, and may be absent."""
        for name in self._buffers:
            value = state.get(prefix + name)
            old = self._buffers[name]
            if value is not None and (old is None or old.shape != value.shape):
                self._buffers[name] = value.clone()
            elif value is None:
                self._buffers[name] = None
        super()._load_from_state_dict(state, prefix, *others)


class WeightSieve(Sieve):
    """Mask of one weight ``[O, F]``; the entries masked get no gradient from the data.

    Attributes:
        monotone: what is pruned is written into the weight as 0 and stays; else it may come back.
        choice: "message": |W_ij| ‖X_:j‖; "magnitude": |W_ij| alone; "random": fixed by ``seed``.
        errors: a list to which every product appends what pruning did to it, or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.monotone = False
        self.choice: Choice = "message"
        self.seed = 0
        self.errors: list[LayerError] | None = None

    def forward(self, weight: Tensor, norms: Callable[[], Tensor]) -> Tensor:
        """The weight as it is used. ``norms()`` gives those of the input columns that it multiplies, ``[F]``."""
        if self.training and self.pruning:
            with torch.no_grad():
                self._choose(weight, norms())
        return weight if self.kept is None else weight * self.kept

    def _choose(self, weight: Tensor, columns: Tensor) -> None:
        before = self.kept
        if self.monotone and before is not None:
            weight.mul_(before)
        if self.choice == "random":
            worth = torch.rand(weight.shape, generator=torch.Generator().manual_seed(self.seed)).to(weight.device)
            mask = weights.keep_greatest(worth, self.sparsity or 0.0)
        else:
            columns = torch.ones_like(columns) if self.choice == "magnitude" else columns
            if self.sparsity is None:
                mask = weights.keep_above(weight, columns, self.threshold, self.absolute)
            else:
                mask = weights.keep_share(weight, columns, self.sparsity)
        self.kept = mask & before if self.monotone and before is not None else mask


class EdgeSieve(Sieve):
    """Mask over all edges of a graph for one layer; self loops always stay.

    Each training forward starts from the edges that the layer is given (all, or what the layer before kept), so there
    is inheritance over layers and none over epochs. In evaluation, and once frozen, the edges kept last are used.

    Attributes:
        absent: ``[]`` bool buffer: a pruned edge is absent (degrees and softmax of what is left), not zero.
        view: which edges evaluation uses: "true": the kept; "locked": also all into ``locked [N]`` bool; "full": all.
        best_in_edge: each receiver's best edge goes last.
        choice: "message": Unifews' score; "random": fixed by ``seed``; "magnitude": the edge's weight alone; "given":
            ``worth [total]``.
        errors: a list to which every propagation appends what pruning did to it, or None.
    """

    absent: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("absent", None)
        self.view: View = "true"
        self.locked: Tensor | None = None
        self.best_in_edge = False
        self.renormalize = False
        self.choice: Choice = "message"
        self.seed = 0
        self.worth: Tensor | None = None
        self.errors: list[LayerError] | None = None
        self._subsets: dict[View, tuple[Tensor, EdgeSet, Tensor | None, EdgeSet]] = {}

    def forward(self, given: EdgeSet, scores: Callable[[], EdgeScores]) -> EdgeSet:
        """The edges to use of those ``given``. ``scores()`` is asked for only when a choice is to be made.

        Raises:
            SparsityError: if the edges kept are those of another graph.
        """
        if self.training and self.pruning:
            with torch.no_grad():
                self._choose(given, scores())
        view: View = "true" if self.training else self.view
        if self.kept is None or view == "full":
            return given
        if len(self.kept) != given.total:
            raise SparsityError(
                f"this sparse model keeps some of {len(self.kept)} edges, the graph has {given.total}; use the graph "
                "that it was trained on, or evaluate it without pruning"
            )
        locked = self.locked if view == "locked" else None
        known = self._subsets.get(view)
        if known is not None and known[0] is self.kept and known[1] is given and known[2] is locked:
            return known[3]
        mask = self.kept[given.ids]
        if locked is not None:
            mask = mask | locked[given.target]
        subset = given.subset(mask, bool(self.absent))
        self._subsets[view] = (self.kept, given, locked, subset)
        return subset

    def propagate(self, given: EdgeSet, kept: EdgeSet, x: Tensor) -> Tensor:
        """``kept.propagate(x)``; the error is against all edges of the graph, not only those given."""
        out = kept.propagate(x)
        if self.errors is not None:
            whole = given.whole
            used = whole.weight.new_zeros(whole.total).index_add(0, kept.ids, kept.weight)
            lost = ((whole.weight - used).abs() * x.norm(dim=1)[whole.source]).to(x)
            some = lost > 0
            self.errors.append(layer_error(whole.propagate(x), out, lost[some], whole.target[some], whole.num_nodes))
        return out

    def _choose(self, given: EdgeSet, scores: EdgeScores) -> None:
        free = ~given.is_loop
        if self.choice == "random":
            generator = torch.Generator().manual_seed(self.seed)
            value = torch.rand(given.total, generator=generator).to(free.device)[given.ids]
        elif self.choice == "given":
            assert self.worth is not None, "the callback says what each edge is worth"
            value = self.worth[given.ids]
        else:
            value = given.weight if self.choice == "magnitude" else scores.value
        best = edges.best_in_edges(value, given.target, free, given.num_nodes) if self.best_in_edge else None
        if self.sparsity is None:
            mask = edges.above(EdgeScores(value, scores.reference), self.threshold, self.absolute) | given.is_loop
            mask = mask if best is None else mask | best
        else:
            loops = given.num_loops if len(given) == given.total else int(given.is_loop.sum())
            count = round((1.0 - self.sparsity) * (given.total - loops))
            mask = edges.strongest(value, count, free, best) | given.is_loop
        kept = torch.zeros(given.total, dtype=torch.bool, device=mask.device)
        kept[given.ids[mask]] = True
        self.kept = kept
        self.absent = torch.tensor(self.renormalize, device=mask.device)
