"""PyTorch Geometric, imported where it is used first: that takes seconds, which other runs need not spend."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType


def geometric(module: str) -> ModuleType:
    """The module ``torch_geometric.MODULE``."""
    with warnings.catch_warnings():  # it scripts a class when imported, which torch calls deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module(f"torch_geometric.{module}")
