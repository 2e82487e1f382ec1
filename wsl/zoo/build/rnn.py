"""Zoos of GRU sequence-to-sequence networks that add numbers, labelled with the share of sums they get right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import wsl
from wsl.batch import WeightBatch
from wsl.execute import execute
from wsl.zoo.build.adamw import AdamW
from wsl.zoo.build.addition import CHARACTERS, VOCABULARY, Sums, all_sums, one_hot, success
from wsl.zoo.build.draws import batch_of
from wsl.zoo.build.image_task import split_of_runs
from wsl.zoo.build.job import Arrays, Job, Shown
from wsl.zoo.build.rnn_recipe import DrawnRNN, RNNRecipe, draw_rnn
from wsl.zoo.build.seq2seq import initial_rows, logits, seq2seq_spec

__all__ = ["RNNRecipe", "rnn_job"]

CONVENTION = (
    f"characters {CHARACTERS!r}; a question such as '15+20=' is filled up with blanks in front, its answer ends with "
    "'.'; both are one-hot; the decoder starts from the encoder's last state and reads '=' and the right characters; "
    "success_rate is the share of held-out sums whose whole answer, end sign included, is right when the likeliest "
    "character is taken at each step"
)
MEASURED = ("success_rate", "train_success_rate", "test_loss", "character_accuracy")
MEASURED_AT_ONCE = 500


def rnn_job(recipe: RNNRecipe) -> Job:
    """The networks of a recipe, row by row: run after run, each with its checkpoints.

    Raises:
        ZooError: if the splits leave nothing to train on.
    """
    networks = [draw_rnn(recipe, number) for number in range(recipe.runs)]
    steps = recipe.checkpoints
    run = np.repeat(np.arange(len(networks)), len(steps))
    splits = split_of_runs(len(networks), recipe.val_share, recipe.test_share, recipe.seed)
    train_sums, test_sums = all_sums(recipe.digits, recipe.held_out, recipe.seed)
    per_block = recipe.block * len(steps)
    return Job(
        description={
            "config": recipe.model_dump(mode="json"),
            "convention": CONVENTION,
            "torch": torch.__version__,
            "wsl": wsl.__version__,
        },
        specs=[seq2seq_spec(VOCABULARY, recipe.hidden)],
        spec_ids=np.zeros(len(run), dtype=np.int64),
        blocks=[range(start, min(start + per_block, len(run))) for start in range(0, len(run), per_block)],
        fit=lambda rows: _fit(recipe, networks[run[rows.start] : run[rows.stop - 1] + 1], train_sums, test_sums),
        measured=MEASURED,
        columns={
            "step": np.tile(steps, len(networks)),
            "learning_rate": np.array([network.learning_rate for network in networks])[run],
            "batch_size": np.array([network.batch_size for network in networks])[run],
        },
        run_ids=run,
        splits={name: np.flatnonzero(np.isin(run, members)) for name, members in splits.items()},
        shown=Shown("success_rate", "mean success rate {:.2f}"),
    )


def _fit(recipe: RNNRecipe, networks: Sequence[DrawnRNN], train_sums: Sums, test_sums: Sums) -> Arrays:
    """A block: networks with batches of one size are trained together."""
    found: dict[int, Arrays] = {}
    for size in sorted({network.batch_size for network in networks}):
        chosen = [number for number, network in enumerate(networks) if network.batch_size == size]
        arrays = train(recipe, [networks[number] for number in chosen], train_sums, test_sums)
        found |= {number: {name: a[i] for name, a in arrays.items()} for i, number in enumerate(chosen)}
    return {name: np.concatenate([found[n][name] for n in range(len(networks))]) for name in ("values", *MEASURED)}


def train(recipe: RNNRecipe, networks: Sequence[DrawnRNN], train_sums: Sums, test_sums: Sums) -> Arrays:
    """Train networks of one batch size together, on a GPU if there is one.

    All see the same batches, drawn with replacement.

    Returns:
        ``values`` ``[B, checkpoints, P]`` and each column of ``MEASURED`` ``[B, checkpoints]``.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_sums, test_sums = train_sums.to(device), test_sums.to(device)
    generators = [torch.Generator().manual_seed(network.init_seed) for network in networks]
    rows = initial_rows(generators, VOCABULARY, recipe.hidden).to(device)
    rates = torch.tensor([[network.learning_rate] for network in networks], device=device)
    optimizer = AdamW(rows, rates, torch.zeros_like(rates))
    found: list[tuple[np.ndarray, ...]] = []
    for step in range(recipe.checkpoints[-1] + 1):
        if step in recipe.checkpoints:
            right, loss, characters = measure(rows, test_sums, recipe.hidden)
            seen, _, _ = measure(rows, train_sums, recipe.hidden)
            found.append((rows.detach().cpu().numpy().copy(), right, seen, loss, characters))
        if step < recipe.checkpoints[-1]:
            chosen = batch_of(recipe.seed, step, networks[0].batch_size, len(train_sums)).to(device)
            losses(rows, train_sums[chosen], recipe.hidden).sum().backward()
            optimizer.step()
    return {
        name: np.stack(parts, 1) for name, parts in zip(("values", *MEASURED), zip(*found, strict=True), strict=True)
    }


def losses(rows: Tensor, asked: Sums, hidden: int) -> Tensor:
    """Mean cross-entropy of the judged characters for each network, ``[B]``."""
    written = logits(rows, one_hot(asked.questions, rows.dtype), one_hot(asked.shown, rows.dtype), hidden)
    return _cross_entropy(written, asked).sum((1, 2)) / asked.judged.sum()


@torch.no_grad()
def measure(rows: Tensor, asked: Sums, hidden: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of sums that are right, mean cross-entropy and share of right characters: each float64 ``[B]``."""
    right, loss, characters = (torch.zeros(len(rows), dtype=torch.float64, device=rows.device) for _ in range(3))
    for index in torch.arange(len(asked), device=rows.device).split(MEASURED_AT_ONCE):
        part = asked[index]
        written = logits(rows, one_hot(part.questions, rows.dtype), one_hot(part.shown, rows.dtype), hidden)
        right += success(written, part).sum(1)
        loss += _cross_entropy(written, part).sum((1, 2))
        characters += ((written.argmax(-1) == part.answers) & part.judged).sum((1, 2))
    judged = asked.judged.sum()
    return tuple((t / n).cpu().numpy() for t, n in ((right, len(asked)), (loss, judged), (characters, judged)))  # type: ignore[return-value]


@torch.no_grad()
def measured_again(recipe: RNNRecipe, batch: WeightBatch, run_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Success rate of networks on the held-out sums, from their spec and weights."""
    _, asked = all_sums(recipe.digits, recipe.held_out, recipe.seed)
    right = torch.zeros(len(batch), dtype=torch.float64)
    for index in torch.arange(len(asked)).split(MEASURED_AT_ONCE):
        part = asked[index]
        inputs = {"question": part.questions, "shown": part.shown}
        written = execute(batch, {name: one_hot(x, batch.values.dtype) for name, x in inputs.items()})
        right += success(written, part).sum(1)
    return {"success_rate": (right / len(asked)).numpy()}


def _cross_entropy(written: Tensor, asked: Sums) -> Tensor:
    """``[B, N, A]``, 0 where nothing is judged."""
    answers = asked.answers.expand(len(written), -1, -1)
    each = F.cross_entropy(written.flatten(0, 2), answers.flatten(), reduction="none").unflatten(0, answers.shape)
    return each * asked.judged
