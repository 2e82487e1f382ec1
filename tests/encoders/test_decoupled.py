"""Decoupled node classifiers: what they compute, that they are pruned once, and train in mini-batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

import train
from wsl import build
from wsl.encoders.node.decoupled import APPNP, SGC, Decoupled, Heat
from wsl.graphs.node_graph import NodeBatch, NodeGraph, NodeGraphSpec
from wsl.nn.sparse.propagation import SourceLists, propagate

CONF = Path(__file__).parents[2] / "conf"
KINDS: dict[str, type[Decoupled]] = {"sgc": SGC, "appnp": APPNP, "heat": Heat}


def batch() -> NodeBatch:
    ends = torch.randint(20, (2, 60))
    return NodeBatch(NodeGraph(torch.randn(20, 5), ends, torch.randint(3, (20,))), torch.tensor([1, 5, 6, 11]))


@pytest.mark.parametrize("kind", KINDS)
def test_nodes_are_classified_one_by_one(kind: str) -> None:
    encoder, given = KINDS[kind](NodeGraphSpec(5), 3, hops=4, threshold=0.2, hidden=8).eval(), batch()  # type: ignore[call-arg]
    encoder.fit_statistics(given)
    found = propagate(SourceLists.of(given.graph.edge_index, 20), given.graph.x, encoder.theta, 0.2)
    own = found.x[given.row_ids]
    x = (found.x - own.mean(0)) / own.std(0, correction=0)
    first, second = encoder.layers
    expected = second(encoder.norms[0](first(x).relu()))
    assert torch.allclose(encoder(given), expected, atol=1e-5)
    assert torch.allclose(encoder.rows(given), encoder(given)[given.row_ids], atol=1e-6)
    assert encoder.costs(given.graph)[0].macs == found.updates < found.all_updates


def test_mini_batches_and_pruned_weights_through_the_main_job(tmp_path: Path) -> None:
    fixed = ["experiment=unifews_digits", "encoder=appnp", "~encoder.norm", "~encoder.input_dropout", "logger=csv"]
    fixed += ["encoder.hidden=16", "encoder.threshold=0.05", "data.batch_size=256", "trainer.progress=none"]
    fixed += ["trainer.max_epochs=8", "trainer.check_val_every_n_epoch=2", "sparsity.edge_target=null"]
    fixed += ["sparsity.edge_threshold=0.0", "sparsity.weight_target=0.5", "sparsity.ramp=2", "sparsity.freeze=6"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = build.config(compose("train", fixed))
    result = train.run(run, tmp_path)
    assert result.test["accuracy"] > 0.8
    steps = (tmp_path / "metrics.csv").read_text()
    assert "sparsity/weight_sparsity" in steps
    encoder = build.exported_encoder(tmp_path)
    masks = [layer.sieve.kept for layer in encoder.layers]  # type: ignore[attr-defined]
    assert [round(float(mask.double().mean()), 2) for mask in masks] == [0.5, 0.5]
