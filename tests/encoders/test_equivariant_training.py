"""The equivariant encoders learn, and run through the main job from their config files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir

import train
from wsl import build
from wsl.batch import WeightBatch
from wsl.encoders.base import Encoder
from wsl.encoders.deep_set import DeepSet
from wsl.encoders.nfn import NFNHNP, NFNNP
from wsl.encoders.nft import NFT
from wsl.encoders.unf import UNF
from wsl.spec import mlp_spec

CONF = Path(__file__).parents[2] / "conf"
SPEC = mlp_spec([2, 6, 5, 1], "sine", {"omega": 30.0})
ENCODERS = {
    "unf": lambda: UNF(SPEC, 2, channels=8, head=(32,)),
    "nfn_np": lambda: NFNNP(SPEC, 2, channels=(8, 8), head=(32,)),
    "nfn_hnp": lambda: NFNHNP(SPEC, 2, channels=(8, 8), head=(32,)),
    "nft": lambda: NFT(SPEC, 2, channels=8, blocks=1, heads=2, head=(32,), fourier_features=8, fourier_std=0.3),
    "deep_set": lambda: DeepSet(SPEC, 2, channels=8, head=(32,)),
}
SMALL = {"unf": ["encoder.channels=4"], "nft": ["encoder.channels=8", "encoder.blocks=1"]}


def sized_networks(count: int) -> WeightBatch:
    """Random weights of two classes: those of the second are twice as large."""
    label = torch.arange(count) % 2
    values = torch.randn(count, SPEC.numel, 1) * 0.3 * (1 + label)[:, None, None]
    return WeightBatch(SPEC, values, target=label)


@pytest.mark.parametrize("name", ENCODERS)
def test_learns_to_tell_sizes_of_weights_apart(name: str) -> None:
    encoder: Encoder = ENCODERS[name]()
    encoder.fit_statistics(sized_networks(256))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-2)
    for _ in range(120):
        batch = sized_networks(32)
        optimizer.zero_grad()
        F.cross_entropy(encoder(batch), batch.target).backward()
        optimizer.step()
    fresh = sized_networks(400)
    assert (encoder.eval()(fresh).argmax(1) == fresh.target).float().mean() > 0.9


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "unf" else pytest.mark.slow) for n in ENCODERS])
def test_trains_through_the_main_job(name: str, small_zoo: Path, tmp_path: Path) -> None:
    fixed = [f"data.path={small_zoo}", "data.build=''", "data.batch_size=16", "logger=csv", "trainer.progress=none"]
    chosen = ["compare=[]", f"encoder={name}", "trainer.max_epochs=2", "encoder.head=[16]", *SMALL.get(name, [])]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = build.config(compose("train", [*fixed, *chosen]))
    assert 0 <= train.run(run, tmp_path).test["accuracy"] <= 1
    assert (tmp_path / "model.safetensors").exists()
