"""Addition in characters: "15+20=" is read, "35" and an end sign are written. What the networks of an RNN zoo learn.

Source: Zhou, Finn and Harrison, "Universal Neural Functionals", section 4.1 (after Sutskever et al.'s and Flax's
sequence-to-sequence examples).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CHARACTERS = "0123456789+= ."  # a blank fills up questions in front; the point ends answers
VOCABULARY = len(CHARACTERS)
EQUALS, BLANK, END = (CHARACTERS.index(c) for c in "= .")


@dataclass(frozen=True)
class Sums:
    """Questions and answers as character numbers, int64.

    Attributes:
        questions: ``[N, Q]``, filled up with blanks in front; the last character is ``=``.
        answers: ``[N, A]``, each ends with the end sign; what follows it is the end sign again, and not judged.
    """

    questions: Tensor
    answers: Tensor

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: Tensor) -> Sums:
        return Sums(self.questions[index], self.answers[index])

    def to(self, device: torch.device) -> Sums:
        return Sums(self.questions.to(device), self.answers.to(device))

    @property
    def shown(self) -> Tensor:
        """What the decoder reads when told the right answer: ``=``, then all characters but the last, ``[N, A]``."""
        return torch.cat([torch.full_like(self.answers[:, :1], EQUALS), self.answers[:, :-1]], 1)

    @property
    def judged(self) -> Tensor:
        """Where answers have characters, the end sign included: bool ``[N, A]``."""
        ended = (self.answers == END).cumsum(1)
        return (ended == 0) | ((ended == 1) & (self.answers == END))


def sums(first: np.ndarray, second: np.ndarray, digits: int) -> Sums:
    """The sums of non-negative integers of at most ``digits`` digits."""
    questions = [f"{a}+{b}=".rjust(2 * digits + 2) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    answers = [f"{a + b}.".ljust(digits + 2, ".") for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    return Sums(_encoded(questions), _encoded(answers))


def all_sums(digits: int, test_share: float, seed: int) -> tuple[Sums, Sums]:
    """All pairs of operands of at most ``digits`` digits, a random share of them held out: training, test."""
    pairs = np.random.default_rng([seed, digits]).permutation(10 ** (2 * digits))
    operands = divmod(pairs, 10**digits)
    test = round(test_share * len(pairs))
    held_out, rest = ([part[rows] for part in operands] for rows in (slice(test), slice(test, None)))
    return sums(rest[0], rest[1], digits), sums(held_out[0], held_out[1], digits)


def one_hot(characters: Tensor, dtype: torch.dtype) -> Tensor:
    """``[…]`` → ``[…, VOCABULARY]``."""
    return F.one_hot(characters, VOCABULARY).to(dtype)


def success(logits: Tensor, asked: Sums) -> Tensor:
    """Whether whole answers are right, end sign included: bool ``[…, N]`` from ``[…, N, A, VOCABULARY]``.

    The logits are those after the right characters. That is no easier than writing the answer alone, always taking the
    likeliest character: up to the first wrong character both read the same.
    """
    return ((logits.argmax(-1) == asked.answers) | ~asked.judged).all(-1)


def text(characters: Tensor) -> list[str]:
    """``[N, T]`` as strings."""
    return ["".join(CHARACTERS[c] for c in row) for row in characters.tolist()]


def _encoded(lines: list[str]) -> Tensor:
    number = {ord(character): i for i, character in enumerate(CHARACTERS)}
    return torch.tensor([[number[ord(c)] for c in line] for line in lines])
