"""Dropout of features that are mostly zero: the same distribution, drawn for what is there."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from wsl.nn.sparse import sparse_input as module
from wsl.nn.sparse.sparse_input import dropout_of_features, sparse_input


def bag_of_words(nodes: int = 400, features: int = 300, share: float = 0.05) -> torch.Tensor:
    return torch.rand(nodes, features, dtype=torch.float64) * (torch.rand(nodes, features) < share)


def test_entries_are_kept_scaled_or_dropped_and_zeros_stay() -> None:
    x = bag_of_words()
    out = dropout_of_features(x, 0.6, True)
    kept = out != 0
    torch.testing.assert_close(out[kept], x[kept] / 0.4, rtol=1e-12, atol=0)
    assert not (out[x == 0] != 0).any()
    share = kept.sum() / (x != 0).sum()
    assert abs(float(share) - 0.4) < 0.03  # 6,000 draws: five standard deviations
    assert not torch.equal(out, dropout_of_features(x, 0.6, True))


def test_a_draw_is_a_function_of_the_seed() -> None:
    x = bag_of_words()
    first, again = (torch.manual_seed(3) and dropout_of_features(x, 0.5, True) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("rate, training", [(0.5, False), (0.0, True)])
def test_nothing_is_dropped_in_evaluation(rate: float, training: bool) -> None:
    x = bag_of_words()
    assert torch.equal(dropout_of_features(x, rate, training), x)


def test_dense_features_are_dropped_as_torch_does() -> None:
    x = torch.rand(30, 20)
    torch.manual_seed(1)
    expected = F.dropout(x, 0.5, True)
    torch.manual_seed(1)
    assert torch.equal(dropout_of_features(x, 0.5, True), expected)


def test_features_that_change_are_read_again() -> None:
    x = bag_of_words(20, 50)
    assert torch.equal(sparse_input(x).dense(), x)
    x[0, 0] = 7.0
    assert torch.equal(sparse_input(x).dense(), x)
    assert sparse_input(x) is sparse_input(x)


def test_gradients_of_features_are_those_of_torch() -> None:
    x = bag_of_words(20, 50).requires_grad_()
    out = dropout_of_features(x, 0.5, True)
    out.sum().backward()
    assert x.grad is not None and set(x.grad.unique().tolist()) == {0.0, 2.0}
    assert (x.grad[x == 0] != 0).any(), "zeros have gradients too, so all entries are drawn for"
    assert module.SPARSE * x.numel() > (x != 0).sum()
