"""Propagation before training, pruned entry by entry: out = Σ_l θ_l T^l x over many hops, x without parameters.

A block of 16 channels has edges of its own. In hop l the message v → u is kept if rest_l |T_uv| ‖x_v‖ > δ · mean ‖x‖
(norms over the block; rest_l = θ_l + … + θ_L is what the message can still add), and pruned edges stay pruned in later
hops. Self loops are never pruned. What a pruned edge would have carried stays with its sender: the share that pruned
edges are of all of v's, loop included, of the (rest_l − θ_l) x_v that leave it goes to v's own output. So nothing is
lost: Σ_v √d_v out_v = Σ_v √d_v x_v of an undirected graph for every δ. A node none of whose messages is kept sends
nothing in that hop, and all that it has left stays. There is no random tail: the same graph gives the same features.

The compiled kernel runs where there is a C compiler, one thread per core; the torch form says the same more slowly.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor

from wsl import native
from wsl.sparsity import check_threshold

BLOCK = 16
TYPES = {torch.float32: np.float32, torch.float64: np.float64}
POINTER, WHOLE, REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
SIGNATURE: list[Any] = [WHOLE, *[POINTER] * 6, WHOLE, WHOLE, WHOLE, ctypes.c_int, POINTER, POINTER, REAL]
SIGNATURE += [ctypes.c_int, POINTER]
Kernel = Literal["auto", "c", "torch"]


@dataclass(frozen=True, eq=False)
class SourceLists:
    """Edges by source, the heaviest first: T_uv = 1/√(d_u d_v) with self loops counted in d, 1/d_u for loops.

    Nodes are numbered anew by reverse Cuthill-McKee (1969): neighbours lie together, so that a hop finds most of what
    it adds to in the cache.

    Attributes:
        pointer: ``[N + 1]`` int64. target: ``[E]`` int32, of each source the receivers of least degree first.
        degree: ``[N]`` float64, edges into a node and its loop. node: ``[N]`` int64, the old number of each node.
    """

    pointer: Tensor
    target: Tensor
    degree: Tensor
    node: Tensor

    @classmethod
    def of(cls, edge_index: Tensor, nodes: int) -> SourceLists:
        """Of the edges ``[2, E]``; self loops among them are replaced by one for each node."""
        source, target = edge_index[:, edge_index[0] != edge_index[1]]
        degree = torch.bincount(target, minlength=nodes).double() + 1
        node = _neighbours_together(source, target, nodes)
        number = torch.empty_like(node)
        number[node] = torch.arange(nodes)
        by_degree = torch.empty_like(node)
        by_degree[torch.argsort(degree, stable=True)] = torch.arange(nodes)
        order = torch.argsort(number[source] * nodes + by_degree[target])
        pointer = torch.zeros(nodes + 1, dtype=torch.int64)
        pointer[1:] = torch.bincount(number[source], minlength=nodes).cumsum(0)
        return cls(pointer, number[target][order].int(), degree[node], node)


def _neighbours_together(source: Tensor, target: Tensor, nodes: int) -> Tensor:
    """The nodes in the order of reverse Cuthill-McKee."""
    ones = np.ones(len(source), np.int8)
    adjacency = scipy.sparse.csr_matrix((ones, (source.numpy(), target.numpy())), shape=(nodes, nodes))
    return torch.from_numpy(reverse_cuthill_mckee(adjacency).astype(np.int64))


@dataclass(frozen=True, eq=False)
class Propagated:
    """Features ``x [N, F]``, the (edge, channel) pairs used and those of exact propagation, loops not counted."""

    x: Tensor
    updates: int
    all_updates: int

    @property
    def sparsity(self) -> float:
        return 1.0 - self.updates / self.all_updates if self.all_updates else 0.0


def sgc(hops: int) -> list[float]:
    """θ of T^L x (Wu et al., "Simplifying Graph Convolutional Networks", ICML 2019)."""
    return [0.0] * hops + [1.0]


def appnp(hops: int, alpha: float) -> list[float]:
    """θ_l = α (1 − α)^l, the rest (1 − α)^L in the last hop (Gasteiger et al., "Predict then Propagate", ICLR 2019)."""
    return [alpha * (1 - alpha) ** hop for hop in range(hops)] + [(1 - alpha) ** hops]


def heat(hops: int, time: float) -> list[float]:
    """θ_l = e^{−t} t^l / l!, the rest of the sum in the last hop (heat kernel of GDC, Gasteiger et al., 2019)."""
    found = [math.exp(-time) * time**hop / math.factorial(hop) for hop in range(hops)]
    return [*found, 1.0 - sum(found)]


def propagate(
    lists: SourceLists,
    x: Tensor,
    theta: Sequence[float],
    threshold: float = 0.0,
    *,
    absolute: bool = False,
    kernel: Kernel = "auto",
    threads: int | None = None,
) -> Propagated:
    """Pruned propagation of ``x [N, F]`` float32 or float64; exact for a threshold of 0.

    Args:
        theta: θ_0 … θ_L. threshold: δ, in units of the mean norm of a node's block of channels, or absolute.
        threads: of the compiled kernel; None: torch's.

    Raises:
        SparsityError: for a negative threshold. RuntimeError: if ``kernel="c"`` cannot be built.
    """
    check_threshold("threshold", threshold)
    rest = [sum(theta[hop:]) for hop in range(len(theta))]
    all_updates = len(lists.target) * x.shape[1] * (len(theta) - 1)
    chosen = None if kernel == "torch" else _library(x.dtype)
    if kernel == "c" and chosen is None:
        raise RuntimeError("the compiled kernel is not available; use kernel='torch'")
    if chosen is None:
        blocks = [
            _block(lists, x[:, first : first + BLOCK], theta, rest, threshold, absolute)
            for first in range(0, x.shape[1], BLOCK)
        ]
        out = torch.cat([block for block, _ in blocks], dim=1) if blocks else x.clone()
        return Propagated(out, sum(updates for _, updates in blocks), all_updates)
    out, updates = _compiled(chosen, lists, x.contiguous(), theta, rest, (threshold, absolute), threads)
    return Propagated(out, updates, all_updates)


def _compiled(
    library: ctypes.CDLL,
    lists: SourceLists,
    x: Tensor,
    theta: Sequence[float],
    rest: Sequence[float],
    cut: tuple[float, bool],
    threads: int | None,
) -> tuple[Tensor, int]:
    """Threads take blocks of channels; each counts for itself."""
    out = torch.empty_like(x)
    degree = lists.degree.to(x.dtype)
    coefficients = torch.tensor([list(theta), list(rest)], dtype=torch.float64)
    threads = threads or torch.get_num_threads()
    blocks = -(-x.shape[1] // BLOCK)
    share = max(1, blocks // (4 * threads)) * BLOCK  # some more pieces than threads, for their work differs
    starts = range(0, x.shape[1], share)
    updates = torch.zeros(len(starts), dtype=torch.int64)

    def piece(number: int) -> None:
        last = min(starts[number] + share, x.shape[1])
        failed = library.propagate(
            len(x), *(t.data_ptr() for t in (lists.pointer, lists.target, degree, lists.node, x, out)), x.shape[1],
            starts[number], last, len(theta) - 1, coefficients[0].data_ptr(), coefficients[1].data_ptr(), cut[0],
            not cut[1], updates[number].data_ptr(),
        )  # fmt: skip
        if failed:
            raise MemoryError(f"no memory for a block of {BLOCK} channels of {len(x):,} nodes")

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(piece, range(len(starts))))
    return out, int(updates.sum())


def _block(
    lists: SourceLists, x: Tensor, theta: Sequence[float], rest: Sequence[float], threshold: float, absolute: bool
) -> tuple[Tensor, int]:
    """The torch form, one block of channels."""
    x, edges, degree = x[lists.node], lists.pointer.diff(), lists.degree.to(x.dtype)
    source = torch.repeat_interleave(torch.arange(len(x)), edges)
    target, loop = lists.target.long(), degree.reciprocal()[:, None]
    weight = (degree[source] * degree[target]).rsqrt()
    limit = threshold if absolute else float(threshold * x.norm(dim=1).double().mean())
    alive = torch.ones(len(source), dtype=torch.bool)
    out, q, updates = torch.zeros_like(x), x, 0
    for hop in range(len(theta) - 1):
        size = q.norm(dim=1) * rest[hop]
        silent = size == 0
        keep = alive & ~silent[source]
        if limit > 0:
            keep &= weight * size[source] > limit
        sent = torch.bincount(source[keep], minlength=len(x))
        stays = (sent == 0) & (edges > 0) & ~silent
        moves = ~stays & ~silent
        alive = torch.where(moves[source], keep, alive)
        updates += int(keep.sum()) * x.shape[1]
        share = theta[hop] + (rest[hop] - theta[hop]) * (edges - sent).to(x) / (edges + 1)
        out = out + torch.where(stays, rest[hop], share)[:, None] * q
        moving = q * moves[:, None]
        q = (loop * moving).index_add(0, target[keep], weight[keep, None] * q[source[keep]])
    whole = torch.empty_like(out)
    whole[lists.node] = out + theta[-1] * q
    return whole, updates


@functools.cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    library = native.library(__file__, ("propagate.c",), np.dtype(TYPES[dtype]), "features are propagated")
    if library is not None:
        library.propagate.argtypes, library.propagate.restype = SIGNATURE, ctypes.c_int
    return library
