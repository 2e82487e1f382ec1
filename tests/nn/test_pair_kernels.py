"""The compiled layers on pairs of nodes equal those in torch, for all options, widths, types and numbers of threads."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from test_relational import graphs, pairs_of
from torch import Tensor

from wsl import native
from wsl.nn.pairs import kernels
from wsl.nn.relational import PairUpdate, RelationalLayer

PUBLISHED, ODD = (64, 32, 128, 8, 64), (12, 20, 48, 3, 40)  # widths of nodes, pairs, attention; heads; hidden layer
pytestmark = pytest.mark.skipif(not kernels.take(torch.zeros(1)), reason="there is no C compiler")


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(kernels, "parts_of", lambda *_: torch.get_num_threads())  # also for so few pairs
    yield 3
    torch.set_num_threads(before)


def random_layer(sizes: tuple[int, ...], dtype: torch.dtype, **options: bool) -> RelationalLayer:
    nodes, edges, width, heads, hidden = sizes
    layer = RelationalLayer(nodes, edges, width, 10, hidden, heads, **options).to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


def results(layer: RelationalLayer, dense: bool) -> list[Tensor]:
    """Outputs, and gradients of a sum of them with random weights."""
    graph = graphs()
    pairs = pairs_of(graph, dense)
    torch.manual_seed(0)
    like = layer.attention.out[0].weight
    nodes = torch.randn(graph.num_nodes, len(like), dtype=like.dtype, requires_grad=True)
    edges = torch.randn(len(pairs), layer.attention.edge_value.in_features, dtype=like.dtype, requires_grad=True)
    outputs = layer(nodes, edges, pairs)
    loss = torch.stack([(torch.randn_like(t) * t).sum() for t in outputs]).sum()
    return [*outputs, *torch.autograd.grad(loss, [nodes, edges, *layer.parameters()])]


def close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.detach().abs().max()))


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("options", [{}, {"modulation": False}, {"norm": False}])
@pytest.mark.parametrize("sizes", [PUBLISHED, ODD])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_equals_torch(
    dense: bool,
    options: dict[str, bool],
    sizes: tuple[int, ...],
    dtype: torch.dtype,
    tolerance: float,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = random_layer(sizes, dtype, **options)
    found = results(layer, dense)
    monkeypatch.setattr(kernels, "take", lambda *_: False)
    close(found, results(layer, dense), tolerance)


def test_the_same_bits_again_and_nearly_the_same_with_one_thread(threads: int) -> None:
    layer = random_layer(PUBLISHED, torch.float64)
    found = results(layer, True)
    assert all(torch.equal(a, b) for a, b in zip(found, results(layer, True), strict=True))
    torch.set_num_threads(1)
    close(found, results(layer, True), 1e-13)


def test_large_scores_and_steps_stay_finite_and_what_is_no_number_is_passed_on() -> None:
    layer = random_layer(PUBLISHED, torch.float32)
    for parameter in layer.parameters():
        parameter.data.mul_(100.0)
    assert all(t.isfinite().all() for t in results(layer, True))
    layer.attention.edge_maps[0].weight.data[0, 0] = float("nan")
    assert results(layer, True)[0].isnan().any()


def test_dropout_drops_its_share_of_both_steps() -> None:
    graph = graphs()
    pairs = pairs_of(graph, True)
    nodes, edges = torch.randn(graph.num_nodes, 6), torch.randn(len(pairs), 32)
    module = PairUpdate(6, 32, 16, dropout=0.25, norm=False)
    torch.nn.init.zeros_(module.feed.narrow.weight), torch.nn.init.zeros_(module.feed.narrow.bias)
    step = module.eval()(nodes, edges, pairs) - edges
    dropped = module.train()(nodes, edges, pairs) - edges
    kept = dropped.abs() > 1e-6
    torch.testing.assert_close(dropped[kept], step[kept] / 0.75, rtol=1e-3, atol=1e-5)
    assert 0.72 < kept.float().mean() < 0.78
    torch.nn.init.ones_(module.feed.narrow.bias)
    torch.nn.init.zeros_(module.out.weight), torch.nn.init.zeros_(module.out.bias)
    dropped = module(nodes, edges, pairs) - edges
    assert 0.72 < (dropped > 1).float().mean() < 0.78


def test_what_is_dropped_is_random() -> None:
    """No channel, no pair, no call tells what happens to another."""
    graph = graphs()
    pairs = pairs_of(graph, True)
    nodes, edges = torch.randn(graph.num_nodes, 6), torch.zeros(len(pairs), 32)
    module = PairUpdate(6, 32, 16, dropout=0.5, norm=False)
    for linear in (module.out, module.feed.narrow):
        torch.nn.init.zeros_(linear.weight)
    torch.nn.init.constant_(module.out.bias, 0.5)
    torch.nn.init.constant_(module.feed.narrow.bias, 1.0)
    torch.manual_seed(0)
    first, second = module(nodes, edges, pairs), module(nodes, edges, pairs)  # 0, 1, 2, 3: bits of the two steps
    torch.manual_seed(0)
    assert torch.equal(module(nodes, edges, pairs), first)
    streams = [bits for x in (first, second) for bits in (x % 2, x // 2)]
    couples = [(a, b) for n, a in enumerate(streams) for b in streams[:n]]
    couples += [(a[1:], a[:-1]) for a in streams] + [(a[:, 1:], a[:, :-1]) for a in streams]
    couples += [(a[32:], a[:-32]) for a in streams]
    for a, b in couples:
        assert torch.stack([a.flatten(), b.flatten()]).corrcoef()[0, 1].abs() < 5 * a.numel() ** -0.5


def test_no_more_threads_than_memory_allows() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        counts = [kernels.parts_of(torch.zeros(n, 32), [torch.zeros(100, 128)]) for n in (10, 250, 10_000)]
        assert counts == [1, 2, 3]
    finally:
        torch.set_num_threads(before)


def test_without_a_compiler_torch_takes_over(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    layer = random_layer(PUBLISHED, torch.float64)
    found = results(layer, True)
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    kernels._libraries.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            close(found, results(layer, True), 1e-12)
        assert "pairs of nodes are computed by the slower kernel" in caplog.text
        assert len(caplog.records) == 1, "it says so once"
    finally:
        kernels._libraries.cache_clear()


def test_other_types_and_mixtures_are_left_to_torch() -> None:
    assert not kernels.take(torch.zeros(1, dtype=torch.bfloat16))
    assert not kernels.take(torch.zeros(1), torch.zeros(1, dtype=torch.float64))
    assert not kernels.take(torch.zeros(1, device="meta"))
