"""The UNF layer: every equivariant linear map of a weight space, evaluated through a bank of pools."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from wsl.nn.unf.basis import BasisOptions, check_budget, exchanges
from wsl.nn.unf.coefficients import Coefficients
from wsl.nn.unf.layout import Layout
from wsl.nn.unf.pool_bank import Arrival, PoolBank, Received


class UNFLinear(nn.Module):
    r"""Equivariant affine map of the features of a weight space (Zhou, Finn and Harrison, 2024, Algorithm 1).

    For every tensor l, summed over all tensors m and all valid partitions of the axes of both::

        Y_l = Σ_m Σ_(port, reduction)  write_port( reduce_reduction(X_m) · Θ[l, m, port, reduction] )  +  bias_l

    The sums are exchanged: each reduction is computed once, all terms that keep the same labels are one matrix
    product, and each port is broadcast or written to its diagonal once.

    Args:
        layout: the weight space and its permuted labels.
        c_in, c_out: feature channels.
        options: size and kind of the basis.
        gain, init: see :class:`~wsl.nn.unf.coefficients.Coefficients`.

    Shapes:
        input and output: one tensor ``[B, *sizes, slots·C]`` per bundle of the layout.

    Raises:
        BasisTooLargeError: if the coefficients exceed ``options.budget_gib``.
    """

    def __init__(
        self,
        layout: Layout,
        c_in: int,
        c_out: int,
        options: BasisOptions | None = None,
        gain: float = 1.0,
        init: Literal["balanced", "flat"] = "balanced",
    ) -> None:
        super().__init__()
        self.layout, self.options = layout, options or BasisOptions()
        check_budget(layout, self.options, c_in, c_out)
        self.plan = exchanges(layout, self.options)
        self.coefficients = Coefficients(layout, self.plan, self.options, c_in, c_out, gain, init)
        self.pools = PoolBank(layout, self.options.aggregation)
        self.c_in, self.c_out = c_in, c_out

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        bank = self.pools.read(features)
        received: list[Received] = [{} for _ in features]
        for number, exchange in enumerate(self.plan):
            parts = [bank[source.bundle](source.reduction) for source in exchange.sources]
            joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
            mixed = self.coefficients.apply_to(number, joined)
            if not exchange.key:
                mixed = mixed + self.coefficients.biases()
            alone = len(exchange.sinks) == 1
            slots = [self.layout.bundles[sink.bundle].slots * self.c_out for sink in exchange.sinks]
            split = (mixed,) if alone else mixed.split(slots, dim=-1)
            for sink, part in zip(exchange.sinks, split, strict=True):
                received[sink.bundle][sink.port.blocks, sink.port.connected] = Arrival(part, owned=alone)
        return self.pools.write(received)

    def extra_repr(self) -> str:
        return f"{self.c_in} → {self.c_out}, {len(self.plan)} exchanges, {self.options}"
