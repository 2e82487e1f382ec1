"""Deep Sets over the entries of every tensor: the layer that is equivariant to all permutations of entries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsl.spec import WeightSpec


class DeepSetLinear(nn.Module):
    r"""y = bias + x Λ + mean(x) Γ, with means over all entries of a tensor; reduced: y = bias + (x − mean(x)) Λ.

    Zaheer et al., "Deep Sets", NeurIPS 2017, Lemma 3 and equation 4. One set of coefficients serves all tensors, so
    the count does not depend on the spec: c_out (c_in + 1) for the reduced form.

    Args:
        spec: the weight space.
        c_in, c_out: feature channels.
        reduced: tie Γ = −Λ, as learned optimizers do; the layer then forgets the means of its input.

    Shapes: ``[B, P, c_in]`` → ``[B, P, c_out]``.
    """

    owner: Tensor
    share: Tensor

    def __init__(self, spec: WeightSpec, c_in: int, c_out: int, reduced: bool = False) -> None:
        super().__init__()
        owner = torch.empty(spec.numel, dtype=torch.int64)
        for number, tensor in enumerate(spec.tensors):
            owner[torch.from_numpy(tensor.index().ravel())] = number
        self.register_buffer("owner", owner, persistent=False)
        share = torch.tensor([1 / max(t.numel, 1) for t in spec.tensors]).unsqueeze(1)
        self.register_buffer("share", share, persistent=False)
        self.entry = nn.Linear(c_in, c_out)
        self.pooled = None if reduced else nn.Linear(c_in, c_out, bias=False)

    def means(self, x: Tensor) -> Tensor:
        """Mean over each tensor, ``[B, P, C]`` → ``[B, tensors, C]``."""
        return x.new_zeros(x.shape[0], len(self.share), x.shape[2]).index_add(1, self.owner, x) * self.share

    def forward(self, x: Tensor) -> Tensor:
        means = self.means(x)
        if self.pooled is None:
            return self.entry(x - means.index_select(1, self.owner))
        return self.entry(x) + self.pooled(means).index_select(1, self.owner)
