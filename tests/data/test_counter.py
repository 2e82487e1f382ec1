"""Random numbers as functions of what they are for: against SplitMix64 in Python, and for their distribution."""

from __future__ import annotations

import torch

from wsl.data.counter import RowRandom, keys, split_mix

MASK = 2**64 - 1


def reference(seed: int, count: int) -> list[int]:
    """SplitMix64 as published, in whole numbers of any size."""
    out = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        z = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(z ^ (z >> 31))
    return out


def test_outputs_are_those_of_split_mix_64() -> None:
    assert reference(1234567, 2) == [6457827717110365317, 3203168211198807973]  # the published test vector
    for seed in (0, 1234567, 2**63 - 1):
        found = split_mix(torch.tensor(seed), torch.arange(100))
        assert [value & MASK for value in found.tolist()] == reference(seed, 100)


def test_numbers_are_functions_of_their_arguments() -> None:
    rows = torch.tensor([5, 9, 0, 2**40])
    random = RowRandom.of(rows, seed=3, epoch=1)
    assert torch.equal(random.uniform("noise")[[2, 0]], RowRandom.of(rows[[2, 0]], 3, 1).uniform("noise"))
    owner, position = torch.tensor([1, 1, 0]), torch.tensor([7, 0, 7])
    found = random.uniform("noise", owner, position)
    assert found[1] == random.uniform("noise")[1]
    assert torch.equal(found[:1], RowRandom.of(rows[1:2], 3, 1).uniform("noise", owner[:1] * 0, position[:1]))
    others = [RowRandom.of(rows, 4, 1), RowRandom.of(rows, 3, 2), RowRandom.of(rows, 3, 1, 1)]
    draws = [random.uniform("noise"), random.uniform("sign"), *(r.uniform("noise") for r in others)]
    assert len(torch.cat(draws).unique()) == 4 * len(draws)
    assert len(keys(torch.arange(1000), 1, 2).unique()) == 1000


def test_numbers_are_uniform_and_neighbours_are_unrelated() -> None:
    random = RowRandom.of(torch.arange(200), 0, 0)
    owner, position = torch.arange(200).repeat_interleave(500), torch.arange(500).repeat(200)
    drawn = random.uniform("noise", owner, position)
    assert drawn.dtype == torch.float64 and drawn.min() > 0 and drawn.max() < 1
    counts = drawn.mul(20).long().bincount(minlength=20)
    assert float(((counts - 5000) ** 2 / 5000).sum()) < 43.8  # chi-square, 19 degrees of freedom, 0.1 %
    table = drawn.reshape(200, 500) - 0.5
    other = RowRandom.of(torch.arange(200), 0, 1).uniform("noise", owner, position).reshape(200, 500) - 0.5
    for shifted in (table.roll(1, 0), table.roll(1, 1), other):
        assert abs(float((table * shifted).mean())) * 12 < 4 / 100_000**0.5  # correlation, four standard errors
