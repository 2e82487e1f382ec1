"""Mutated zoos and configs (tests/fuzz.py): those of the corpus, and some more with a fixed seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz
import pytest

from wsl import run_folder
from wsl.zoo import Zoo

Answer = Callable[[Any], str]
Draw = Callable[[random.Random], Any]


def of_zoo(folder: Path) -> tuple[Answer, Draw]:
    good, digest = fuzz.write_zoo(folder / "zoo.h5"), Zoo(folder / "zoo.h5").digest

    def answer(edits: list[fuzz.Edit]) -> str:
        (folder / "mutated.h5").write_bytes(fuzz.edited(good, edits))
        return fuzz.zoo_answer(folder / "mutated.h5", digest)

    return answer, fuzz.random_edits


def of_config(folder: Path) -> tuple[Answer, Draw]:
    values = fuzz.config_values()
    return (
        lambda change: fuzz.config_answer(folder, fuzz.changed(values, change)),
        lambda rng: fuzz.random_change(rng, values),
    )


def of_config_text(folder: Path) -> tuple[Answer, Draw]:
    run_folder.write_config(folder, fuzz.config_values())
    good = (folder / "config.yaml").read_bytes()

    def answer(edits: list[fuzz.Edit]) -> str:
        (folder / "config.yaml").write_bytes(fuzz.edited(good, edits))
        return fuzz.text_answer(folder)

    return answer, fuzz.random_edits


KINDS = {"zoo": of_zoo, "config": of_config, "config_text": of_config_text}


@pytest.mark.parametrize("kind", KINDS)
def test_every_mutation_of_the_corpus_is_answered(tmp_path: Path, kind: str) -> None:
    answer, _ = KINDS[kind](tmp_path)
    corpus = json.loads((fuzz.CORPUS / f"{kind}.json").read_text())
    answers = {answer(mutation) for mutation in corpus.values()}
    assert len(answers) > len(corpus) / 2, "the corpus still tells kinds of damage apart"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_more_mutations_are_answered(tmp_path: Path, kind: str) -> None:
    (answer, draw), rng = KINDS[kind](tmp_path), random.Random(1)
    for _ in range(400):
        mutation = draw(rng)
        try:
            answer(mutation)
        except Exception as error:
            raise AssertionError(f"not answered: {mutation!r}") from error
