"""UNF: a universal neural functional, equivariant to every permutation symmetry that the spec states."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from wsl.batch import WeightBatch
from wsl.encoders.base import StandardizingEncoder, UnsupportedSpecError
from wsl.nn.field_scale import field_scale as scales_of
from wsl.nn.fourier import FourierFeatures
from wsl.nn.mlp import mlp
from wsl.nn.standardize import Standardize
from wsl.nn.unf.basis import BasisOptions, BasisTooLargeError
from wsl.nn.unf.layout import Layout
from wsl.nn.unf.linear import UNFLinear
from wsl.nn.unf.pooling import InvariantPool
from wsl.nn.unf.positions import sinusoidal_positions
from wsl.nn.unf.stack import UNFStack
from wsl.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Rate
from wsl.spec import SpecError, WeightSpec

#: what to do with axes that no symmetry of the networks permutes
Axes = Literal["fixed", "encoded", "permuted"]


class UNF(StandardizingEncoder):
    """f(w) = MLP(pool(stack of equivariant layers(w))), or, equivariant, a last layer instead of pool and MLP.

    Zhou, Finn and Harrison, "Universal Neural Functionals", NeurIPS 2024; the defaults are those of its predictor of
    generalization: three layers of 16 channels, invariant pool, MLP with 512 hidden units.

    Args:
        spec: what the networks share; any architecture.
        out_features: number of features returned.
        channels: C, feature channels of every layer.
        layers: number of equivariant layers.
        head: widths of the hidden layers of the MLP; unused when equivariant.
        dropout: in the MLP, after each hidden layer.
        ends: axes of inputs and outputs. "fixed": every one of them has coefficients of its own (exact, but quadratic
            in their number); "permuted": treated as permutable, a false symmetry; "encoded": permuted, but sinusoidal
            positions among the input features tell them apart.
        cells: fixed axes (kernel cells, embedding rows), likewise.
        bands, max_frequency: waves of the positions of "encoded" axes.
        theta, rank, diagonal_writes, neighbours_only, drop_redundant, aggregation, bias, budget_gib: the basis, see
            :class:`~wsl.nn.unf.basis.BasisOptions`.
        pool: "complete" also averages the diagonals of tensors with repeated labels; "reduced" is the paper's.
        residual: add each layer's input to its output (from the second layer on).
        norm: layer norm over the channels of every entry.
        init: "balanced" keeps the scale of features at any depth; "flat" is the official code's.
        standardize: subtract mean and divide by deviation of each tensor (see :meth:`fit_statistics`).
        fourier_features: waves of every value instead of the value itself, as NFNs read INRs; 0 for none.
        fourier_std: standard deviation of their frequencies.
        equivariant: return a field over the parameters.
        field_scale: start of the learned scales of the field, one for each tensor; 0: no scales.

    Shapes: batch of ``[B, P, C_0]`` → ``[B, out_features]``, or ``[B, P, out_features]``.

    Raises:
        UnsupportedSpecError: if a layer exceeds ``budget_gib``, or ``neighbours_only`` meets tensors on no connection.
    """

    symmetries: ClassVar[frozenset[str]] = frozenset({"permutation"})

    def __init__(
        self,
        spec: WeightSpec,
        out_features: int,
        *,
        channels: PositiveInt = 16,
        layers: PositiveInt = 3,
        head: tuple[PositiveInt, ...] = (512, 512),
        dropout: Rate = 0.0,
        ends: Axes = "fixed",
        cells: Axes = "fixed",
        bands: PositiveInt = 6,
        max_frequency: PositiveFloat = 10.0,
        theta: Literal["full", "role_shared", "low_rank"] = "full",
        rank: PositiveInt = 16,
        diagonal_writes: bool = True,
        neighbours_only: bool = False,
        drop_redundant: bool = True,
        aggregation: Literal["mean", "sum"] = "mean",
        bias: Literal["complete", "reduced", "none"] = "complete",
        budget_gib: PositiveFloat = 4.0,
        pool: Literal["complete", "reduced"] = "complete",
        residual: bool = False,
        norm: bool = False,
        init: Literal["balanced", "flat"] = "balanced",
        standardize: bool = True,
        fourier_features: NonNegativeInt = 0,
        fourier_std: PositiveFloat = 0.2,
        equivariant: bool = False,
        field_scale: NonNegativeFloat = 0.0,
        in_channels: PositiveInt = 1,
    ) -> None:
        super().__init__(spec, out_features)
        self.equivariant, self.scales = equivariant, scales_of(spec, equivariant * field_scale)
        self.standardize = Standardize(spec) if standardize else None
        options = BasisOptions(
            theta, rank, diagonal_writes, neighbours_only, drop_redundant, aggregation, bias, budget_gib
        )
        self.layout = layout_with(spec, ends, cells)
        encoded = encoded_labels(spec, ends, cells)
        positions = sinusoidal_positions(spec, encoded, bands, max_frequency) if encoded else torch.zeros(spec.numel, 0)
        self.register_buffer("positions", positions, persistent=False)
        self.waves = FourierFeatures(in_channels, fourier_features, fourier_std) if fourier_features else nn.Identity()
        widths = ((2 * fourier_features or in_channels) + positions.shape[1], *(channels,) * layers)
        try:
            self.stack = UNFStack(self.layout, widths, options, residual, norm, init)
            self.last = UNFLinear(self.layout, channels, out_features, options, 1.0, init) if equivariant else None
        except (BasisTooLargeError, SpecError) as error:
            raise UnsupportedSpecError(str(error)) from error
        self.pool: InvariantPool | None = None
        self.head: nn.Module | None = None
        if not equivariant:
            self.pool = InvariantPool(self.layout, pool == "complete", aggregation)
            self.head = mlp((self.pool.outputs * channels, *head, out_features), dropout)

    def forward(self, batch: WeightBatch) -> Tensor:
        values = self.waves(self.standardized(batch))
        features = self.stack(self.layout.pack(with_positions(values, self.get_buffer("positions"))))
        if self.last is not None:
            return self.scales(self.layout.unpack(self.last(features), self.out_features))
        assert self.pool is not None and self.head is not None
        return self.head(self.pool(features))


def layout_with(spec: WeightSpec, ends: Axes, cells: Axes) -> Layout:
    """The layout in which also inputs and outputs, or fixed cells, count as permuted where asked."""
    falsely = ("input", "output") * (ends != "fixed") + ("fixed",) * (cells != "fixed")
    true = {label.name for label in spec.labels_with("permutation")}
    return Layout(spec, true | {label.name for label in spec.labels if label.kind in falsely})


def encoded_labels(spec: WeightSpec, ends: Axes, cells: Axes) -> list[str]:
    """Labels that are permuted in the layout but not in truth, and must be told apart."""
    kinds = ("input", "output") * (ends == "encoded") + ("fixed",) * (cells == "encoded")
    return [label.name for label in spec.labels if label.kind in kinds and "permutation" not in label.symmetries]


def with_positions(values: Tensor, positions: Tensor) -> Tensor:
    """Values ``[B, P, C]`` and positions ``[P, E]`` → ``[B, P, C + E]``."""
    if positions.shape[1] == 0:
        return values
    return torch.cat([values, positions.to(values.dtype).expand(values.shape[0], -1, -1)], dim=-1)
