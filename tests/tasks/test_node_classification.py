"""Node classification from config to table, with gradient flow watched and attention explained."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

import train
from wsl import build
from wsl.attention_maps import listening, same_class_share
from wsl.checkpoint import read_checkpoint
from wsl.config import ConfigError
from wsl.encoders.node.attention import GATv2Node
from wsl.graphs.node_graph import NodeBatch, NodeGraph, NodeGraphSpec
from wsl.results import Result
from wsl.tasks.node_classification import NodeClassification
from wsl.tasks.optimisation import adam, constant

CONF = Path(__file__).parents[2] / "conf"
SHORT = ["compare=[]", "logger=csv", "trainer.progress=none", "data.neighbours=3", "encoder=gatv2_node"]
SMALL = ["encoder.hidden=8", "encoder.heads=2"]


def config(*overrides: str) -> build.RunConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build.config(compose("train", ["experiment=digits_graph", *SHORT, *overrides]))


@pytest.mark.parametrize("name", ["digits_graph", "cora"])
def test_experiments_compose(name: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = build.config(compose("train", [f"experiment={name}"]))
    assert run.data.name == "graph" and run.task.name == "node_classification"
    assert {"gatv2_node", *run.compared()} == {"gatv2_node", "gcn", "gat", "sage"}


@pytest.mark.parametrize("name", ["gcn", "gat", "sage", "gatv2_node"])
def test_every_encoder_learns_the_embedded_graph(name: str, tmp_path: Path) -> None:
    quick = ["trainer.max_epochs=30", "trainer.check_val_every_n_epoch=15", "optimizer.lr=3e-2", "encoder.dropout=0.0"]
    result = train.run(config(f"encoder={name}", "encoder.hidden=16", *quick), tmp_path)
    assert result.test["accuracy"] > 0.7, "chance is 0.1"
    assert Result.read(tmp_path) == result


def test_a_run_leaves_gradient_flow_and_attention(tmp_path: Path) -> None:
    watched = ["callbacks=gradient_flow", "callbacks.gradient_flow.every=2", "encoder.activation=relu"]
    train.run(config(*SMALL, *watched, "trainer.max_epochs=6", "trainer.check_val_every_n_epoch=6"), tmp_path)
    assert {"gradient_flow.png", "attention.png"} <= {p.name for p in (tmp_path / "figures").iterdir()}
    with open(tmp_path / "gradient_flow.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {int(row["step"]) for row in rows} == {0, 2, 4}
    quantities = {row["quantity"] for row in rows}
    assert {"gradient_rms", "relative_update", "depth_factor", "entropy", "conservation", "direction"} <= quantities
    assert all(float(row["value"]) < 1e-4 for row in rows if row["quantity"] in ("conservation", "shift"))
    with open(tmp_path / "attention.csv", newline="") as file:
        attention = list(csv.DictReader(file))
    sums: dict[tuple[str, str], float] = {}
    for row in attention:
        key = row["layer"], row["node"]
        sums[key] = sums.get(key, 0.0) + float(row["weight"])
    assert len(sums) == 2 * 12 and all(abs(total - 1) < 1e-5 for total in sums.values())
    assert build.exported_encoder(tmp_path).spec == NodeGraphSpec(64)


def test_watching_changes_no_bit_of_the_training(tmp_path: Path) -> None:
    """With dropout, whose random numbers would show any draw that a reading took from the common generator."""
    options = [*SMALL, "trainer.max_epochs=5", "trainer.check_val_every_n_epoch=5"]
    train.run(config(*options), tmp_path / "plain")
    train.run(config(*options, "callbacks=gradient_flow", "callbacks.gradient_flow.every=1"), tmp_path / "watched")
    plain, watched = (
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("plain", "watched")
    )
    assert all(torch.equal(plain[key], watched[key]) for key in plain)


def test_groups_that_do_not_fit_are_refused() -> None:
    for override, words in (
        ("encoder=statnn", "encoder.name=statnn reads a WeightSpec or a SpecFamily, data.name=graph has"),
        ("task=classification", "task.name=classification reads a WeightSpec"),
    ):
        run = config(override)
        with pytest.raises(ConfigError, match=words):
            build.encoder(run, build.data(run))
    run = config("compile=true", "callbacks=gradient_flow")
    with pytest.raises(ConfigError, match="compile=true hides the layers"):
        build.encoder(run, build.data(run))


def test_the_loss_is_that_of_the_splits_nodes_alone() -> None:
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
    graph = NodeGraph(x, torch.tensor([[0, 1], [1, 0]]), y)
    task = NodeClassification(GATv2Node(NodeGraphSpec(4), 2, hidden=4, heads=2), adam(), constant()).eval()
    batch = NodeBatch(graph, torch.tensor([1, 4]))
    output = task.output(batch)
    assert torch.equal(output, task.encoder(batch)[[1, 4]])
    expected = torch.nn.functional.cross_entropy(output, torch.tensor([1, 0]))
    assert torch.equal(task.loss(output, batch), expected)  # type: ignore[arg-type]


def test_listening_cuts_out_single_nodes_heaviest_first() -> None:
    edges = torch.tensor([[0, 1, 2, 0], [2, 2, 0, 0]])
    weights = torch.tensor([[0.2, 0.4], [0.8, 0.6], [0.5, 0.5], [0.5, 0.5]])
    (item,) = listening([(edges, weights)], [2])
    assert item.neighbours.tolist() == [1, 0] and torch.equal(item.weights, weights[[1, 0]])


def test_same_class_share_counts_neighbours_and_their_weight() -> None:
    """Node 2 hears 0 (its class) with 0.6 and 1 with 0.2, itself with 0.2; node 0 hears 1 alone."""
    edges = torch.tensor([[0, 1, 2, 1], [2, 2, 2, 0]])
    weights = torch.tensor([[0.6], [0.2], [0.2], [1.0]])
    heard, alike = same_class_share(edges, weights, torch.tensor([5, 3, 5]))
    assert heard == pytest.approx((0.75 + 0.0) / 2) and alike == pytest.approx((0.5 + 0.0) / 2)
