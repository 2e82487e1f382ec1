"""Monomial-NFN: equivariant to permutation with positive scaling and sign of hidden neurons, layer by layer."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.encoders.base import Encoder, UnsupportedSpecError
from wsl.nn.chain import NotAChainError
from wsl.nn.field_scale import field_scale as scales_of
from wsl.nn.mlp import mlp
from wsl.nn.monomial.characters import RepeatedLabelError, monomial_layout
from wsl.nn.monomial.invariants import InvariantMap, Normal, Odd, Positive
from wsl.nn.monomial.linear import Init
from wsl.nn.monomial.pooling import RICH, Pooling, outputs, pool, summary
from wsl.nn.monomial.stack import MonomialStack, StackOptions
from wsl.nn.monomial.telescope import Telescope
from wsl.nn.standardize import Standardize
from wsl.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt, Rate
from wsl.spec import WeightSpec
from wsl.spec.family import SpecFamily, specs_of


class Monomial(Encoder):
    """f(w) = MLP(pool(invariant map(stack of equivariant layers(w)))), or, equivariant, a last layer instead.

    Tran et al., "Monomial Matrix Group Equivariant Neural Functional Networks", NeurIPS 2024. The group follows the
    activations of the spec, label by label (:mod:`wsl.nn.monomial.characters`), so networks may mix ReLU with tanh, and
    layers whose activation has neither symmetry are read as by an NFN. A zoo of two activations arrives as a family of
    specs that differ in nothing else: all share the linear layers, and each network goes through the functions and
    invariants of its own group. Other than in the published networks no ReLU precedes the invariant map.

    Args:
        spec: what the networks share; any architecture in which no tensor has a permuted label twice, or a family of
            such specs that differ in activations only.
        out_features: number of features returned.
        channels: features of each layer; the defaults are those of the published model of the Small CNN Zoo.
        head: widths of the hidden layers of the MLP; unused when equivariant.
        dropout: in the MLP.
        positive: function on entries that may be scaled by positive numbers, and on those that nothing moves.
        odd: function on entries that may change sign.
        gated: multiply entries by functions of invariants of their place instead.
        normal: how a scaled vector becomes invariant, see :class:`~wsl.nn.monomial.invariants.InvariantMap`.
        pooling: means over neurons, or also deviation, largest value and quartiles ("rich").
        paths: features of the products of layers that meet at a neuron, which gate its entries after every layer and
            join the pooled invariants; 0 for none. Chains only. See :class:`~wsl.nn.monomial.telescope.Telescope`.
        normalize: divide each tensor by its root mean square over the training data (see :meth:`fit_statistics`).
        init: of the linear layers.
        equivariant: return a field over the parameters, which transforms like differences of weights.
        field_scale: start of the learned scales of the field, one for each tensor; 0: no scales.

    Shapes: batch of ``[B, P, C_0]`` → ``[B, out_features]``, or ``[B, P, out_features]``; of a mixed batch of
    ``[ΣP, C_0]`` → the same, or ``[ΣP, out_features]``.

    Raises:
        UnsupportedSpecError: if a tensor has a label twice, specs of a family differ in more than activations, or paths
            are asked of a spec that is no chain.
    """

    symmetries: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling", "sign"})
    reads: ClassVar[tuple[type[Any], ...]] = (WeightSpec, SpecFamily)

    def __init__(
        self,
        spec: WeightSpec | SpecFamily,
        out_features: int,
        *,
        channels: tuple[PositiveInt, ...] = (16, 16, 5),
        head: tuple[PositiveInt, ...] = (200, 200),
        dropout: Rate = 0.0,
        positive: Positive = "relu",
        odd: Odd = "sine",
        gated: bool = False,
        normal: Normal = "scaled_l2",
        pooling: Pooling = "mean",
        paths: NonNegativeInt = 0,
        normalize: bool = True,
        init: Init = "xavier_normal",
        equivariant: bool = False,
        field_scale: NonNegativeFloat = 0.0,
        in_channels: PositiveInt = 1,
    ) -> None:
        specs = specs_of(spec)
        super().__init__(spec, out_features)
        self.first = specs[0]
        self._number = {each: n for n, each in enumerate(_alike(specs))}
        self.equivariant, self.pooling = equivariant, pooling
        self.scales = scales_of(specs[0], equivariant * field_scale)
        self.normalize = Standardize(specs[0], center=False) if normalize else None
        options = StackOptions(positive, odd, gated, paths, init)
        try:
            self.layout = monomial_layout(specs)
            last = (out_features,) if equivariant else ()
            self.stack = MonomialStack(self.layout, specs, (in_channels, *channels, *last), options)
            self.telescope = Telescope(self.layout, channels[-1], paths) if paths and not equivariant else None
        except RepeatedLabelError as error:
            raise UnsupportedSpecError(f"Monomial-NFN cannot take this spec: {error}; use unf") from error
        except (NotAChainError, ValueError) as error:
            raise UnsupportedSpecError(f"paths={paths} need a chain with hidden neurons: {error}") from error
        self.invariants: InvariantMap | None = None
        self.head: nn.Module | None = None
        if not equivariant:
            self.invariants = InvariantMap(self.layout, specs, channels[-1], normal)
            width = outputs(self.layout, channels[-1], pooling)
            width += len(self.telescope.labels) * RICH * self.telescope.features if self.telescope else 0
            self.head = mlp((width, *head, out_features), dropout)

    def fit_statistics(self, batch: WeightBatch | MixedWeightBatch) -> None:
        """Set the scale of each parameter tensor from training data."""
        if self.normalize is not None:
            self.normalize.fit(self._rows(batch)[0])

    def forward(self, batch: WeightBatch | MixedWeightBatch) -> Tensor:
        rows, spec_ids = self._rows(batch)
        values = rows.values if self.normalize is None else self.normalize(rows.values)
        features = self.stack(self.layout.pack(values), spec_ids)
        if self.equivariant:
            field = self.scales(self.layout.unpack(features, self.out_features))
            return field.flatten(0, 1) if isinstance(batch, MixedWeightBatch) else field
        assert self.head is not None and self.invariants is not None
        pooled = pool(self.invariants(features, spec_ids), self.pooling)
        if self.telescope is not None:
            pooled = torch.cat([pooled, *(summary(p, "rich") for p in self.telescope(features).values())], dim=1)
        return self.head(pooled)

    def _rows(self, batch: WeightBatch | MixedWeightBatch) -> tuple[WeightBatch, Tensor | None]:
        """The networks as one batch of the first spec, and the number of each one's own spec."""
        self.check_spec(batch)
        if isinstance(batch, WeightBatch):
            ids = torch.full((len(batch),), self._number[batch.spec], device=batch.values.device)
            return dataclasses.replace(batch, spec=self.first), ids if len(self._number) > 1 else None
        numbers = torch.tensor([self._number[each] for each in batch.specs], device=batch.spec_ids.device)
        return WeightBatch(self.first, batch.stacked()), numbers[batch.spec_ids]


def _alike(specs: tuple[WeightSpec, ...]) -> tuple[WeightSpec, ...]:
    """The specs, which have the same tensors on the same labels.

    Raises:
        UnsupportedSpecError: naming the first that differs in more than activations and the symmetries they allow.
    """
    for number, spec in enumerate(specs):
        labels = [dataclasses.replace(label, symmetries=()) for label in spec.labels]
        first = [dataclasses.replace(label, symmetries=()) for label in specs[0].labels]
        if spec.stored != specs[0].stored or spec.tensors != specs[0].tensors or labels != first:
            raise UnsupportedSpecError(
                f"Monomial-NFN reads a family of specs that differ in activations only; spec {number}, {spec!r}, has "
                f"other tensors or labels than {specs[0]!r}"
            )
    return specs
