"""NFT: a transformer whose tokens are rows and columns of the weights of a chain."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from wsl.batch import WeightBatch
from wsl.encoders.base import StandardizingEncoder, UnsupportedSpecError
from wsl.encoders.unf import encoded_labels, layout_with
from wsl.nn.chain import ChainLayer, NotAChainError, chain
from wsl.nn.field_scale import field_scale as scales_of
from wsl.nn.fourier import FourierFeatures
from wsl.nn.mlp import mlp
from wsl.nn.nft_attention import Biases, NFTBlock, Weights
from wsl.nn.standardize import Standardize
from wsl.nn.unf.layout import Layout
from wsl.nn.unf.pooling import InvariantPool
from wsl.nn.unf.positions import AxisEmbedding
from wsl.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Rate
from wsl.spec import VirtualTensor, WeightSpec


class NFT(StandardizingEncoder):
    """Attention between weights and biases of an MLP or plain CNN, equivariant to permutations of neurons.

    Zhou et al., "Neural Functional Transformers", NeurIPS 2023. Attention alone is symmetric to permutations of inputs
    and outputs as well; learned embeddings of tensors, inputs and outputs break that.

    Args:
        spec: what the networks share: an MLP or a plain CNN.
        out_features: number of features returned.
        channels: C, a multiple of ``heads``. The published INR models have 256 and six blocks.
        blocks: number of attention blocks.
        heads: H.
        head: widths of the hidden layers of the MLP that reads the pooled features; unused when equivariant.
        dropout: after attention, and in the MLP.
        fourier_features: waves per value; 0 feeds the value itself.
        fourier_std: standard deviation of the waves' frequencies.
        ends: "encoded": inputs and outputs have learned embeddings; "permuted": none (an invariant encoder still reads
            its pooled features in their order).
        standardize: subtract mean and divide by deviation of each tensor (see :meth:`fit_statistics`).
        equivariant: return a field over the parameters.
        field_scale: start of the learned scales of the field, one for each tensor; 0: no scales.

    Shapes: batch of ``[B, P, C_0]`` → ``[B, out_features]``, or ``[B, P, out_features]``.

    Raises:
        UnsupportedSpecError: if the spec is not a chain.
        ValueError: if ``heads`` does not divide ``channels``.
    """

    symmetries: ClassVar[frozenset[str]] = frozenset({"permutation"})

    def __init__(
        self,
        spec: WeightSpec,
        out_features: int,
        *,
        channels: PositiveInt = 64,
        blocks: PositiveInt = 4,
        heads: PositiveInt = 4,
        head: tuple[PositiveInt, ...] = (512,),
        dropout: Rate = 0.0,
        fourier_features: NonNegativeInt = 128,
        fourier_std: PositiveFloat = 3.0,
        ends: Literal["encoded", "permuted"] = "encoded",
        standardize: bool = True,
        equivariant: bool = False,
        field_scale: NonNegativeFloat = 0.0,
        in_channels: PositiveInt = 1,
    ) -> None:
        super().__init__(spec, out_features)
        try:
            layers = chain(spec)
        except NotAChainError as error:
            raise UnsupportedSpecError(f"NFT reads plain chains of weights and biases: {error}; use unf") from error
        self.equivariant, self.scales = equivariant, scales_of(spec, equivariant * field_scale)
        self.standardize = Standardize(spec) if standardize else None
        lift = FourierFeatures(in_channels, fourier_features, fourier_std) if fourier_features else nn.Identity()
        self.lift = nn.Sequential(lift, nn.Linear(2 * fourier_features or in_channels, channels))
        labels = encoded_labels(spec, "encoded", "fixed") if ends == "encoded" else []
        self.layout = ChainLayout(spec, layers)
        self.embed_ends = AxisEmbedding(self.layout.bundles, labels, channels) if labels else nn.Identity()
        self.embed_tensors = nn.Parameter(torch.randn(2 * len(layers), channels) * 0.5)
        self.blocks = nn.ModuleList(
            NFTBlock(layers, self.layout.cells, channels, heads, dropout) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(channels)
        self.pool: InvariantPool | None = None
        if equivariant:
            self.head: nn.Module = nn.Linear(channels, out_features)
        else:
            self.pool = InvariantPool(layout_with(spec, "fixed", "fixed"), complete=False)
            self.head = mlp((self.pool.outputs * channels, *head, out_features), dropout)

    def forward(self, batch: WeightBatch) -> Tensor:
        values = self.standardized(batch)
        bundles = self.embed_ends(self.layout.bundles.pack(self.lift(values)))
        weights, biases = self.layout.split(bundles, self.norm.normalized_shape[0])
        count = len(weights)
        weights = [w + self.embed_tensors[n] for n, w in enumerate(weights)]
        biases = [None if b is None else b + self.embed_tensors[count + n] for n, b in enumerate(biases)]
        for block in self.blocks:
            weights, biases = block(weights, biases)
        rows = self.norm(self.layout.rows(weights, biases))
        return self.scales(self.head(rows)) if self.pool is None else self.head(self.pool(self.pool.layout.pack(rows)))


class ChainLayout:
    """From bundles to weights with axes (out, in, cells, C) and biases (out, cells, C), and to rows.

    Attributes:
        cells: of every weight, then of every bias (1 where there is none).
    """

    def __init__(self, spec: WeightSpec, layers: tuple[ChainLayer, ...]) -> None:
        neurons = [label.name for label in spec.labels if label.kind != "fixed"]
        self.bundles = Layout(spec, neurons, freeze_single=False)
        self.layers = layers
        self._place = {
            member.tensor.name: (number, member)
            for number, bundle in enumerate(self.bundles.bundles)
            for member in bundle.members
        }
        tensors = [*(layer.weight for layer in layers), *(layer.bias for layer in layers)]
        self.cells = tuple(1 if t is None else self._place[t.name][1].cells for t in tensors)

    def split(self, features: list[Tensor], channels: int) -> tuple[Weights, Biases]:
        """Bundles → weights and biases, first layer first."""
        weights = [self._tensor(layer.weight, features, channels) for layer in self.layers]
        biases = [layer.bias for layer in self.layers]
        return weights, [None if bias is None else self._tensor(bias, features, channels) for bias in biases]

    def _tensor(self, tensor: VirtualTensor, features: list[Tensor], channels: int) -> Tensor:
        number, member = self._place[tensor.name]
        bundle = self.bundles.bundles[number]
        x = features[number].unflatten(-1, (bundle.slots, channels))[..., member.slots, :]
        return x.transpose(1, 2) if self._swapped(tensor) else x

    def _swapped(self, tensor: VirtualTensor) -> bool:
        """Whether a bundle holds this weight as (in, out); its axes come in the order of their labels' names."""
        labels = [a for a in tensor.axes if a in self.bundles.permuted]
        return labels != sorted(labels)

    def rows(self, weights: Weights, biases: Biases) -> Tensor:
        """Weights and biases → rows ``[B, P, C]``."""
        parts: dict[str, Tensor] = {}
        for layer, weight, bias in zip(self.layers, weights, biases, strict=True):
            parts[layer.weight.name] = weight.transpose(1, 2) if self._swapped(layer.weight) else weight
            if layer.bias is not None and bias is not None:
                parts[layer.bias.name] = bias
        features = [
            torch.cat([parts[m.tensor.name] for m in bundle.members], dim=-2).flatten(-2)
            for bundle in self.bundles.bundles
        ]
        return self.bundles.unpack(features, weights[0].shape[-1])
