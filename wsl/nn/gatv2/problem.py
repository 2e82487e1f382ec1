"""What every execution form of the attention is given, and the gradients it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from wsl.nn.gatv2.graph import EdgeGraph
from wsl.nn.gatv2.scores import Score


@dataclass(frozen=True)
class Problem:
    """One layer between its linear maps: everything that the attention reads.

    Attributes:
        xl: ``[num_sources, H, C]``. xr: ``[num_targets, H, C]``. Both contiguous.
        att: ``[H, C]``, the attention vector a.
        edge_attr: ``[E, D]`` in the caller's order, or None. weight_edge: ``[H·C, D]``.
        keep: ``[E, H]`` in the caller's order: 0, or 1/(1 − p) where attention dropout keeps the edge; or None.
    """

    xl: Tensor
    xr: Tensor
    att: Tensor
    score: Score
    edge_attr: Tensor | None = None
    weight_edge: Tensor | None = None
    keep: Tensor | None = None

    @property
    def heads(self) -> int:
        return self.att.shape[0]


@dataclass(frozen=True)
class Wanted:
    """Which optional gradients a backward pass should compute: those of raw edge data are rarely needed."""

    edge_attr: bool
    weight_edge: bool


@dataclass
class Gradients:
    """dL/d of what a :class:`Problem` holds, in the same shapes."""

    xl: Tensor
    xr: Tensor
    att: Tensor
    edge_attr: Tensor | None = None
    weight_edge: Tensor | None = None


class Form(Protocol):
    """One way to run the attention.

        u_e = xl_j + xr_i + v_e       logit_e = a · σ(u_e)       α = softmax of the logits over the edges into i
        o_i = Σ_{e → i} keep_e α_e xl_j

    The backward pass is given G = dL/do and, where the loss reads α, dL/dα:

        gα_e = keep_e ⟨G_i, xl_j⟩ + dL/dα_e        D_i = ⟨G_i, o_i⟩ + Σ_{e → i} α_e dL/dα_e
        gl_e = α_e (gα_e − D_i)                     gu_e = gl_e · a ⊙ σ'(u_e)
        dxl_j = Σ_{e: j → i} keep_e α_e G_i + gu_e  dxr_i = Σ_{e → i} gu_e
        da = Σ_e gl_e σ(u_e)                        dW_e = Σ_e gu_e f_e^T,  df_e = W_e^T gu_e
    """

    @property
    def num_edges(self) -> int:
        """E."""

    def sorted_edges(self, device: torch.device) -> EdgeGraph:
        """The same edges as a list; ``device``: where the node features are."""

    def forward(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """o ``[num_targets, H, C]`` and α ``[E, H]`` in the form's own order of edges."""

    def backward(
        self, problem: Problem, alpha: Tensor, out: Tensor, grad: Tensor, grad_alpha: Tensor | None, wanted: Wanted
    ) -> Gradients:
        """``grad [num_targets, H, C]`` is G; ``grad_alpha [E, H]`` in the form's order."""

    def to_caller(self, per_edge: Tensor) -> Tensor:
        """Rows ``[E, …]`` in the form's order → in the caller's."""


def draw_keep(shape: tuple[int, int], dropout: float, seed: int, like: Tensor) -> Tensor:
    """Attention dropout's factors, a function of the seed and the caller's edge order alone: 0 or 1/(1 − p)."""
    if dropout >= 1.0:
        return like.new_zeros(shape)
    generator = torch.Generator(like.device).manual_seed(seed)
    keep = torch.empty(shape, dtype=like.dtype, device=like.device)
    return keep.bernoulli_(1.0 - dropout, generator=generator).div_(1.0 - dropout)
