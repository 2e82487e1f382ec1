"""From an nn.Module to its WeightSpec: neurons followed through the graph, symmetries derived and checked."""

from wsl.trace.graph import TraceError
from wsl.trace.report import Frozen, TraceReport, trace, trace_report

__all__ = ["Frozen", "TraceError", "TraceReport", "trace", "trace_report"]
