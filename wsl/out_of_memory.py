"""What to do when memory does not suffice: how large the step was, and which options make it smaller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wsl.data.base import Data
from wsl.errors import UserError
from wsl.run_config import RunConfig
from wsl.spec import WeightSpec
from wsl.spec.family import SpecFamily, specs_of

#: what PyTorch says when an allocation on the host fails, or one that a library of CUDA makes
WORDS = ("can't allocate memory", "cannot allocate memory", "CUDA out of memory", "ALLOC_FAILED", "std::bad_alloc")


class OutOfMemory(UserError, MemoryError):
    """Memory did not suffice; the message says for what, and how to need less."""


@contextmanager
def memory_told(config: RunConfig, data: Data) -> Iterator[None]:
    """Give an error of memory the sizes of the step and a way out.

    Raises:
        OutOfMemory: in place of that error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _of_memory(error):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise OutOfMemory(f"memory does not suffice ({said}). {_sizes(config, data)}") from error


def _of_memory(error: BaseException) -> bool:
    if isinstance(error, UserError):
        return False
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(word in str(error) for word in WORDS)


def _sizes(config: RunConfig, data: Data) -> str:
    if not isinstance(data.spec, (WeightSpec, SpecFamily)):
        return (
            f"A step holds the graph {data.inputs} and data.batch_size={config.data.batch_size} training nodes (null: "
            "all); take a smaller encoder, or one that works on mini-batches (encoder=sgc) with a small data.batch_size"
        )
    largest = max(specs_of(data.spec), key=lambda spec: spec.numel)
    neurons = sum(largest.size_of(group.name) for group in largest.groups)
    weights = sum(tensor.numel for tensor in largest.tensors if tensor.role == "weight")
    return (
        f"A training step of each process holds data.batch_size={config.data.batch_size} networks, one in validation "
        f"data.eval_batch_size={config.data.eval_batch_size}; the largest network has P={largest.numel:,} "
        f"parameters, N={neurons:,} neurons and E={weights:,} weights between them. Lower data.batch_size and raise "
        "trainer.accumulate_grad_batches by the same factor, which leaves the optimiser's steps as large as they are; "
        "lower data.eval_batch_size, which changes no result; take a smaller encoder; or, if it is the host's memory, "
        "read rows from the file (data.memory_limit=0)"
    )
