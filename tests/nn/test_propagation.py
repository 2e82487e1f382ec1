"""Pruned propagation: exact at a threshold of 0, the plain reading of its rule above, compiled and torch alike."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from wsl import native
from wsl.nn.sparse import propagation
from wsl.nn.sparse.propagation import SourceLists, appnp, heat, propagate, sgc
from wsl.sparsity import SparsityError

N, F = 30, 21
KINDS = {"sgc": sgc(5), "appnp": appnp(5, 0.2), "heat": heat(5, 2.0)}
EACH = pytest.mark.parametrize("kind", KINDS)


def graph() -> Tensor:
    ends = torch.randint(N, (2, 140))
    return torch.cat([ends, ends.flip(0)], dim=1).unique(dim=1)


def features() -> Tensor:
    return torch.randn(N, F, dtype=torch.float64) * (torch.rand(N, F) < 0.2)


def matrix(edge_index: Tensor) -> Tensor:
    a = torch.eye(N, dtype=torch.float64)
    a[edge_index[1], edge_index[0]] = 1.0
    degree = a.sum(1)
    return a / (degree[:, None] * degree).sqrt()


def plain(t: Tensor, x: Tensor, theta: list[float], delta: float) -> tuple[Tensor, int]:
    """One block of channels, node by node and edge by edge."""
    alive = (t > 0) & ~torch.eye(N, dtype=torch.bool)
    limit, out, q, used = delta * float(x.norm(dim=1).mean()), torch.zeros_like(x), x, 0
    for hop in range(len(theta) - 1):
        rest, following = sum(theta[hop:]), torch.zeros_like(x)
        for v in range(N):
            size = rest * float(q[v].norm())
            if size == 0:
                continue
            kept = [u for u in range(N) if alive[u, v] and (limit == 0 or float(t[u, v]) * size > limit)]
            if not kept and (t[:, v] > 0).sum() > 1:
                out[v] += rest * q[v]
                continue
            edges = int((t[:, v] > 0).sum()) - 1
            stays = (edges - len(kept)) / (edges + 1)
            out[v] += (theta[hop] + stays * sum(theta[hop + 1 :])) * q[v]
            following[v] += t[v, v] * q[v]
            alive[:, v] = False
            for u in kept:
                alive[u, v] = True
                following[u] += t[u, v] * q[v]
            used += len(kept) * x.shape[1]
        q = following
    return out + theta[-1] * q, used


@EACH
@pytest.mark.parametrize("kernel", ["c", "torch"])
def test_exact_without_a_threshold(kind: str, kernel: str) -> None:
    edges, x, theta = graph(), features(), KINDS[kind]
    t = matrix(edges)
    expected = sum(c * torch.linalg.matrix_power(t, hop) @ x for hop, c in enumerate(theta))
    found = propagate(SourceLists.of(edges, N), x, theta, kernel=kernel)
    assert (found.x - expected).abs().max() < 1e-12
    assert abs(sum(theta) - 1) < 1e-12


@EACH
@pytest.mark.parametrize("delta", [0.01, 0.1, 0.4])
def test_the_rule_edge_by_edge(kind: str, delta: float) -> None:
    edges, x, theta = graph(), features(), KINDS[kind]
    blocks = [plain(matrix(edges), x[:, f : f + 16], theta, delta) for f in (0, 16)]
    expected, used = torch.cat([b for b, _ in blocks], dim=1), sum(u for _, u in blocks)
    for kernel in ("c", "torch"):
        found = propagate(SourceLists.of(edges, N), x, theta, delta, kernel=kernel, threads=2)
        assert (found.x - expected).abs().max() < 1e-12
        assert found.updates == used < found.all_updates


def test_single_precision_and_absolute_thresholds() -> None:
    lists, x = SourceLists.of(graph(), N), features().float()
    c, other = (propagate(lists, x, appnp(4, 0.1), 0.05, absolute=True, kernel=k) for k in ("c", "torch"))
    assert (c.x - other.x).abs().max() < 1e-5 and c.updates == other.updates
    assert propagate(lists, x, appnp(4, 0.1), 1e9, absolute=True).updates == 0


@EACH
@pytest.mark.parametrize("kernel", ["c", "torch"])
@pytest.mark.parametrize("delta", [0.0, 0.03, 0.3])
def test_nothing_is_lost(kind: str, kernel: str, delta: float) -> None:
    """Σ √d x is the same before and after, whatever is pruned: the left eigenvector of T for the eigenvalue 1."""
    edges, x = graph(), features()
    edges = edges[:, edges[0] != edges[1]]
    root = (torch.bincount(edges[1], minlength=N) + 1.0).double().sqrt()
    found = propagate(SourceLists.of(edges, N), x, KINDS[kind], delta, kernel=kernel)
    assert (root @ found.x - root @ x).abs().max() < 1e-12 * float(root @ x.abs().sum(1))
    assert delta == 0 or found.updates < found.all_updates


def test_what_stays_with_a_node_is_not_lost() -> None:
    """With everything pruned, every node keeps its own features."""
    x = features()
    for theta in KINDS.values():
        found = propagate(SourceLists.of(graph(), N), x, theta, 1e9)
        connected = matrix(graph()).gt(0).sum(1) > 1
        assert (found.x - x)[connected].abs().max() < 1e-12


def test_without_a_compiler_torch_does_it(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    lists, x = SourceLists.of(graph(), N), features()
    expected = propagate(lists, x, sgc(3), 0.1).x
    propagation._library.cache_clear()
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert (propagate(lists, x, sgc(3), 0.1).x - expected).abs().max() < 1e-12
        with pytest.raises(RuntimeError, match="kernel='torch'"):
            propagate(lists, x, sgc(3), kernel="c")
    assert "no C compiler" in caplog.text
    propagation._library.cache_clear()


def test_negative_thresholds_are_refused() -> None:
    with pytest.raises(SparsityError, match="at least 0"):
        propagate(SourceLists.of(graph(), N), features(), sgc(2), -0.1)
