"""Diagnostics that the backward pass of a GATv2 layer knows anyway: D5 to D10 and D15."""

from __future__ import annotations

import math
from typing import Any

from wsl.nn.gatv2.probe import FlowProbe
from wsl.nn.gatv2_conv import GATv2Conv


class SwitchedProbe:
    """Passes readings on while ``on``: backward passes that serve other diagnostics are not to be read."""

    def __init__(self) -> None:
        self.inner, self.on = FlowProbe(), False

    def read(self, *given: Any) -> None:
        if self.on:
            self.inner.read(*given)


def attention_readings(layer: GATv2Conv, probe: FlowProbe) -> dict[str, float]:
    """Every quantity of one layer after a backward pass; NaN where no node has two incoming edges.

    Returns:
        entropy (D5, mean over nodes and heads), entropy_low (the 10th percentile, of the lowest head), saturated (D6,
        a share), path_ratio (D7), same_sign and low_degree (D8, shares), query_ratio (D9, ‖dW_r‖ / ‖dW_l‖; NaN for a
        shared map), value_contrast (D10), shift (D15).
    """
    read = probe.readings
    return {
        "entropy": float(read["entropy_mean"].mean()),
        "entropy_low": float(read["entropy_p10"].min()),
        "saturated": float(read["saturated_share"]),
        "path_ratio": float(read["path_ratio"]),
        "same_sign": float(read["same_sign_share"]),
        "low_degree": float(read["low_degree_share"]),
        "query_ratio": _query_ratio(layer),
        "value_contrast": float(read["value_contrast"]),
        "shift": float(read["shift_residual"]),
    }


def _query_ratio(layer: GATv2Conv) -> float:
    source, target = layer.lin_l.weight.grad, layer.lin_r.weight.grad
    if layer.share_weights or source is None or target is None or not source.any():
        return math.nan
    return float(target.norm() / source.norm())
