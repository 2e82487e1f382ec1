"""Autocast of a GPU where there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

#: what autocast computes in float32 on a GPU, and not on a CPU
IN_FLOAT32 = {
    "pow", "__pow__", "square", "sum", "prod", "cumsum", "softmax", "log_softmax", "softplus", "norm", "exp", "expm1",
    "log", "log1p", "rsqrt", "reciprocal", "layer_norm", "group_norm",
}  # fmt: skip
#: what brings its arguments to one type on a CPU, and refuses different ones on a GPU
AS_THEY_ARE = {"index_copy", "index_copy_"}


class AsOnGPU(TorchFunctionMode):
    """Autocast on a CPU that gives and refuses what it does on a GPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if torch.is_autocast_enabled("cpu") and name in IN_FLOAT32:
            args = tree_map_only(Tensor, lambda t: t.float() if t.dtype == torch.bfloat16 else t, args)
        with torch.autocast("cpu", enabled=False) if name in AS_THEY_ARE else nullcontext():
            return func(*args, **kwargs or {})
