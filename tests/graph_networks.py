"""Networks of several architectures for the tests of graph encoders, NG-GNN built for them, and a measure of change."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from graph_specs import random_batch
from torch import Tensor

from wsl.batch import MixedWeightBatch
from wsl.encoders.ng_gnn import NGGNN
from wsl.spec import WeightSpec, mlp_spec
from wsl.spec.family import SpecFamily
from wsl.zoo.build.wild_cnn import WildCNN

CNNS = (
    WildCNN(3, (4, 6), (3, 5), ("relu", "tanh"), (-1, -1), 5),
    WildCNN(3, (4, 8, 4), (3, 3, 3), ("gelu", "relu", "tanh"), (-1, -1, 0), 5),
    WildCNN(3, (6, 4, 4, 6), (5, 3, 1, 3), ("relu", "identity", "sigmoid", "relu"), (-1, -1, 0, 0), 5),
)
ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "identity")
SINE = mlp_spec([2, 5, 4, 3], "sine", {"omega": 3.0}, output_offset=0.5)


@cache
def family() -> SpecFamily:
    return SpecFamily(tuple(cnn.spec() for cnn in CNNS))


def mixed(size: int = 2, specs: tuple[WeightSpec, ...] | None = None) -> MixedWeightBatch:
    parts = [random_batch(spec, size, seed) for seed, spec in enumerate(family() if specs is None else specs)]
    return MixedWeightBatch.collate(parts).select(torch.arange(size * len(parts)).roll(3))


def built(spec: WeightSpec | SpecFamily, **options: Any) -> NGGNN:
    torch.manual_seed(1)
    return NGGNN(spec, 4, **{"width": 8, "layers": 3, "probes": 0, "fourier_std": 0.5} | options).double().eval()


def change(after: Tensor, before: Tensor) -> float:
    after, before = after.detach(), before.detach()
    return float((after - before).abs().max() / (before - before.mean(0)).abs().max())
