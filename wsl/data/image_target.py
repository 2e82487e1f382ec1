"""Images as targets: what an edited implicit neural representation should show."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy.ndimage import grey_dilation

from wsl.data.augment import Augment
from wsl.data.rows import Batch
from wsl.spec import WeightSpec
from wsl.zoo import Zoo, ZooError


def dilated(pixels: np.ndarray) -> np.ndarray:
    """The brightest of every pixel and its eight neighbours: grey dilation by 3×3 ones, once; ``[n, h, w, c]``."""
    return grey_dilation(pixels, size=(1, 3, 3, 1))


#: values of ``data.target`` → what is done to the stored images
IMAGE_TARGETS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"image": lambda p: p, "dilated_image": dilated}
SIZE = {"height", "width", "channels"}


class ImageTarget:
    """The images that a zoo's INRs were fitted to, changed or as they are, in the units of the INRs' outputs.

    They stay 8-bit until a batch of them is used: 0 becomes the recipe's black, 255 its white (0 and 1, or what
    ``render.range`` says), so that a rendered network and its target are compared as they are.

    Args:
        zoo: with images, the column ``image_index``, and their size in the recipe.
        name: of :data:`IMAGE_TARGETS`.
        specs: of the rows that are used.

    Attributes:
        of_rows: uint8 ``[rows, height, width, channels]``.
        black, white: outputs of a network that are drawn black and white.

    Raises:
        ZooError: if the zoo lacks one of these, they do not agree, or the networks are of several architectures.
    """

    def __init__(self, zoo: Zoo, name: str, specs: Sequence[WeightSpec]) -> None:
        where, images, size = f"{zoo.path}: data.target={name}", zoo.images, zoo.recipe.get("render", {})
        if len(specs) != 1:
            raise ZooError(
                f"{where}: the rows have {len(specs)} architectures, but networks are drawn in one batch, which must "
                "be of one; choose it with data.where"
            )
        if images is None or SIZE - set(size) or "image_index" not in zoo.columns:
            raise ZooError(f"{where} is for INRs of images, and this file has no images; choose one of data=…_inr")
        shape = tuple(int(size[key]) for key in ("height", "width", "channels"))
        ends = [[label.size for label in specs[0].labels if label.kind == kind] for kind in ("input", "output")]
        if ends != [[2], [shape[2]]]:
            raise ZooError(
                f"{where} is for networks from 2 coordinates to {shape[2]} channels; these have inputs {ends[0]} and "
                f"outputs {ends[1]}"
            )
        index = zoo.column("image_index")
        if images.shape[1] != np.prod(shape) or index.min() < 0 or index.max() >= len(images):
            raise ZooError(
                f"{where}: {images.shape[0]} images of {images.shape[1]} values, but the recipe says {list(shape)} and "
                f"image_index goes from {index.min()} to {index.max()}; build the file again"
            )
        self.name = name
        self.of_rows = IMAGE_TARGETS[name](images.reshape(-1, *shape))[index]
        self.black, self.white = (float(value) for value in size.get("range", (0, 1)))

    def check(self, augment: Augment) -> None:
        """Refuse augmentation that changes what the networks show, but not their targets.

        Raises:
            ZooError: if images are to be moved, or networks mixed.
        """
        if augment.moves_images or augment.mixup:
            raise ZooError(
                f"data.target={self.name}: rotation, translation, zoom and mixup change what a network shows, and its "
                "target would stay as it is; set them to 0 in data.augment"
            )

    def scaled(self, batch: Batch) -> Batch:
        """The batch with its target as float ``[B, height, width, channels]`` in the units of the outputs."""
        assert batch.target is not None, "a zoo's batches carry their targets"
        share = batch.target.to(batch.values) / 255
        return dataclasses.replace(batch, target=self.black + (self.white - self.black) * share)
