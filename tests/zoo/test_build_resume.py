"""Builds of trained zoos that are killed go on where they were, and give the same bytes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from wsl.config import validated
from wsl.zoo import Zoo
from wsl.zoo.build.kinds import KINDS, build_zoo
from wsl.zoo.build.work_folder import WorkFolder

ROOT = Path(__file__).parents[2]
RECIPES: dict[str, dict[str, Any]] = {
    "wild_park": {
        "images": {"train": "digits", "test": None},
        "test_images": 360,
        "limit": 300,
        "runs": 24,
        "depths": [2, 3],
        "widths": [2, 4],
        "kernels": [3],
        "checkpoints": [6],
        "batch_size": 30,
        "block": 3,
    },
    "rnn": {"digits": 1, "held_out": 0.3, "runs": 24, "hidden": 8, "checkpoints": [60], "block": 3},
}


@pytest.mark.parametrize("kind", RECIPES)
def test_killed_and_restarted_gives_the_same_file(kind: str, tmp_path: Path) -> None:
    recipe = KINDS[kind].recipe.model_validate(RECIPES[kind])
    code = (
        "import json, sys; from pathlib import Path; from wsl.zoo.build.kinds import KINDS, build_zoo; "
        "build_zoo(KINDS[sys.argv[1]].recipe.model_validate(json.loads(sys.argv[2])), Path(sys.argv[3]), threads=1)"
    )
    target, work = tmp_path / "zoo.h5", tmp_path / "zoo.h5.partial"
    arguments = [kind, json.dumps(RECIPES[kind]), str(target)]
    with subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT) as process:
        deadline = time.monotonic() + 120
        while len(list(work.glob("block_*.npz"))) < 2 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    kept = len(list(work.glob("block_*.npz")))
    assert process.returncode == -signal.SIGKILL and 2 <= kept < 8 and not target.exists()
    fitted: list[int] = []
    save = WorkFolder.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkFolder, "save", lambda self, block, arrays: (fitted.append(block), save(self, block, arrays)))
        build_zoo(recipe, target, progress=False)
    assert len(fitted) == 8 - kept and not work.exists() and len(Zoo(target)) == 24
    assert build_zoo(recipe, tmp_path / "straight.h5", progress=False, threads=1).read_bytes() == target.read_bytes()


@pytest.mark.parametrize(
    "name", ["wild_park_digits", "wild_park_cifar10", "wild_park_fashion_mnist", "rnn_small", "rnn_addition"]
)
def test_recipes_of_the_config_folder_are_valid(name: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        values = OmegaConf.to_container(compose("build_zoo", [f"zoo={name}"]).zoo)
    assert isinstance(values, dict)
    schema = KINDS[values["kind"]].recipe
    recipe = validated(schema, values)  # type: ignore[arg-type]
    assert set(values) == set(schema.model_fields) and recipe.runs >= 300  # type: ignore[attr-defined]
