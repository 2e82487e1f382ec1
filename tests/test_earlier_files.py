"""Zoos, runs and exported models of earlier formats (tests/earlier) are read as on the day that they were written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import initialize_config_dir

import train
from wsl import build, run_config
from wsl.checkpoint import AtomicCheckpointIO, read_checkpoint
from wsl.config import ConfigError
from wsl.data.zoo_data import ZooData
from wsl.results import Result
from wsl.zoo import Zoo

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(path for path in (ROOT / "tests" / "earlier").iterdir() if (path / "said.json").exists())


@pytest.fixture(params=FOLDERS, ids=lambda path: path.name)
def earlier(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, in which the program runs; nothing of it is where it was written."""
    folder = Path(shutil.copytree(request.param, tmp_path / "copy"))
    monkeypatch.chdir(folder)
    return folder


def test_there_is_one() -> None:
    assert FOLDERS


def test_zoos(earlier: Path) -> None:
    digests = json.loads((earlier / "said.json").read_text())["digests"]
    for name, digest in digests.items():
        zoo = Zoo(earlier / name)
        assert zoo.digest == zoo.content_digest() == digest
        assert len(zoo) == 16 and zoo.column("name")[3] == "ä3" and np.isfinite(zoo.read_mixed(0, 16)[0]).all()


def test_exported_models(earlier: Path) -> None:
    answers = json.loads((earlier / "said.json").read_text())["answers"]
    rows = ZooData(path="zoo.h5").dataset("test").rows
    with torch.no_grad():
        assert torch.allclose(build.exported_encoder(Path("run"))(rows), torch.tensor(answers), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("numbered", [True, False])
def test_runs_go_on(earlier: Path, numbered: bool) -> None:
    """Also from a checkpoint of before formats were numbered."""
    last = Path("run/checkpoints/last.ckpt")
    checkpoint = read_checkpoint(last)
    before, weights = Result.read(Path("run")), checkpoint["state_dict"]
    if not numbered:
        del checkpoint["wsl"]
        AtomicCheckpointIO().save_checkpoint(checkpoint, last)
    (earlier / "run" / "checkpoints" / "last.previous.ckpt").unlink(missing_ok=True)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        run = run_config._resumed(Path("run"), ["resume=run", "trainer.max_epochs=3"])
    after = train.run(run, Path("run"))
    assert (before.epochs, after.epochs) == (2, 3) and after.val["accuracy"] >= before.val["accuracy"]
    found = read_checkpoint(last)
    assert found["global_step"] == checkpoint["global_step"] + 2
    assert any(not torch.equal(found["state_dict"][name], weights[name]) for name in weights)


def test_a_later_export_is_refused(earlier: Path) -> None:
    card = json.loads(Path("run/model.json").read_text())
    assert card["version"] == 1
    Path("run/model.json").write_text(json.dumps(card | {"version": 2, "wsl": "9.9"}))
    with pytest.raises(ConfigError, match=r"model\.json is of version 2, written by release 9\.9; .*reads version 1"):
        build.exported_encoder(Path("run"))
