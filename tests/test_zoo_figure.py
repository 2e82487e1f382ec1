"""The card and the figure of zoo files of every kind: one architecture, several, many, recurrent, imported."""

from __future__ import annotations

import errno
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from specs import gru_spec

from wsl.spec import WeightSpec, mlp_spec
from wsl.zoo import Zoo, ZooError, ZooWriter
from wsl.zoo.architectures import activations, depth, kinds, widths
from wsl.zoo.card import full_card, spread
from wsl.zoo.importers.networks import Architecture, Conv, spec_of
from wsl.zoo.verify import verify_zoo
from wsl.zoo_figure import draw_zoo

ROWS = 40


def cnn() -> WeightSpec:
    """Two convolutions, the second with a skip to part of its channels' successors."""
    convs = (
        Conv(1, 2, 3, "relu", padding=1),
        Conv(2, 3, 3, "tanh", padding=1),
        Conv(3, 4, 3, "relu", padding=1, skip=0),
    )
    return spec_of(Architecture(convs, ((4, 3),), ("layers.0", "layers.1", "layers.2", "fc"), side=8))


def write(path: Path, specs: tuple[WeightSpec, ...], recipe: dict[str, object] | None = None) -> Zoo:
    rng = np.random.default_rng(0)
    ids = np.arange(ROWS) % len(specs)
    with ZooWriter(path, specs, ROWS, recipe or {}, spec_ids=ids) as zoo:
        flat = [rng.normal(size=specs[i].numel).astype(np.float32) for i in ids]
        zoo.write(0, np.stack(flat) if len(specs) == 1 else np.concatenate(flat))
        loss = rng.normal(size=ROWS)
        loss[3] = np.nan
        columns = {"label": np.arange(ROWS) % 3, "test_accuracy": rng.uniform(size=ROWS), "loss": loss}
        zoo.set_columns(
            {**columns, "optimizer": np.array(["adam", "sgd"] * (ROWS // 2)), "source_index": np.arange(ROWS)}
        )
        zoo.set_splits({"train": np.arange(25), "val": np.arange(25, 30), "test": np.arange(30, 38)})
    return Zoo(path)


def printed(zoo: Zoo) -> str:
    console = Console(width=200, file=open("/dev/null", "w"), record=True)  # noqa: SIM115
    with console.file:
        console.print(full_card(zoo))
    return console.export_text()


def test_the_card_says_what_is_in_the_file(tmp_path: Path) -> None:
    recipe = {
        "reference": "Someone 2024",
        "licence": "CC-BY 4.0",
        "config": {"seed": 3, "widths": [1, 2]},
        "left_out": [{"name": "a", "kind": "not finite"}, {"name": "b", "kind": "duplicate"}],
    }
    text = printed(write(tmp_path / "z.h5", (mlp_spec((2, 5, 3)), mlp_spec((2, 4), "tanh"), gru_spec()), recipe))
    for expected in (
        "3 architectures", "40 of 40 runs", "train 25, val 5, test 8, 2 in none", "2-5-3", "adam 20, sgd 20",
        "1 not known", "2 networks: 1 not finite, 1 duplicate", "Someone 2024", "CC-BY 4.0", "config.seed",
        "1, 2", "gru",
    ):  # fmt: skip
        assert expected in text, (expected, text)
    assert text.index("Someone 2024") < text.index("config.seed")


def test_a_file_that_says_little(tmp_path: Path) -> None:
    text = printed(write(tmp_path / "z.h5", (mlp_spec((2, 5, 3)),)))
    assert "the file does not say how it was made" in text and "1 architecture, 33 parameters" in text


def test_spread() -> None:
    assert spread(np.array([1.0, 1.0, np.nan])) == "1 in every row, 1 not known"
    assert spread(np.array([np.nan])) == "not known"
    shown = spread(np.array([0.0, 0.0, 0.0, 1.0]))
    assert shown.startswith("mean 0.25, 0 |█") and shown.endswith("▃| 1")


def test_architectures_in_words() -> None:
    mlp = mlp_spec((2, 32, 32, 1), "sine")
    assert (widths(mlp), depth(mlp), activations(mlp), kinds(mlp)) == ("2-32-32-1", 3, ("sine",), ("linear",))
    wild = cnn()
    assert (widths(wild), depth(wild)) == ("1-2-3-(2+2)-3", 4)
    assert set(activations(wild)) == {"relu", "tanh"} and kinds(wild) == ("conv", "linear")
    assert "gru" in kinds(gru_spec()) and depth(gru_spec()) >= 2


@pytest.mark.parametrize("kind", ["one", "few", "many"])
def test_the_figure(tmp_path: Path, kind: str) -> None:
    specs = {
        "one": (cnn(),),
        "few": (mlp_spec((2, 5, 3)), gru_spec(), cnn()),
        "many": tuple(mlp_spec((2, 3 + n, *([4] * (n % 3)), 2)) for n in range(20)),
    }[kind]
    path = draw_zoo(write(tmp_path / "z.h5", specs), tmp_path / "figures" / "z.png")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    checks = {check.name: check.status for check in verify_zoo(tmp_path / "z.h5", sample=6)}
    assert "FAILED" not in checks.values() and checks["runs again (6 rows)"] == "ok", checks
    assert pixels.shape[1] > 1000 and pixels.shape[0] > 400 and pixels.std() > 10


def test_a_figure_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder is a file or below one, or the disk fills up: nothing is left behind, an earlier figure stays."""
    zoo = write(tmp_path / "z.h5", (mlp_spec((2, 5, 3)),))
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ZooError, match=rf"{folder}/z\.png: cannot be written .*a file stands where"):
            draw_zoo(zoo, folder / "z.png")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("wsl.zoo.temporary._sync", full)
    (tmp_path / "old.png").write_bytes(b"earlier")
    for name in ("z.png", "old.png"):
        with pytest.raises(ZooError, match=rf"{name}: cannot be written \(No space left on device\); free some space"):
            draw_zoo(zoo, tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "old.png", "z.h5"]
    assert (tmp_path / "old.png").read_bytes() == b"earlier"


def test_the_script_describes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "z.h5", (mlp_spec((2, 5, 3)),)).close()
    location = importlib.util.spec_from_file_location("build_zoo", Path(__file__).parents[1] / "scripts/build_zoo.py")
    assert location is not None and location.loader is not None
    script = importlib.util.module_from_spec(location)
    sys.modules["build_zoo"] = script
    try:
        location.loader.exec_module(script)
        script.describe(["--describe", str(tmp_path / "z.h5")])
    finally:
        del sys.modules["build_zoo"]
    assert (tmp_path / "z.png").stat().st_size > 10_000
    assert "z.png" in capsys.readouterr().out
