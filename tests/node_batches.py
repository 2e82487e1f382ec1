"""A small random graph whose nodes are to be classified."""

from __future__ import annotations

import torch

from wsl.graphs.node_graph import NodeBatch, NodeGraph, NodeGraphSpec

N, SPEC = 14, NodeGraphSpec(6)


def batch() -> NodeBatch:
    ends = torch.randint(N, (2, 50))
    ends = ends[:, ends[0] != ends[1]].unique(dim=1)
    x = torch.randn(N, 6, dtype=torch.float64) * torch.rand(N, 1, dtype=torch.float64)
    return NodeBatch(NodeGraph(x, ends, torch.randint(3, (N,))), torch.arange(N))
