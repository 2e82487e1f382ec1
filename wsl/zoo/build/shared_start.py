"""A start that all INRs of a zoo share, learned so that a few steps from it fit any of the images (Reptile).

Reptile (Nichol, Achiam and Schulman, "On First-Order Meta-Learning Algorithms", 2018) fits networks to some of the
images from the present start and moves the start towards the mean of what they have become:

    θ ← θ + r_t (mean over images of fit(θ, image) − θ),   r_t falling linearly from ``rate`` to 0

INRs that leave from one start stay near it, so that their neurons need no matching.
"""

from __future__ import annotations

import numpy as np

from wsl.zoo.build.inr_recipe import INRRecipe, Plan, SharedStart
from wsl.zoo.build.siren_fit import Kernel, Schedule, Siren, fit, initial_values
from wsl.zoo.coordinates import grid

SHARED = 2  # in place of an image's source: the stream of a view's shared start


def shared_starts(recipe: INRRecipe, siren: Siren, rows: Plan, kernel: Kernel) -> np.ndarray | None:
    """The start of each view, float32 ``[views, P]``, a function of recipe and training images; None: not shared."""
    if recipe.shared_start is None:
        return None
    images = np.unique(rows.image[rows.splits["train"]])
    return np.stack(
        [_learned(recipe, recipe.shared_start, siren, rows, images, view, kernel) for view in range(recipe.views)]
    )


def _learned(
    recipe: INRRecipe, how: SharedStart, siren: Siren, rows: Plan, images: np.ndarray, view: int, kernel: Kernel
) -> np.ndarray:
    random = np.random.default_rng([recipe.seed, SHARED, view])
    (start,) = initial_values(siren, [(recipe.seed, SHARED, 0, view)], recipe.convention)
    coordinates = grid(*rows.pixels.shape[1:3])
    for step in range(how.rounds):
        chosen = random.choice(images, min(how.images, len(images)), replace=False)
        targets = recipe.targets(rows.pixels[chosen])
        before = np.repeat(start[None], len(chosen), 0)
        after = fit(siren, before, coordinates, targets, Schedule(recipe.learning_rate, how.steps), kernel).values
        rate = how.rate * (1 - step / how.rounds)
        start = (start + rate * (after.mean(0, dtype=np.float64) - start)).astype(np.float32)
    return start
