"""Unifews: which messages and which weights of a graph network to leave out, as pure functions of tensors.

    edges      scores of messages, what to keep of them          weights    thresholds and masks of linear maps
    schedule   when to prune, and how much                       macs       multiply-accumulates of a sparse model
    bound      what pruning does to an output, measured and bounded
    networks   edges of many graphs, each pruned by itself  options    which options go together

Layers ask these functions what to keep (:mod:`wsl.nn.sparse`); a callback turns their dials
(:mod:`wsl.callbacks.sparsify`). Sparsities are fractions of entries removed, in [0, 1).

Source: Liao, Yu, Luo, "Unifews: You Need Fewer Operations for Efficient Graph Neural Networks", ICML 2025.
"""

from __future__ import annotations

from wsl.errors import UserError


class SparsityError(UserError, ValueError):
    """A threshold, target or graph that cannot be used; the message names the value and the fix."""


def check_threshold(name: str, value: float) -> None:
    """Refuse what is no threshold.

    Raises:
        SparsityError: below 0, or not finite.
    """
    if not 0.0 <= value < float("inf"):
        raise SparsityError(f"{name}={value}: a threshold is a number of at least 0; 0 prunes nothing")


def check_target(name: str, value: float) -> None:
    """Refuse what is no sparsity that can be reached.

    Raises:
        SparsityError: below 0, or 1 and more.
    """
    if not 0.0 <= value < 1.0:
        raise SparsityError(
            f"{name}={value}: a sparsity is a share removed, at least 0 and below 1; at 1.0 nothing would be left, "
            "use 0.99, or an encoder without edges (mlp)"
        )
