"""NFN: permutation-equivariant neural functionals for plain chains of weights and biases (MLPs and CNNs)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from wsl.batch import WeightBatch
from wsl.encoders.base import Encoder, UnsupportedSpecError
from wsl.encoders.statnn import STATISTICS, statistics
from wsl.encoders.unf import encoded_labels, layout_with, with_positions
from wsl.nn.chain import NotAChainError, chain
from wsl.nn.field_scale import field_scale as scales_of
from wsl.nn.fourier import FourierFeatures
from wsl.nn.mlp import mlp
from wsl.nn.standardize import Standardize
from wsl.nn.unf.basis import BasisOptions, BasisTooLargeError
from wsl.nn.unf.linear import UNFLinear
from wsl.nn.unf.pooling import InvariantPool
from wsl.nn.unf.positions import sinusoidal_positions
from wsl.nn.unf.stack import UNFStack
from wsl.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Rate
from wsl.spec import WeightSpec


class _NFN(Encoder):
    """What NP and HNP share; see :class:`NFNNP`."""

    symmetries: ClassVar[frozenset[str]] = frozenset({"permutation"})
    ends: ClassVar[Literal["fixed", "encoded"]]

    def __init__(
        self,
        spec: WeightSpec,
        out_features: int,
        *,
        channels: tuple[PositiveInt, ...] = (16, 16, 5),
        head: tuple[PositiveInt, ...] = (1000, 1000),
        dropout: Rate = 0.0,
        fourier_features: NonNegativeInt = 0,
        fourier_std: PositiveFloat = 3.0,
        io_bands: NonNegativeInt = 0,
        io_max_frequency: PositiveFloat = 10.0,
        io_embed: bool = False,
        normalize: Literal["none", "tensor", "entry"] = "tensor",
        statistics: bool = False,
        init: Literal["balanced", "flat"] = "balanced",
        budget_gib: PositiveFloat = 4.0,
        equivariant: bool = False,
        field_scale: NonNegativeFloat = 0.0,
        in_channels: PositiveInt = 1,
    ) -> None:
        super().__init__(spec, out_features)
        try:
            chain(spec)
        except NotAChainError as error:
            raise UnsupportedSpecError(f"an NFN reads plain chains of weights and biases: {error}; use unf") from error
        self.equivariant, self.with_statistics = equivariant, statistics
        self.scales = scales_of(spec, equivariant * field_scale)
        self.normalize = _normalization(spec, normalize)
        if normalize == "entry":
            self.symmetries = frozenset()  # type: ignore[misc]  # statistics of single entries break them all
        self.waves = FourierFeatures(in_channels, fourier_features, fourier_std) if fourier_features else nn.Identity()
        ends = encoded_labels(spec, "encoded", "fixed")
        positions = sinusoidal_positions(spec, ends, io_bands, io_max_frequency) if io_bands else None
        positions = torch.zeros(spec.numel, 0) if positions is None else positions
        self.register_buffer("positions", positions, persistent=False)
        self.layout = layout_with(spec, self.ends, "fixed")
        first = (2 * fourier_features or in_channels) + self.get_buffer("positions").shape[1]
        options = BasisOptions(budget_gib=budget_gib)
        try:
            embed = tuple(ends) if io_embed else ()
            self.stack = UNFStack(self.layout, (first, *channels), options, init=init, embed=embed)
            self.last = UNFLinear(self.layout, channels[-1], out_features, options, init=init) if equivariant else None
        except BasisTooLargeError as error:
            raise UnsupportedSpecError(str(error)) from error
        self.pool = InvariantPool(layout_with(spec, "fixed", "fixed"), complete=False)
        self.head: nn.Module | None = None
        if not equivariant:
            width = self.pool.outputs * channels[-1] + statistics * STATISTICS * len(spec.tensors)
            self.head = mlp((width, *head, out_features), dropout)
        self.channels = channels[-1]

    def fit_statistics(self, batch: WeightBatch) -> None:
        """Set means and deviations of each parameter tensor, or of each entry, from training data."""
        if isinstance(self.normalize, Standardize | StandardizeEntries):
            self.normalize.fit(batch)

    def forward(self, batch: WeightBatch) -> Tensor:
        self.check_spec(batch)
        values = self.normalize(batch.values)
        lifted = with_positions(self.waves(values), self.get_buffer("positions"))
        features = self.stack(self.layout.pack(lifted))
        if self.last is not None:
            return self.scales(self.layout.unpack(self.last(features), self.out_features))
        assert self.head is not None
        if self.pool.layout.permuted != self.layout.permuted:
            features = self.pool.layout.pack(self.layout.unpack(features, self.channels))
        pooled = self.pool(features)
        if self.with_statistics:
            pooled = torch.cat([pooled, statistics(batch.with_values(values))], dim=1)
        return self.head(pooled)


class StandardizeEntries(nn.Module):
    """(value − mean) / std with statistics of every entry of the row; passes values unchanged until :meth:`fit`."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: WeightSpec) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(spec.numel, 1))
        self.register_buffer("std", torch.ones(spec.numel, 1))

    def fit(self, batch: WeightBatch) -> None:
        """Take statistics from a batch; an entry that does not vary keeps its scale."""
        self.mean.copy_(batch.values.mean(dim=(0, 2)).unsqueeze(1))
        std = batch.values.std(dim=0, correction=0).mean(dim=1, keepdim=True)
        self.std.copy_(torch.where(std > 0, std, torch.ones_like(std)))

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.std


def _normalization(spec: WeightSpec, kind: str) -> nn.Module:
    return Standardize(spec) if kind == "tensor" else StandardizeEntries(spec) if kind == "entry" else nn.Identity()


class NFNNP(_NFN):
    """NFN with all neurons permutable ("NP"), so few coefficients; encodings may tell inputs and outputs apart.

    Zhou et al., "Permutation Equivariant Neural Functionals", NeurIPS 2023, section 3. An entry (j, k) of weight i
    becomes a linear map of the entry itself, of row and column means of weights i−1, i, i+1, of biases i−1, i, and of
    the means of all tensors: the UNF layer of a chain in which inputs and outputs are permuted like hidden neurons.
    Features are pooled over hidden neurons only, as published.

    Args:
        spec: what the networks share: an MLP or a plain CNN; kernel cells keep coefficients of their own.
        out_features: number of features returned.
        channels: features of each layer; the defaults are those for the Small CNN Zoo.
        head: widths of the hidden layers of the MLP; unused when equivariant.
        dropout: in the MLP.
        fourier_features: waves per value; 0 feeds the value itself. The INR models have 128.
        fourier_std: standard deviation of the waves' frequencies.
        io_bands: waves of sinusoidal positions of input and output neurons among the input features; 0 for none.
        io_max_frequency: the highest frequency of these.
        io_embed: add learned embeddings of input and output neurons before every layer.
        normalize: "tensor": one mean and deviation per tensor; "entry": one per entry, as published, which breaks the
            permutation symmetry; "none".
        statistics: also give the MLP seven statistics of each tensor (mean, variance, five quantiles).
        init: "balanced" keeps the scale of features at any depth; "flat" gives all coefficients of a tensor one
            variance, 2 / fan-in.
        budget_gib: most memory that a layer's coefficients and gradients may take.
        equivariant: return a field over the parameters.
        field_scale: start of the learned scales of the field, one for each tensor; 0: no scales.

    Shapes: batch of ``[B, P, C_0]`` → ``[B, out_features]``, or ``[B, P, out_features]``.

    Raises:
        UnsupportedSpecError: if the spec is not a chain, or a layer exceeds ``budget_gib``.
    """

    ends = "encoded"


class NFNHNP(_NFN):
    """NFN with only hidden neurons permutable ("HNP"): every input and output has coefficients of its own.

    The symmetry is exact, and equals that of DWSNets (Navon et al., 2023); coefficients grow with the square of the
    numbers of inputs and outputs. Arguments, shapes and errors as in :class:`NFNNP`.
    """

    ends = "fixed"
