"""Which options of a sparsification go together."""

from __future__ import annotations

from wsl.sparsity import SparsityError


def check_together(
    edge_choice: str,
    weight_choice: str,
    edge_target: float | None,
    weight_target: float | None,
    warm_up: int,
    placement: str,
) -> None:
    """Options that need each other.

    Raises:
        SparsityError: if one is given without the other.
    """
    if edge_choice in ("doubt", "need") and not warm_up:
        raise SparsityError(
            f"sparsity.edge_choice={edge_choice} asks a trained model: set sparsity.warm_up to some epochs"
        )
    if edge_target is None and (edge_choice != "message" or placement != "equal"):
        raise SparsityError(
            f"sparsity.edge_choice={edge_choice} with sparsity.placement={placement} needs sparsity.edge_target"
        )
    if weight_choice != "message" and weight_target is None:
        raise SparsityError(f"sparsity.weight_choice={weight_choice} needs sparsity.weight_target")


def check_networks(edge_choice: str, pruned_edge: str, warm_up_edges: str) -> None:
    """Options that have no meaning for encoders of neural graphs.

    Raises:
        SparsityError: if one of them is given.
    """
    refused = {
        "edge_choice": (edge_choice, ("message",), "each network's own messages choose"),
        "pruned_edge": (pruned_edge, ("auto", "absent"), "an edge that is gone is in no aggregation"),
        "warm_up_edges": (warm_up_edges, ("all",), "a neural graph has no self loops"),
    }
    for name, (value, allowed, why) in refused.items():
        if value not in allowed:
            raise SparsityError(f"sparsity.{name}={value}: on neural graphs {why}; set it to {allowed[0]}")
