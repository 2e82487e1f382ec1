"""Augmentation of whole batches, after loading: every random number is a function of (seed, epoch, row id, view).

So a row gets the same augmentation whatever rows are in its batch, and however many ranks and workers there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.config import ConfigError
from wsl.data.coordinates import check_coordinates, move_coordinates, plane_map
from wsl.data.counter import RowRandom
from wsl.data.mixup import Mixup
from wsl.data.perturb import add_noise, drop_weights
from wsl.data.rows import Batch
from wsl.mixed_symmetry import act_mixed, draw_mixed
from wsl.ranges import NonNegativeFloat, PositiveFloat, PositiveInt, Rate
from wsl.spec import SYMMETRIES, WeightSpec

Symmetry = Literal["permutation", "scaling", "sign", "phase"]
Split = Literal["train", "val", "test"]
TWIN_EPOCH = 2**40  # of the elements that move twins: no epoch of training has it


class Augment:
    """What is done to batches of networks, in the order of the arguments; by default nothing.

    Args:
        views: how often each training row is in its batch, each time augmented for itself.
        mixup: α of :class:`~wsl.data.mixup.Mixup`; 0: off.
        rotation: INRs: turn the image by up to so many degrees either way.
        translation: INRs: shift it along x and y by up to so much either way; the image is 2 wide.
        zoom: INRs: multiply coordinates by 1 ± up to so much.
        noise: normal noise on every weight, of this share of the standard deviation of its tensor.
        dropout: the probability that a weight is 0; the others grow by 1/(1 − dropout).
        symmetries: move each network by a random element of these symmetries, which leaves its function as it is.
        scale: interval of the factors of positive scaling.
        scale_law: whether they are uniform in it, or their logarithms are.
        twins: splits whose rows come twice: as they are, and moved by one element of ``twin_symmetries`` for the whole
            run. Twins of val and test rows have the row ids that follow the zoo's last one; their metrics are those of
            both together.
        twin_symmetries: of the twins; ``scale`` and ``scale_law`` are theirs too.

    Raises:
        ConfigError: if ``scale`` is no interval, or twins are asked for without symmetries.
    """

    def __init__(
        self,
        *,
        views: PositiveInt = 1,
        mixup: NonNegativeFloat = 0.0,
        rotation: NonNegativeFloat = 0.0,
        translation: NonNegativeFloat = 0.0,
        zoom: Rate = 0.0,
        noise: NonNegativeFloat = 0.0,
        dropout: Rate = 0.0,
        symmetries: tuple[Symmetry, ...] = (),
        scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 10.0),
        scale_law: Literal["uniform", "log_uniform"] = "uniform",
        twins: tuple[Split, ...] = (),
        twin_symmetries: tuple[Symmetry, ...] = (),
    ) -> None:
        if scale[0] > scale[1]:
            raise ConfigError(f"data.augment.scale={list(scale)}: the first factor should not exceed the second")
        if twins and not twin_symmetries:
            raise ConfigError("data.augment.twins needs data.augment.twin_symmetries: what twins are moved by")
        self.views, self.mixup = views, mixup
        self.rotation, self.translation, self.zoom = rotation, translation, zoom
        self.noise, self.dropout = noise, dropout
        self.symmetries, self.scale, self.log_scale = symmetries, scale, scale_law == "log_uniform"
        self.twins, self.twin_symmetries = twins, twin_symmetries
        self.moves_images = bool(rotation or translation or zoom)
        self.trains = bool(mixup or self.moves_images or noise or dropout or symmetries or views > 1)

    def check(self, specs: Iterable[WeightSpec]) -> None:
        """Refuse networks that cannot be augmented so.

        Raises:
            NoCoordinatesError: if images are to be moved and a network is no INR of one.
            ConfigError: if networks are to be moved by symmetries that not one of them has.
        """
        specs = tuple(specs)
        if self.moves_images:
            check_coordinates(specs)
        held = {s for spec in specs for label in spec.labels if label.kind == "hidden" for s in label.symmetries}
        _refuse_none_of("symmetries", self.symmetries, held, "symmetries")
        if self.twins:
            _refuse_none_of("twin_symmetries", self.twin_symmetries, held, "twins")

    def train(self, batch: Batch, seed: int, epoch: int, mixup: Mixup | None = None) -> Batch:
        """A training batch, augmented: B rows become B · views, one view after the other.

        Args:
            mixup: where partners come from, if ``mixup`` is on.
        """
        if not self.trains:
            return batch
        views = [self._view(_flat(batch), seed, epoch, view, mixup) for view in range(self.views)]
        return _like(batch, joined(views))

    def twinned(self, batch: Batch, seed: int, rows: int) -> Batch:
        """The batch, and after it every network moved once and for all; twins have row id + ``rows``."""
        flat = _flat(batch)
        assert flat.row_ids is not None, "a zoo's batches carry ids"
        random = RowRandom.of(flat.row_ids, seed, TWIN_EPOCH)
        twin = self._moved(flat, random, self.twin_symmetries)
        twin = MixedWeightBatch(twin.specs, twin.spec_ids, twin.values, twin.offsets, twin.target, flat.row_ids + rows)
        return _like(batch, joined([flat, twin]))

    def _view(self, batch: MixedWeightBatch, seed: int, epoch: int, view: int, mixup: Mixup | None) -> MixedWeightBatch:
        assert batch.row_ids is not None, "a zoo's batches carry ids"
        random = RowRandom.of(batch.row_ids, seed, epoch, view)
        if mixup is not None:
            batch = mixup(batch, random, epoch, view)
        if self.moves_images:
            batch = move_coordinates(batch, *self._plane(random))
        if self.noise:
            batch = add_noise(batch, random, self.noise)
        if self.dropout:
            batch = drop_weights(batch, random, self.dropout)
        return self._moved(batch, random, self.symmetries) if self.symmetries else batch

    def _plane(self, random: RowRandom) -> tuple[Tensor, Tensor]:
        """A and t of every row's map of the plane."""

        def within(purpose: str, bound: float) -> Tensor:
            return bound * (2 * random.uniform(purpose) - 1)

        shift = torch.stack([within("shift x", self.translation), within("shift y", self.translation)], dim=1)
        return plane_map(within("angle", self.rotation), 1 + within("zoom", self.zoom)), shift

    def _moved(self, batch: MixedWeightBatch, random: RowRandom, symmetries: tuple[Symmetry, ...]) -> MixedWeightBatch:
        element = draw_mixed(
            batch, symmetries=symmetries, scale=self.scale, uniform=random.uniform, log_scale=self.log_scale
        )
        return act_mixed(element, batch)


def _refuse_none_of(key: str, asked: tuple[Symmetry, ...], held: set[str], off: str) -> None:
    """Some of the list may be no network's: the presets are for networks of any activation."""
    if asked and not held & set(asked):
        known = [symmetry for symmetry in SYMMETRIES if symmetry in held]
        raise ConfigError(
            f"data.augment.{key}=[{','.join(asked)}] moves nothing: the hidden neurons of the data's networks have "
            + (f"{', '.join(known)}; name one of these" if known else f"no symmetries; set data.augment.{off}=[]")
        )


def joined(batches: list[MixedWeightBatch]) -> MixedWeightBatch:
    """Batches of the same networks, one after the other."""
    if len(batches) == 1:
        return batches[0]
    sizes = torch.cat([batch.offsets.diff() for batch in batches])

    def together(parts: list[Tensor | None]) -> Tensor | None:
        known = [part for part in parts if part is not None]
        return torch.cat(known) if len(known) == len(parts) else None

    return MixedWeightBatch(
        batches[0].specs,
        torch.cat([batch.spec_ids for batch in batches]),
        torch.cat([batch.values for batch in batches]),
        torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]),
        together([batch.target for batch in batches]),
        together([batch.row_ids for batch in batches]),
    )


def _flat(batch: Batch) -> MixedWeightBatch:
    return batch.flat() if isinstance(batch, WeightBatch) else batch


def _like(batch: Batch, flat: MixedWeightBatch) -> Batch:
    """The flat batch in the layout of ``batch``."""
    if isinstance(batch, MixedWeightBatch):
        return flat
    return WeightBatch(batch.spec, flat.stacked(), flat.target, flat.row_ids)
