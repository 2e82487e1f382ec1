"""The kinds of zoos that can be built, and the one way to build any of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from pydantic import ValidationError

from wsl.batch import WeightBatch
from wsl.config import Strict, one_of
from wsl.zoo.build import classifier, rnn, wild
from wsl.zoo.build.classifier import classifier_job
from wsl.zoo.build.classifier_recipe import CNNRecipe, MLPRecipe
from wsl.zoo.build.inr import INRRecipe, inr_job
from wsl.zoo.build.job import Job, carry_out
from wsl.zoo.build.rnn import RNNRecipe, rnn_job
from wsl.zoo.build.wild import WildParkRecipe, wild_park_job
from wsl.zoo.build.work_folder import WorkFolder, differences
from wsl.zoo.layout import ZooError
from wsl.zoo.reader import Zoo


class Kind(NamedTuple):
    """A recipe's schema, whose field ``kind`` is the name in the table, and what makes a job of one.

    ``measure``: recipe, networks of one spec and their run ids ``[B]`` → columns measured again from the weights, name
    → ``[B]``; raises :class:`ZooError` where that cannot be done here. None: nothing but what every zoo is checked for.
    """

    recipe: type[Strict]
    job: Callable[[Any], Job]
    measure: Callable[[Any, WeightBatch, np.ndarray], dict[str, np.ndarray]] | None = None


KINDS: dict[str, Kind] = {
    "inr": Kind(INRRecipe, inr_job),
    "cnn": Kind(CNNRecipe, classifier_job, classifier.measured_again),
    "mlp": Kind(MLPRecipe, classifier_job, classifier.measured_again),
    "wild_park": Kind(WildParkRecipe, wild_park_job, wild.measured_again),
    "rnn": Kind(RNNRecipe, rnn_job, rnn.measured_again),
}

if TYPE_CHECKING:  # the union is made at run time from the table
    AnyRecipe: TypeAlias = Any
else:
    AnyRecipe = one_of([kind.recipe for kind in KINDS.values()], "kind")


def build_zoo(recipe: AnyRecipe, out: Path, progress: bool = True, threads: int | None = None) -> Path:
    """Build the zoo file ``out``, or go on building it; return its path.

    Finished blocks lie in ``OUT.partial/`` until the file is written. The file depends on the recipe alone, byte for
    byte: neither on the number of threads nor on how often building was interrupted. A file that is there and has this
    recipe is left as it is.

    Args:
        progress: show a progress bar (plain lines when not on a terminal).
        threads: blocks fitted at the same time; None: one for each core that this process may use.

    Raises:
        ZooError: if images cannot be read, the target or its work folder belongs to another recipe, another process
            builds the same file, networks diverge, or the disk is full.
    """
    out = Path(out)
    if out.exists():
        _check_same(recipe, out)
        return out
    job = KINDS[recipe.kind].job(recipe)
    with WorkFolder(out, job.description) as folder:
        if out.exists():  # another builder finished while this one read the images
            _check_same(recipe, out)
        else:
            carry_out(job, folder, out, threads, progress)
        folder.remove()
    return out


def _check_same(recipe: AnyRecipe, out: Path) -> None:
    with Zoo(out) as zoo:
        found = zoo.recipe.get("config", {})
    with contextlib.suppress(ValidationError):  # an option younger than the file had its default when it was made
        found = type(recipe).model_validate(found).model_dump(mode="json")
    if different := differences(recipe.model_dump(mode="json"), found):
        raise ZooError(
            f"{out}: exists and has another recipe: {'; '.join(different)}. Choose another out=FILE, or delete it"
        )
