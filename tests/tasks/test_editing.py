"""Editing INRs: the targets, the error by hand, symmetry through the whole task, learning, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

import train
from wsl import build
from wsl.batch import WeightBatch
from wsl.config import ConfigError, schema_of
from wsl.data.augment import Augment
from wsl.data.image_target import dilated
from wsl.data.zoo_data import ZooData
from wsl.encoders.base import Encoder, UnsupportedSpecError
from wsl.encoders.monomial import Monomial
from wsl.encoders.ng_gnn import NGGNN
from wsl.encoders.ng_transformer import NGTransformer
from wsl.encoders.scale_gmn import ScaleGMN
from wsl.encoders.unf import UNF
from wsl.results import table
from wsl.spec import WeightSpec, mlp_spec
from wsl.symmetry import act, draw
from wsl.tasks.editing import Editing
from wsl.tasks.gathered import Rows
from wsl.tasks.optimisation import adam, constant
from wsl.zoo import Zoo, ZooError, ZooWriter
from wsl.zoo.coordinates import grid

CONF = Path(__file__).parents[2] / "conf"
SINE = mlp_spec((2, 6, 5, 1), "sine", {"omega": 30.0}, output_offset=0.5)
SMALL = {"equivariant": True, "field_scale": 0.1}
EDITORS: dict[str, Callable[..., Encoder]] = {
    "ng_gnn": lambda spec, k=1: NGGNN(spec, k, width=16, layers=3, probes=8, residual=True, fourier_std=0.2, **SMALL),
    "ng_t": lambda spec, k=1: NGTransformer(
        spec, k, form="sparse", node_width=16, edge_width=8, width=16, hidden=16, edge_hidden=16, layers=2, heads=2,
        probes=8, fourier_std=0.2, **SMALL,
    ),
    "unf": lambda spec, k=1: UNF(spec, k, channels=16, **SMALL),
    "monomial": lambda spec, k=1: Monomial(spec, k, channels=(16, 16), **SMALL),
    "scale_gmn": lambda spec, k=1: ScaleGMN(spec, k, width=16, layers=3, bidirectional=True, skip=True, **SMALL),
}  # fmt: skip


class Nothing(Encoder):
    """An editor that changes nothing."""

    equivariant = True

    def forward(self, batch: WeightBatch) -> Tensor:
        return batch.values.new_zeros(len(batch), batch.spec.numel, self.out_features)


def task_of(encoder: Encoder, **options: Any) -> Editing:
    return Editing(encoder, adam(), constant(), **options)


def some(zoo: Path, target: str = "dilated_image", positions: tuple[int, ...] = (0, 1, 5, 9)) -> WeightBatch:
    data = ZooData(path=str(zoo), target=target)
    batch = data.augmented(data.dataset("val")[list(positions)], "val", 0)
    assert isinstance(batch, WeightBatch)
    return batch


def config(zoo: Path, *overrides: str) -> build.RunConfig:
    fixed = [f"data.path={zoo}", "data.build=''", "data.batch_size=16", "logger=csv", "trainer.progress=none"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build.config(compose("train", ["experiment=digits_dilation", *fixed, "compare=[]", *overrides]))


def drawn_by_hand(row: np.ndarray, side: int) -> np.ndarray:
    """What a 2-6-5-1 SIREN shows, in float64."""
    w1, b1, w2, b2, w3, b3 = np.split(row.astype(np.float64), np.cumsum([12, 6, 30, 5, 5]))
    h = np.sin(30 * (grid(side, side).astype(np.float64) @ w1.reshape(6, 2).T + b1))
    h = np.sin(30 * (h @ w2.reshape(5, 6).T + b2))
    return (h @ w3 + b3 + 0.5).reshape(side, side)


def dilated_by_hand(image: np.ndarray) -> np.ndarray:
    out = np.zeros_like(image)
    for r, c in np.ndindex(image.shape):
        out[r, c] = image[max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2].max()
    return out


def test_dilation_takes_the_brightest_neighbour() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 6, 3), dtype=np.uint8)
    found = dilated(pixels)
    assert found.dtype == np.uint8
    for image, channel in np.ndindex(5, 3):
        np.testing.assert_array_equal(found[image, ..., channel], dilated_by_hand(pixels[image, ..., channel]))


@pytest.mark.parametrize("target", ["image", "dilated_image"])
def test_the_error_of_an_edit_that_changes_nothing_is_that_of_the_networks(small_zoo: Path, target: str) -> None:
    batch = some(small_zoo, target)
    assert batch.target is not None and batch.row_ids is not None and batch.target.shape == (4, 8, 8, 1)
    with Zoo(small_zoo) as zoo:
        assert zoo.images is not None
        images = zoo.images.reshape(-1, 8, 8)[zoo.column("image_index")[batch.row_ids]]
        rows = zoo.read_rows(batch.row_ids.numpy())
    wanted = np.stack([dilated_by_hand(image) if target == "dilated_image" else image for image in images]) / 255
    shown = np.stack([drawn_by_hand(row, 8) for row in rows])
    task = task_of(Nothing(batch.spec, 1))
    output = task.output(batch)
    np.testing.assert_allclose(output.squeeze(-1).numpy(), shown, rtol=0, atol=2e-4)
    error = ((shown - wanted) ** 2).mean((1, 2))
    assert float(task.loss(output, batch)) == pytest.approx(error.mean(), rel=1e-3)
    found = task.metrics(Rows(batch.row_ids, *task.recorded(output, batch)))
    assert found == {"mse": pytest.approx(100 * error.mean(), rel=1e-3), "mse_unedited": found["mse"]}


def test_capacity_expansion_averages_the_images_of_k_networks(small_zoo: Path) -> None:
    batch = some(small_zoo)
    encoder = NGGNN(batch.spec, 3, width=8, layers=2, probes=0, equivariant=True, field_scale=0.3)
    task = task_of(encoder, networks=3)
    assert Editing.out_features(0, {"networks": 3}) == 3
    field = encoder(batch)
    assert field.shape == (4, batch.spec.numel, 3) and task.edited(batch).values.shape == (12, batch.spec.numel, 1)
    each = [task.drawn(batch.with_values(batch.values + field[..., n : n + 1]), batch) for n in range(3)]
    assert (each[0] - each[1]).abs().max() > 1e-3, "three equal networks would show nothing"
    torch.testing.assert_close(task.output(batch), torch.stack(each).mean(0))


@pytest.mark.parametrize(
    ("name", "symmetry"), [*((n, "permutation") for n in EDITORS), *((n, "sign") for n in ("monomial", "scale_gmn"))]
)
def test_edited_networks_show_the_same_whatever_the_order_of_neurons(small_zoo: Path, name: str, symmetry: str) -> None:
    batch = some(small_zoo)
    batch = WeightBatch(batch.spec, batch.values.double() * 0.2, batch.target, batch.row_ids)
    task = task_of(EDITORS[name](batch.spec).double().eval())
    task.encoder.fit_statistics(batch)
    moved = act(draw(batch.spec, len(batch), symmetries=(symmetry,), dtype=torch.float64), batch)
    shown = task.output(batch)
    assert (shown - task.drawn(batch, batch)).abs().max() > 1e-2, "an edit that changes nothing proves nothing"
    torch.testing.assert_close(task.output(moved), shown, rtol=0, atol=1e-9)
    blind = copy.copy(moved.values)
    blind[:, :6] = batch.values[:, :6]  # part of the first layer left where it was: another network
    other = task.output(WeightBatch(batch.spec, blind, batch.target, batch.row_ids))
    assert (other - shown).abs().max() > 1e-3


@pytest.mark.parametrize("name", EDITORS)
def test_a_handful_of_networks_is_learned_by_heart(small_zoo: Path, name: str) -> None:
    batch = some(small_zoo, positions=(0, 4, 8, 12))
    batch = WeightBatch(batch.spec, batch.values * 0.2, batch.target, batch.row_ids)  # smooth images
    task = task_of(EDITORS[name](batch.spec))
    task.encoder.fit_statistics(batch)
    before = float(task.loss(task.drawn(batch, batch), batch))
    optimizer = torch.optim.Adam(task.encoder.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(task.output(batch), batch).backward()
        optimizer.step()
    assert float(task.loss(task.output(batch), batch).detach()) < 0.5 * before


def test_what_a_run_leaves(small_zoo: Path, tmp_path: Path) -> None:
    twins = ["data/augment=twins", "data.augment.twins=[test]", "data.augment.twin_symmetries=[permutation]"]
    run = config(small_zoo, "trainer.max_epochs=2", "task.networks=2", *twins)
    data = build.data(run)
    task = build.task(run, build.encoder(run, data))
    trainer = build.trainer(run, task, data, tmp_path / "twins")
    trainer.fit(task, data)
    trainer.test(task, data, verbose=False)
    assert task.tested is not None and len(task.tested.row_ids) == 32
    torch.testing.assert_close(task.tested.output[:16], task.tested.output[16:], rtol=1e-3, atol=1e-4)
    result = train.run(config(small_zoo, "trainer.max_epochs=2", "encoder=ng_t_editor_small"), tmp_path / "run")
    assert result.metric == "mse" and set(result.test) >= {"mse", "mse_unedited"}
    assert (tmp_path / "run" / "figures" / "edits.png").read_bytes().startswith(b"\x89PNG")
    assert [c.header for c in table([result]).columns][2:4] == ["test mse", "unedited"]
    assert build.exported_encoder(tmp_path / "run").equivariant


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_targets_are_the_same_when_streamed(small_zoo: Path) -> None:
    held = ZooData(path=str(small_zoo), target="dilated_image", batch_size=8)
    streamed = ZooData(path=str(small_zoo), target="dilated_image", batch_size=8, memory_limit=0.0)
    assert streamed.streamed() and not held.streamed()
    targets = {int(r): t for b in held.val_dataloader() for r, t in zip(b.row_ids, b.target, strict=True)}
    seen = 0
    for batch in streamed.val_dataloader():
        for row, target in zip(batch.row_ids.tolist(), batch.target, strict=True):
            assert target.dtype == torch.uint8 and torch.equal(target, targets[row])
            seen += 1
    assert seen == len(targets) == 16


def zoo_with(path: Path, specs: tuple[WeightSpec, ...] = (SINE,), images: Any = None, **render: Any) -> Path:
    """Twelve random networks with white images, in two splits of four and a test split."""
    spec_ids = np.arange(12) % len(specs)
    values = np.random.default_rng(0).normal(0, 0.1, sum(specs[s].numel for s in spec_ids)).astype(np.float32)
    recipe = {"render": {"height": 4, "width": 4, "channels": 1, **render}}
    with ZooWriter(path, specs, 12, recipe, spec_ids=spec_ids if len(specs) > 1 else None) as zoo:
        zoo.write(0, values if len(specs) > 1 else values.reshape(12, -1))
        zoo.set_columns({"image_index": np.arange(12), "label": np.arange(12) % 2})
        zoo.set_run_ids(np.arange(12))
        zoo.set_splits({"train": np.arange(4), "val": np.arange(4, 8), "test": np.arange(8, 12)})
        zoo.set_images(np.full((12, 16), 255, np.uint8) if images is None else images)
    return path


def test_targets_are_in_the_units_of_the_networks(tmp_path: Path) -> None:
    batch = some(zoo_with(tmp_path / "nfn.h5", range=[-3.0, 2.0]), positions=(0,))
    assert batch.target is not None and torch.equal(batch.target, torch.full((1, 4, 4, 1), 2.0))
    black = np.zeros((12, 16), np.uint8)
    batch = some(zoo_with(tmp_path / "black.h5", images=black, range=[-3.0, 2.0]), positions=(0,))
    assert batch.target is not None and torch.equal(batch.target, torch.full((1, 4, 4, 1), -3.0))


def test_zoos_without_such_images_are_refused(cnn_zoo: Path, tmp_path: Path) -> None:
    relu = mlp_spec((2, 6, 5, 1), "relu")
    with pytest.raises(ZooError, match=r"2 architectures, but networks are drawn in one batch.*data\.where"):
        ZooData(path=str(zoo_with(tmp_path / "mixed.h5", (SINE, relu))), target="dilated_image")
    with pytest.raises(ZooError, match="this file has no images"):
        ZooData(path=str(cnn_zoo), target="image", where={"activation": "tanh"})
    with pytest.raises(ZooError, match=r"12 images of 16 values.*\[5, 4, 1\].*build the file again"):
        ZooData(path=str(zoo_with(tmp_path / "size.h5", height=5)), target="image")
    with pytest.raises(ZooError, match=r"from 2 coordinates to 1 channels; these have inputs \[3\]"):
        ZooData(path=str(zoo_with(tmp_path / "solid.h5", (mlp_spec((3, 4, 1)),))), target="image")
    with pytest.raises(ZooError, match="dilated_image"):
        ZooData(path=str(cnn_zoo), target="dilated")


@pytest.mark.parametrize("option", [{"rotation": 10.0}, {"mixup": 0.2}])
def test_augmentation_that_would_leave_targets_behind_is_refused(small_zoo: Path, option: dict[str, float]) -> None:
    augment = schema_of("", Augment)(**option)
    with pytest.raises(ZooError, match="its target would stay as it is"):
        ZooData(path=str(small_zoo), target="dilated_image", augment=augment)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["encoder=ng_t_small"], "task.name=editing needs a field over the parameters.*encoder.equivariant=true"),
        (["encoder=statnn"], "needs a field over the parameters"),
        (["data.target=label"], "task.name=editing needs data.target to be image or dilated_image, not 'label'"),
        (["task=classification"], "needs classes"),
        (["task=generalization"], "needs data.target to be a column of the zoo"),
        (["task=classification", "data.target=label"], "needs features of the encoder.*encoder.equivariant=false"),
    ],
)
def test_tasks_and_encoders_that_do_not_fit(small_zoo: Path, overrides: list[str], words: str) -> None:
    run = config(small_zoo, *overrides)
    with pytest.raises(ConfigError, match=words):
        build.encoder(run, build.data(run))


def test_an_editor_behind_invariants_is_refused(small_zoo: Path) -> None:
    run = config(small_zoo, "encoder=monomial_sign", "encoder.encoder.equivariant=true")
    with pytest.raises(UnsupportedSpecError, match="no field is left"):
        build.encoder(run, build.data(run))


@pytest.mark.parametrize("name", ["unf", "nfn_hnp", "monomial", "nft", "scale_gmn_editor_small"])
def test_other_encoders_edit_too(small_zoo: Path, tmp_path: Path, name: str) -> None:
    options = [f"encoder={name}", "encoder.equivariant=true", "encoder.field_scale=0.01", "trainer=debug"]
    small = ["encoder.channels=8", "encoder.blocks=1"] if name == "nft" else []
    result = train.run(config(small_zoo, *options, *small, "trainer.progress=none"), tmp_path)
    assert result.test["mse"] == pytest.approx(result.test["mse_unedited"], rel=0.2), "an editor starts by doing little"
