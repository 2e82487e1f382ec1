"""Every encoder in mixed precision, as ``trainer=gpu`` has it: bfloat16 by the rules of a CPU and by those of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from as_on_gpu import AsOnGPU
from graph_networks import family, mixed
from specs import cnn_spec

from encoders.test_symmetry import CASES
from wsl.batch import MixedWeightBatch, WeightBatch
from wsl.encoders.base import Encoder
from wsl.encoders.gatv2 import GATv2Encoder
from wsl.encoders.ng_gnn import NGGNN
from wsl.encoders.ng_transformer import NGTransformer
from wsl.encoders.probe import ProbeMLP
from wsl.encoders.scale_gmn import ScaleGMN
from wsl.encoders.statnn import StatNN
from wsl.spec import WeightSpec
from wsl.spec.family import SpecFamily

RULES: dict[str, Callable[[], AbstractContextManager[Any]]] = {"cpu": nullcontext, "gpu": AsOnGPU}
NGT = partial(NGTransformer, node_width=8, edge_width=8, width=8, heads=2, layers=2)
#: of any architectures, with edge lists, on a CNN and on a mixed batch
OF_FAMILIES: dict[str, Callable[[Any], Encoder]] = {
    "ng_gnn": lambda s: NGGNN(s, 4, width=16, probes=3, probe_size=8, readout="attention"),
    "ng_t": lambda s: NGT(s, 4, probes=3, probe_size=8),
    "ng_t_token": lambda s: NGT(s, 4, readout="class_token", form="sparse", fourier_features=0),
    "ng_t_dropout": lambda s: NGT(s, 4, dropout=0.1, readout="mean"),
    "gatv2": lambda s: GATv2Encoder(s, 4, width=16, probes=0, readout="attention"),
    "scale_gmn": lambda s: ScaleGMN(s, 4, width=16, bidirectional=True),
    "statnn": lambda s: StatNN(s, 4, hidden=(16,)),
    "probe_mlp": lambda s: ProbeMLP(s, 4, probes=3, probe_size=8, hidden=(16,)),
}


def check(encoder: Encoder, batch: WeightBatch | MixedWeightBatch, rules: str) -> None:
    """A training step runs, and its output is that of float32 but for rounding."""
    encoder.fit_statistics(batch)
    encoder.eval()
    with torch.no_grad():
        expected = encoder(batch)
    encoder.train()
    with RULES[rules]():
        with torch.autocast("cpu", torch.bfloat16):
            loss = encoder(batch).float().square().mean()
            encoder(batch).float().square().mean().backward()
        loss.backward()  # as Lightning does, and above as some do
        grads = [p.grad for p in encoder.parameters() if p.grad is not None]
        assert grads and all(bool(g.isfinite().all()) for g in grads)
        encoder.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found = encoder(batch).float()
    assert (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES])
def test_on_networks_of_one_architecture(case: Any, rules: str) -> None:
    torch.manual_seed(0)
    check(case.build(case.spec), WeightBatch(case.spec, torch.randn(6, case.spec.numel, 1) * case.scale), rules)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", OF_FAMILIES)
@pytest.mark.parametrize("zoo", ["cnn", "mixed"])
def test_on_convolutional_networks_and_mixed_zoos(zoo: str, name: str, rules: str) -> None:
    torch.manual_seed(0)
    spec: WeightSpec | SpecFamily = cnn_spec() if zoo == "cnn" else family()
    batch = WeightBatch(spec, torch.randn(4, spec.numel, 1) * 0.3) if isinstance(spec, WeightSpec) else mixed()
    check(OF_FAMILIES[name](spec), batch.with_values(batch.values.float()), rules)
