"""Write what tests/test_earlier_files.py reads in later releases: ``python tests/earlier/make.py tests/earlier/NAME``.

A folder is made once, when a format gets a new version, and then kept as it is; one that cannot be read any more is a
break of compatibility, to be mended or to be said in CHANGELOG.md, never to be made again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from wsl import build  # noqa: E402
from wsl.callbacks.moved import moved  # noqa: E402
from wsl.checkpoint import AtomicCheckpointIO, read_checkpoint  # noqa: E402
from wsl.data.zoo_data import ZooData  # noqa: E402
from wsl.spec import mlp_spec  # noqa: E402
from wsl.zoo import Zoo, ZooWriter  # noqa: E402

OPTIONS = (
    "data.path=zoo.h5", "data.build=''", "data.batch_size=4", "encoder=mlp", "encoder.hidden=[4]", "scheduler=constant",
    "trainer.max_epochs=2", "trainer.progress=none", "logger=csv", "compare=[]",
)  # fmt: skip


def write_zoos() -> None:
    """``zoo.h5`` of one architecture, ``mixed.h5`` of two."""
    rng = np.random.default_rng(0)
    specs = (mlp_spec((2, 3, 1), "sine", {"omega": 30.0}, output_offset=0.5), mlp_spec((2, 4, 1), "tanh"))
    for path, held in (("zoo.h5", specs[:1]), ("mixed.h5", specs)):
        ids = np.arange(16) % len(held)
        values = np.concatenate([rng.normal(size=held[i].numel) for i in ids]).astype(np.float32)
        with ZooWriter(path, held, 16, {"made": "for later releases"}, spec_ids=ids) as zoo:
            zoo.write(0, values.reshape(16, -1) if len(held) == 1 else values)
            zoo.set_columns(
                {"label": np.arange(16) % 2, "score": np.linspace(0, 1, 16), "name": [f"ä{i}" for i in range(16)]}
            )
            zoo.set_splits({"train": np.arange(8), "val": np.arange(8, 12), "test": np.arange(12, 16)})


def said(folder: Path) -> dict[str, Any]:
    """What a later release must find: digests, and what the exported encoder answers to the test rows."""
    with torch.no_grad():
        answers = build.exported_encoder(folder / "run")(ZooData(path=str(folder / "zoo.h5")).dataset("test").rows)
    return {
        "digests": {name: Zoo(folder / name).digest for name in ("zoo.h5", "mixed.h5")},
        "answers": answers.tolist(),
    }


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    os.chdir(folder)
    write_zoos()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        run = build.config(compose("train", list(OPTIONS)))
    train.run(run, Path("run"))
    for path in Path("run/checkpoints").iterdir():  # of no particular machine
        checkpoint = read_checkpoint(path)
        checkpoint["callbacks"] = moved(
            checkpoint["callbacks"], path.parent.resolve(), Path("/earlier/run/checkpoints")
        )
        path.unlink()
        AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    shutil.rmtree("run/figures")
    for name in ("run/provenance.json", "run/code.diff", "run/checkpoints/last.previous.ckpt"):
        Path(name).unlink(missing_ok=True)
    Path("said.json").write_text(json.dumps(said(Path()), indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
