"""Gradient-flow readings of one attention layer, taken from inside its backward pass.

    layer.probe = FlowProbe()          # off again: layer.probe = None, which costs nothing
    loss.backward()
    layer.probe.readings               # {"entropy_mean": tensor, …}

A reading repeats the layer's pass over the edges in chunks, so it costs about one more backward pass and no tensor of
E×H×C. Targets with at most one incoming edge have no choice to make: they are counted, and left out of all the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from wsl.nn.gatv2.edge_list import EdgeListForm
from wsl.nn.gatv2.graph import EdgeGraph
from wsl.nn.gatv2.kernels import edge_scores
from wsl.nn.gatv2.problem import Form, Problem

SATURATED = 1e-3
"""A softmax whose gain 1 − Σ α² is below this passes hardly any gradient."""


@dataclass
class FlowProbe:
    """Where the gradients of an attention layer go.

    Attributes:
        readings: of the latest backward pass, detached; NaN where no target has two incoming edges.

            ``entropy_mean``, ``entropy_p10`` ``[H]``: −Σ α ln α / ln degree over the targets, mean and 10th percentile
            ``saturated_share``: share of (target, head) with 1 − Σ α² < 1e-3
            ``path_ratio``: ‖a ⊙ S‖ / ‖M‖, gradient through the scores against gradient through the messages
            ``same_sign_share``: share of (target, channel) whose incoming u all have one sign: the query map learns
            nothing from them under LeakyReLU
            ``value_contrast``: Σ α ‖xl_j − mean_i‖² / Σ α ‖xl_j‖²; 0 when neighbours cannot be told apart
            ``low_degree_share``: share of targets with at most one incoming edge
            ``shift_residual``: max_i |Σ gl| / max |gl|; 0 but for rounding if the softmax's backward pass is right
    """

    readings: dict[str, Tensor] = field(default_factory=dict)

    def read(
        self, form: Form, problem: Problem, alpha: Tensor, out: Tensor, grad: Tensor, grad_alpha: Tensor | None
    ) -> None:
        """Called by the layer's backward pass with what :meth:`Form.backward` is given."""
        graph = form.sorted_edges(alpha.device)
        alpha = graph.to_sorted(form.to_caller(alpha))
        grad_alpha = None if grad_alpha is None else graph.to_sorted(form.to_caller(grad_alpha))
        choosing = graph.degree >= 2
        flow = _Flow(graph, problem, choosing)
        flow.walk(
            alpha,
            grad,
            grad_alpha,
            _means(problem, graph, alpha, out),
            _loss_means(graph, alpha, out, grad, grad_alpha),
        )
        self.readings = _attention(graph, alpha, choosing) | flow.readings()
        self.readings["low_degree_share"] = 1.0 - choosing.to(alpha.dtype).mean()


def _means(problem: Problem, graph: EdgeGraph, alpha: Tensor, out: Tensor) -> Tensor:
    """Σ α xl per target ``[N, H, C]``: o itself, unless dropout changed it."""
    if problem.keep is None:
        return out
    means = torch.zeros_like(out)
    for edges, source, target in EdgeListForm(graph).chunks(problem):
        means.index_add_(0, target, problem.xl.index_select(0, source) * alpha[edges].unsqueeze(-1))
    return means


def _loss_means(graph: EdgeGraph, alpha: Tensor, out: Tensor, grad: Tensor, grad_alpha: Tensor | None) -> Tensor:
    """D ``[N, H]`` of :class:`wsl.nn.gatv2.problem.Form`."""
    mean = (grad * out).sum(-1)
    return mean if grad_alpha is None else mean.index_add_(0, graph.target, alpha * grad_alpha)


class _Flow:
    """Sums over edges of what the backward pass makes and throws away."""

    def __init__(self, graph: EdgeGraph, problem: Problem, choosing: Tensor) -> None:
        self.graph, self.problem, self.choosing = graph, problem, choosing
        self.messages, self.scores = torch.zeros_like(problem.xl), torch.zeros_like(problem.xl)
        self.positive = torch.zeros_like(problem.xr)
        self.shift = problem.xr.new_zeros(problem.xr.shape[:2])
        self.spread, self.size, self.largest = problem.xl.new_zeros(3).unbind()

    def walk(self, alpha: Tensor, grad: Tensor, grad_alpha: Tensor | None, means: Tensor, loss_means: Tensor) -> None:
        problem, form = self.problem, EdgeListForm(self.graph)
        keep = None if problem.keep is None else self.graph.to_sorted(problem.keep)
        for edges, source, target in form.chunks(problem):
            counts = self.choosing[target].to(alpha.dtype).unsqueeze(-1)
            key, u = edge_scores(problem.xl, problem.xr, source, target, form.edge_term(problem, edges))
            upstream, weight = grad[target], alpha[edges]
            gain = (key * upstream).sum(-1)
            gain = gain if keep is None else gain * keep[edges]
            gain = gain if grad_alpha is None else gain + grad_alpha[edges]
            grad_logit = weight * (gain - loss_means[target])
            self.positive.index_add_(0, target, (u > 0).to(u.dtype))
            self.shift.index_add_(0, target, grad_logit)
            self.largest = torch.maximum(self.largest, grad_logit.abs().amax())
            kept = counts * (weight if keep is None else weight * keep[edges])
            self.messages.index_add_(0, source, upstream * kept.unsqueeze(-1))
            grad_z = (counts * grad_logit).unsqueeze(-1) * problem.att
            self.scores.index_add_(0, source, problem.score.backward(grad_z, u))
            weight = counts * weight
            self.spread = self.spread + (weight * (key - means[target]).square().sum(-1)).sum()
            self.size = self.size + (weight * key.square().sum(-1)).sum()

    def readings(self) -> dict[str, Tensor]:
        degree = self.graph.degree.to(self.positive.dtype).view(-1, 1, 1)
        one_sign = ((self.positive == 0) | (self.positive == degree))[self.choosing]
        return {
            "path_ratio": self.scores.norm() / self.messages.norm(),
            "same_sign_share": one_sign.to(self.positive.dtype).mean(),
            "value_contrast": self.spread / self.size,
            "shift_residual": _largest(self.shift.abs()) / self.largest.clamp_min(torch.finfo(self.shift.dtype).tiny),
        }


def _attention(graph: EdgeGraph, alpha: Tensor, choosing: Tensor) -> dict[str, Tensor]:
    """Entropy and gain of the softmaxes of ``choosing`` targets."""
    sums = alpha.new_zeros(2, graph.num_targets, alpha.shape[1])
    sums[0].index_add_(0, graph.target, -torch.xlogy(alpha, alpha))
    sums[1].index_add_(0, graph.target, alpha.square())
    entropy, squares = sums[:, choosing]
    entropy = entropy / graph.degree[choosing].to(alpha.dtype).log().unsqueeze(-1)
    nothing = alpha.new_full((alpha.shape[1],), torch.nan)
    tenth = entropy.kthvalue(1 + (len(entropy) - 1) // 10, dim=0).values if len(entropy) else nothing
    return {
        "entropy_mean": entropy.mean(0),
        "entropy_p10": tenth,
        "saturated_share": (1.0 - squares < SATURATED).to(alpha.dtype).mean(),
    }


def _largest(values: Tensor) -> Tensor:
    return values.amax() if values.numel() else values.new_zeros(())
