"""Zoos of recurrent networks: trained together against each trained alone, and what the built file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsl.batch import WeightBatch
from wsl.execute import execute
from wsl.zoo import Zoo
from wsl.zoo.build import rnn
from wsl.zoo.build.addition import CHARACTERS, END, EQUALS, VOCABULARY, Sums, all_sums, one_hot, success, sums, text
from wsl.zoo.build.draws import batch_of
from wsl.zoo.build.kinds import build_zoo
from wsl.zoo.build.rnn_recipe import DrawnRNN, RNNRecipe
from wsl.zoo.build.seq2seq import Seq2Seq, initial_rows, logits, seq2seq_spec
from wsl.zoo.verify import verify_zoo

QUICK: dict[str, Any] = {
    "digits": 1,
    "held_out": 0.3,
    "runs": 12,
    "hidden": 16,
    "learning_rate": [5e-3, 3e-2],
    "batch_sizes": [16, 32],
    "checkpoints": [100, 400],
    "block": 5,
}


def recipe(**changes: Any) -> RNNRecipe:
    return RNNRecipe.model_validate(QUICK | changes)


# -- the task ---------------------------------------------------------------------------------------------------------


def test_sums_are_written_as_asked_and_answered() -> None:
    some = sums(np.array([15, 0, 99]), np.array([20, 7, 99]), 2)
    assert text(some.questions) == ["15+20=", "  0+7=", "99+99="]
    assert text(some.answers) == ["35..", "7...", "198."]
    assert text(some.shown) == ["=35.", "=7..", "=198"]
    assert some.judged.tolist() == [[True, True, True, False], [True, True, False, False], [True] * 4]


def test_held_out_sums_are_not_trained_on() -> None:
    train, test = all_sums(2, 0.1, 0)
    questions = [set(text(part.questions)) for part in (train, test)]
    assert [len(part) for part in questions] == [9000, 1000] and not questions[0] & questions[1]
    for question, answer in zip(text(test.questions), text(test.answers), strict=True):
        first, second = question.rstrip("=").split("+")
        assert int(first) + int(second) == int(answer.rstrip("."))
    assert text(all_sums(2, 0.1, 1)[1].questions) != text(test.questions)


def written_alone(module: Seq2Seq, asked: Sums) -> list[str]:
    """Answers that a network writes by itself, the likeliest character at each step."""
    _, state = module.encoder(one_hot(asked.questions, torch.float32))
    character = torch.full((len(asked), 1), EQUALS)
    answers = []
    for _ in range(asked.answers.shape[1]):
        output, state = module.decoder(one_hot(character, torch.float32), state)
        character = module.head(output).argmax(-1)
        answers.append(character)
    return [line.partition(".")[0] for line in text(torch.cat(answers, 1))]


def module_of(row: Tensor, hidden: int) -> Seq2Seq:
    module = Seq2Seq(VOCABULARY, hidden).to(row.dtype)
    nn.utils.vector_to_parameters(row.clone(), module.parameters())
    return module


# -- training ---------------------------------------------------------------------------------------------------------


def test_networks_together_are_the_module() -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    rows = initial_rows(generators, VOCABULARY, 7).double() * 3
    asked = all_sums(2, 0.1, 0)[1][torch.arange(11)]
    questions, shown = one_hot(asked.questions, torch.float64), one_hot(asked.shown, torch.float64)
    expected = torch.stack([module_of(row, 7)(questions, shown) for row in rows])
    torch.testing.assert_close(logits(rows, questions, shown, 7), expected, rtol=1e-12, atol=1e-12)
    assert expected.std() > 0.1
    batch = WeightBatch(seq2seq_spec(VOCABULARY, 7), rows.unsqueeze(-1))
    assert batch.spec.verified
    found = execute(batch, {"question": questions, "shown": shown})
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def alone(network: DrawnRNN, hidden: int, steps: int, train_sums: Sums) -> Tensor:
    """As one would train a network with nn.Module and torch.optim.Adam, on the batches of the zoo."""
    module = module_of(initial_rows([torch.Generator().manual_seed(network.init_seed)], VOCABULARY, hidden)[0], hidden)
    optimizer = torch.optim.Adam(module.parameters(), lr=network.learning_rate)
    for step in range(steps):
        asked = train_sums[batch_of(0, step, network.batch_size, len(train_sums))]
        written = module(one_hot(asked.questions, torch.float32), one_hot(asked.shown, torch.float32))
        optimizer.zero_grad()
        F.cross_entropy(written[asked.judged], asked.answers[asked.judged]).backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(module.parameters()).detach()


def test_training_together_equals_training_each_alone() -> None:
    train_sums, test_sums = all_sums(1, 0.3, 0)
    networks = [DrawnRNN(rate, 16, seed) for seed, rate in enumerate((1e-3, 1e-2, 3e-2))]
    together = rnn.train(recipe(checkpoints=[0, 8]), networks, train_sums, test_sums)["values"]
    expected = torch.stack([alone(network, 16, 8, train_sums) for network in networks])
    assert np.abs(together[:, 1] - together[:, 0]).max() > 0.05  # they did move
    torch.testing.assert_close(torch.from_numpy(together[:, 1]), expected, rtol=0, atol=2e-5)


# -- the file ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_zoo(recipe(), tmp_path_factory.mktemp("built") / "zoo.h5", progress=False)


def test_success_rate_is_the_share_of_answers_that_a_network_writes_by_itself(built: Path) -> None:
    _, asked = all_sums(1, 0.3, 0)
    right = [line.partition(".")[0] for line in text(asked.answers)]
    with Zoo(built) as zoo:
        rates, values = zoo.column("success_rate"), torch.from_numpy(zoo.read(0, len(zoo)))
    assert rates.max() > 0.3
    for row in range(0, len(rates), 3):
        written = written_alone(module_of(values[row], 16), asked)
        assert abs(np.mean([a == b for a, b in zip(written, right, strict=True)]) - rates[row]) < 1e-9


def test_labels_vary_and_the_checks_pass(built: Path) -> None:
    with Zoo(built) as zoo:
        rates, columns = zoo.column("success_rate"), {name: zoo.column(name) for name in zoo.columns}
        assert len(zoo) == 24 and zoo.run_ids.tolist() == np.repeat(np.arange(12), 2).tolist()
        assert columns["step"].tolist() == [100, 400] * 12 and set(columns["batch_size"]) == {16, 32}
        assert len(zoo.specs) == 1 and zoo.specs[0].verified
    assert len(np.unique(rates)) >= 6 and rates.std() > 0.05
    assert np.isin(rates, (0, 1)).mean() < 0.6
    last = columns["step"] == 400
    assert rates[last].mean() > rates[~last].mean()
    assert (columns["train_success_rate"] >= 0).all() and columns["test_loss"][last].mean() < np.log(VOCABULARY)
    checks = verify_zoo(built)
    assert [check.failures for check in checks if check.failures] == []
    assert next(check for check in checks if check.name.startswith("scores")).status == "ok"


def test_only_whole_answers_count() -> None:
    asked = sums(np.array([1, 2]), np.array([9, 3]), 1)
    perfect = one_hot(asked.answers, torch.float64)
    assert success(perfect, asked).tolist() == [True, True]
    wrong = perfect.clone()
    wrong[0, 2] = wrong[0, 2].roll(1)  # the end sign of "10."
    wrong[1, 2] = wrong[1, 2].roll(1)  # what follows the end sign of "5."
    assert success(wrong, asked).tolist() == [False, True]
    assert CHARACTERS[END] == "."
