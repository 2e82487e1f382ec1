"""Run networks whose spec alone does not suffice: the module at hand, vmapped over the rows of a batch."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from wsl.batch import WeightBatch
from wsl.spec import SpecError, WeightSpec


def execute_module(
    module: nn.Module,
    spec: WeightSpec,
    batch: WeightBatch,
    inputs: Tensor | tuple[Tensor, ...],
    shared: bool = True,
    decompose: bool | None = None,
) -> Any:
    """Outputs of every network: the module's own, in evaluation mode, each with a leading axis B.

    Args:
        module: of the architecture that the spec describes. Its own values are used only for what the spec does not
            hold (counters); it is not changed.
        spec: describes ``batch`` (it may be the verified twin of ``batch.spec``).
        batch: B networks with C = 1.
        inputs: the module's positional arguments, each ``[N, …]`` for all networks, or ``[B, N, …]``.
        shared: whether all networks see the same inputs.
        decompose: run the decomposed export graph instead of the module. None: only where vmap has no rule for the
            module's kernels (GRU, LSTM).

    Raises:
        SpecError: if the module lacks a tensor of the spec, or holds it in another shape.
    """
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    module = copy.deepcopy(module).to(batch.values.dtype).to(batch.values.device).eval()
    own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    for stored in spec.stored:
        if stored.name not in own or tuple(own[stored.name].shape) != stored.shape:
            found = list(own[stored.name].shape) if stored.name in own else "missing"
            raise SpecError(f"{type(module).__name__}: {stored.name!r} should be {list(stored.shape)}, is {found}")
    if decompose is None:
        try:
            return _vmapped(module, spec, batch, arguments, shared)
        except RuntimeError as error:
            if "batching rule" not in str(error).lower():
                raise
    example = arguments if shared else tuple(a[0] for a in arguments)
    graph = decomposed(module, example) if decompose is not False else module
    return _vmapped(graph, spec, batch, arguments, shared)


def decomposed(module: nn.Module, example: tuple[Tensor, ...]) -> nn.Module:
    """The module as a graph of core ATen operations, for inputs of the example's shapes."""
    with torch.no_grad(), warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec", FutureWarning)  # of torch about torch
        warnings.filterwarnings("ignore", "The tensor attributes .*_flat_weights", UserWarning)  # nn.GRU's aliases
        program = torch.export.export(module, example, strict=False)
        return program.run_decompositions().module(check_guards=False)


def _vmapped(
    module: nn.Module, spec: WeightSpec, batch: WeightBatch, arguments: tuple[Tensor, ...], shared: bool
) -> Any:
    def one(row: Tensor, *inputs: Tensor) -> Any:
        state = {s.name: row.narrow(0, s.offset, math.prod(s.shape)).reshape(s.shape) for s in spec.stored}
        return functional_call(module, state, inputs)

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernel has neither vmap nor derivative
    try:
        with sdpa_kernel(SDPBackend.MATH):
            in_dims = (0, *(None if shared else 0 for _ in arguments))
            return vmap(one, in_dims=in_dims)(batch.values.squeeze(-1), *arguments)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
