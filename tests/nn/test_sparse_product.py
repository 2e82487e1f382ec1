"""Sparse features times pruned weights in inference: the dense product, by entries."""

from __future__ import annotations

import pytest
import torch

from wsl.nn.sparse import sparse_product
from wsl.nn.sparse.linear import SparseLinear
from wsl.nn.sparse.sparse_input import sparse_input


@pytest.mark.parametrize("bias", [True, False])
def test_inference_multiplies_what_is_left(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = SparseLinear(40, 9, bias=bias).double().eval()
    x = torch.randn(13, 40, dtype=torch.float64) * (torch.rand(13, 40) < 0.2)
    given = sparse_input(x)
    layer.sieve.kept = torch.rand(9, 40) < 0.1
    calls = []
    product = sparse_product.product
    monkeypatch.setattr(sparse_product, "product", lambda *a: calls.append(1) or product(*a))

    def expected() -> torch.Tensor:
        return torch.nn.functional.linear(x, layer.weight * layer.sieve.kept, layer.bias)

    for threads in (1, 3):
        torch.set_num_threads(threads)
        with torch.no_grad():
            assert (layer(given) - expected()).abs().max() < 1e-12
    torch.set_num_threads(1)
    with torch.no_grad():
        layer.weight.add_(1.0)  # as an optimiser step or a loaded checkpoint does
        assert (layer(given) - expected()).abs().max() < 1e-12
        layer.sieve.kept = torch.rand(9, 40) < 0.1
        assert (layer(given) - expected()).abs().max() < 1e-12
    assert len(calls) == 4
    assert (layer(given) - expected()).abs().max() < 1e-12 and len(calls) == 4, "gradients need the dense product"
