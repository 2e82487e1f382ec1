"""Each row counts once, whatever the order in which it comes and however often."""

from __future__ import annotations

import torch

from wsl.tasks.gathered import GatheredRows


def test_rows_are_sorted_and_counted_once() -> None:
    gathered = GatheredRows()
    gathered.update(torch.tensor([7, 3]), torch.tensor([[0.7], [0.3]]), torch.tensor([1, 0]))
    gathered.update(torch.tensor([5, 3]), torch.tensor([[0.5], [0.3]]), torch.tensor([1, 0]))
    rows = gathered.gather()
    assert rows.row_ids.tolist() == [3, 5, 7]
    assert torch.allclose(rows.output, torch.tensor([[0.3], [0.5], [0.7]]))
    assert rows.target.tolist() == [0, 1, 1]
    gathered.update(torch.tensor([1]), torch.tensor([[0.1]]), torch.tensor([0]))
    rows = gathered.gather()
    assert rows.row_ids.tolist() == [1] and rows.output.shape == (1, 1) and rows.target.shape == (1,)
