"""A function of many rows, computed in chunks that fit the cache and computed again for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

C = TypeVar("C")

#: function(chunk, slices of the cut tensors, whole tensors) → outputs of the chunk
ChunkFunction = Callable[[C, Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, ...]]


def recomputed_in_chunks(
    function: ChunkFunction[C],
    chunks: Sequence[tuple[C, slice, slice]],
    cut: Sequence[Tensor],
    whole: Sequence[Tensor],
    rows: int,
) -> tuple[Tensor, ...]:
    """Apply ``function`` chunk by chunk; only the inputs are kept for the backward pass.

    Plain autograd would keep every intermediate array of all rows. Here one chunk's at a time exist, small enough for
    the cache, which is also faster. Random numbers (dropout) are the same both times.

    Args:
        chunks: what the function should know of each chunk, its slice of the cut tensors, its slice of the outputs;
            the slices of either kind cover all rows once.
        cut: tensors of which a chunk sees its slice ``[p, …]``.
        whole: tensors that every chunk sees whole; their gradients are summed.
        rows: first dimension of every output.
    """
    outputs = _Recomputed.apply(function, chunks, rows, len(cut), *cut, *whole)
    return outputs if isinstance(outputs, tuple) else (outputs,)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Any, chunks: Any, rows: int, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        cut, whole = tensors[:count], tensors[count:]
        ctx.function, ctx.chunks, ctx.count = function, chunks, count
        ctx.random, ctx.precision = _random_state(tensors[0].device), _precision(tensors[0].device)
        ctx.save_for_backward(*tensors)
        outputs: list[Tensor] = []
        with ctx.precision():
            for chunk, inside, outside in chunks:
                parts = function(chunk, [t[inside] for t in cut], whole)
                outputs = outputs or [part.new_empty(rows, *part.shape[1:]) for part in parts]
                for output, part in zip(outputs, parts, strict=True):
                    output[outside] = part
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors: tuple[Tensor, ...] = ctx.saved_tensors
        wanted: tuple[bool, ...] = ctx.needs_input_grad[4:]
        cut, of_cut, of_whole = tensors[: ctx.count], wanted[: ctx.count], wanted[ctx.count :]
        whole = [t.detach().requires_grad_(w) for t, w in zip(tensors[ctx.count :], of_whole, strict=True)]
        out = [torch.empty_like(t) if w else None for t, w in zip(cut, of_cut, strict=True)]
        sums = [torch.zeros_like(t) if t.requires_grad else None for t in whole]
        with _same_random_numbers(tensors[0].device, ctx.random), ctx.precision(), torch.enable_grad():
            for chunk, inside, outside in ctx.chunks:
                parts = [t[inside].detach().requires_grad_(w) for t, w in zip(cut, of_cut, strict=True)]
                values = ctx.function(chunk, parts, whole)
                leaves = [t for t in (*parts, *whole) if t.requires_grad]
                found = iter(torch.autograd.grad(values, leaves, [g[outside] for g in grads], allow_unused=True))
                for target in (t for t in out if t is not None):
                    grad = next(found)
                    target[inside] = 0 if grad is None else grad
                for total in (t for t in sums if t is not None):
                    if (grad := next(found)) is not None:
                        total += grad
        return (None, None, None, None, *out, *sums)


def _precision(device: torch.device) -> Callable[[], torch.autocast]:
    """Autocast as it is now, for the backward pass runs without. It keeps no casts: those of the forward, made without
    gradients, would reach whoever casts the same parameter next."""
    kind = device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return partial(torch.autocast, kind, dtype, enabled, cache_enabled=False)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _same_random_numbers(device: torch.device, state: tuple[Tensor, Tensor | None]) -> Iterator[None]:
    cpu, cuda = state
    with torch.random.fork_rng([] if cuda is None else [device]):
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        yield
