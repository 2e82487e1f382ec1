"""Where the pixels of an image lie for an implicit neural representation: fitting and rendering share this grid."""

from __future__ import annotations

import numpy as np


def grid(height: int, width: int) -> np.ndarray:
    """Pixel coordinates (x, y), row by row: x runs along the columns, y along the rows, each evenly from −1 to 1.

    Returns:
        float32 ``[height·width, 2]``; row ``r·width + c`` is the pixel in row r and column c.

    Raises:
        ValueError: if a side is shorter than one pixel.
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image of height {height} and width {width} has no pixels; both must be at least 1")
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
