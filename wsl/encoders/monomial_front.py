"""Monomial layers in front of another encoder: entries lose scale and sign, not their place."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from wsl.batch import WeightBatch
from wsl.encoders.base import UnsupportedSpecError
from wsl.encoders.wrapper import MakeEncoder, Wrapper
from wsl.nn.chain import NotAChainError
from wsl.nn.monomial.characters import RepeatedLabelError, monomial_layout
from wsl.nn.monomial.invariants import InvariantMap, Normal, Odd, Positive
from wsl.nn.monomial.linear import Init
from wsl.nn.monomial.stack import MonomialStack, StackOptions
from wsl.nn.standardize import Standardize
from wsl.ranges import NonNegativeInt, PositiveInt
from wsl.spec import WeightSpec


class MonomialFront(Wrapper):
    """f(w) = encoder(invariant map(stack of equivariant layers(w))), with an encoder that respects permutations.

    The published models of INRs are of this form: SIGN layers 1 → h → h → 1 with sines, |x|, then an NFN with Gaussian
    features (Tran et al., section 5.2). Every entry keeps its place, so nothing is pooled before the NFN.

    Args:
        spec: what the networks share; no tensor has a permuted label twice.
        out_features: number of features returned.
        encoder: invariant; reads as many channels as the last of ``channels``.
        channels: features of the layers. Of positive factors a single channel leaves the sign of an entry alone: give
            ReLU networks five.
        positive, odd, gated, normal, paths, normalize, init: see :class:`~wsl.encoders.monomial.Monomial`.

    Shapes: batch of ``[B, P, 1]`` → ``[B, out_features]``.

    Raises:
        UnsupportedSpecError: as :class:`~wsl.encoders.monomial.Monomial`, or if the inner encoder returns a field (that
            of an invariant is none of the weights), or reads another number of channels.
    """

    symmetries: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling", "sign"})

    def __init__(
        self,
        spec: WeightSpec,
        out_features: int,
        *,
        encoder: MakeEncoder,
        channels: tuple[PositiveInt, ...] = (64, 64, 1),
        positive: Positive = "relu",
        odd: Odd = "sine",
        gated: bool = False,
        normal: Normal = "l2",
        paths: NonNegativeInt = 0,
        normalize: bool = False,
        init: Init = "xavier_normal",
    ) -> None:
        super().__init__(spec, out_features, encoder)
        if self.equivariant:
            raise UnsupportedSpecError(
                "behind a monomial front no field is left; set encoder.encoder.equivariant=false"
            )
        if "permutation" not in self.encoder.symmetries:
            self.symmetries = frozenset({"scaling", "sign"})  # type: ignore[misc]  # what the inner one lacks
        self.normalize = Standardize(spec, center=False) if normalize else None
        self.channels = channels[-1]
        try:
            self.layout = monomial_layout((spec,))
            options = StackOptions(positive, odd, gated, paths, init)
            self.stack = MonomialStack(self.layout, (spec,), (1, *channels), options)
        except (RepeatedLabelError, NotAChainError, ValueError) as error:
            raise UnsupportedSpecError(f"monomial layers cannot take this spec: {error}") from error
        self.invariants = InvariantMap(self.layout, (spec,), channels[-1], normal)
        if self.channels > 1:
            self._try()

    def _try(self) -> None:
        try:
            with torch.no_grad():
                self.encoder(WeightBatch(self.spec, torch.zeros(1, self.spec.numel, self.channels)))
        except (RuntimeError, ValueError) as error:
            raise UnsupportedSpecError(
                f"the inner encoder does not read {self.channels} channels (set encoder.encoder.in_channels): {error}"
            ) from error

    def fit_statistics(self, batch: WeightBatch) -> None:
        """Scales of the parameter tensors, then the inner encoder's statistics of what the front makes of them."""
        if self.normalize is not None:
            self.normalize.fit(batch)
        with torch.no_grad():
            super().fit_statistics(batch)

    def prepared(self, batch: WeightBatch) -> WeightBatch:
        """Entries without scale and sign, ``[B, P, C]``."""
        self.check_spec(batch)
        values = batch.values if self.normalize is None else self.normalize(batch.values)
        features = self.invariants(self.stack(self.layout.pack(values)))
        return batch.with_values(self.layout.unpack(features, self.channels))

    def forward(self, batch: WeightBatch) -> Tensor:
        return self.encoder(self.prepared(batch))
