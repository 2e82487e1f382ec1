"""Attention between the weights and biases of a chain, equivariant to permutations of its neurons."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsl.nn.chain import ChainLayer

#: features of a chain, layer by layer: weights ``[B, n_out, n_in, cells, C]``, biases ``[B, n_out, cells, C]`` or None
Weights = list[Tensor]
Biases = list["Tensor | None"]


class NFTAttention(nn.Module):
    r"""Self-attention of Neural Functional Transformers (Zhou et al., NeurIPS 2023, as in its published code).

    Queries, keys and values are linear in the channels of an entry (and its cells). An output entry is the sum of

    * *summaries*: their means over every tensor are one token each; what a tensor's token attends to is broadcast
      over it;
    * *adjacent layers*: for a neuron group i, the columns of weight i, bias i and the rows of weight i+1 are tokens,
      each a vector over the neurons of group i with C/H channels per neuron. Scores sum over those neurons, so they do
      not change when these are permuted, and every weight takes part as columns and as rows.

    Args:
        layers: the chain.
        cells: cells of the fixed axes of every weight and bias, weights first.
        channels: C, divisible by ``heads``.
        heads: H.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``.
    """

    def __init__(self, layers: tuple[ChainLayer, ...], cells: tuple[int, ...], channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels ({channels}) must be a multiple of heads ({heads})")
        self.heads, self.cells = heads, cells
        self.shared = set(cells) == {1}
        sizes = (1,) if self.shared else cells
        self.project = nn.ModuleList(nn.Linear(n * channels, 3 * channels) for n in sizes)
        self.expand = (
            nn.ModuleList() if self.shared else nn.ModuleList(nn.Linear(channels, n * channels) for n in cells)
        )

    def forward(self, weights: Weights, biases: Biases) -> tuple[Weights, Biases]:
        depth = len(weights)
        tensors = [*weights, *biases]
        held = [n for n, x in enumerate(tensors) if x is not None]
        qkv = {n: self.project[0 if self.shared else n](x.flatten(-2)) for n, x in enumerate(tensors) if x is not None}
        out = dict(zip(held, self._summaries([qkv[n] for n in held]), strict=True))
        for group in range(depth + 1):  # between weight group−1 (its columns) and weight group (its rows), from 0
            tokens, owners = [], []
            if group > 0:
                tokens.append(qkv[group - 1].transpose(1, 2))
                owners.append(group - 1)
                if depth + group - 1 in qkv:
                    tokens.append(qkv[depth + group - 1].unsqueeze(1))
                    owners.append(depth + group - 1)
            if group < depth:
                tokens.append(qkv[group])
                owners.append(group)
            attended = self._attend(torch.cat(tokens, 1)).split([t.shape[1] for t in tokens], dim=1)
            for owner, value in zip(owners, attended, strict=True):
                columns = value.transpose(1, 2) if owner == group - 1 else value
                out[owner] = out[owner] + (columns.squeeze(1) if owner >= depth else columns)
        results = [self._expanded(n, out[n]) if n in out else None for n in range(len(tensors))]
        return [x for x in results[:depth] if x is not None], results[depth:]

    def _expanded(self, number: int, x: Tensor) -> Tensor:
        if self.shared:
            return x.unsqueeze(-2)
        return self.expand[number](x).unflatten(-1, (self.cells[number], -1))

    def _summaries(self, qkv: list[Tensor]) -> list[Tensor]:
        means = torch.stack([x.flatten(1, -2).mean(1) for x in qkv], dim=1).unsqueeze(2)
        attended = self._attend(means).squeeze(2)
        return [
            value.reshape(len(value), *(1,) * (x.dim() - 2), -1)
            for value, x in zip(attended.unbind(1), qkv, strict=True)
        ]

    def _attend(self, qkv: Tensor) -> Tensor:
        """Tokens that are vectors over N neurons: ``[B, tokens, N, 3C]`` → ``[B, tokens, N, C]``."""
        neurons = qkv.shape[2]
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(3, 0, 4, 1, 2, 5).flatten(-2)
        attended = F.scaled_dot_product_attention(q, k, v)  # scaled by the root of the token length C/H · N
        return attended.unflatten(-1, (neurons, -1)).permute(0, 2, 3, 1, 4).flatten(-2)


class NFTBlock(nn.Module):
    """x ← x + drop(attention(norm x)); x ← x + MLP(norm x), entry by entry with GELU and four times the channels."""

    def __init__(
        self, layers: tuple[ChainLayer, ...], cells: tuple[int, ...], channels: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.attention = NFTAttention(layers, cells, channels, heads)
        self.norm = nn.LayerNorm(channels)
        self.drop = nn.Dropout(dropout)
        self.pointwise = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, weights: Weights, biases: Biases) -> tuple[Weights, Biases]:
        normed = [None if b is None else self.norm(b) for b in biases]
        change_w, change_b = self.attention([self.norm(w) for w in weights], normed)
        new_w = [self._updated(w, change) for w, change in zip(weights, change_w, strict=True)]
        pairs = zip(biases, change_b, strict=True)
        return new_w, [None if b is None or change is None else self._updated(b, change) for b, change in pairs]

    def _updated(self, x: Tensor, change: Tensor) -> Tensor:
        x = x + self.drop(change)
        return x + self.pointwise(x)
