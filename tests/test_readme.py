"""The commands of the README work: each is run, made short by overrides and a small zoo."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    """Command lines of the README's bash blocks, continuation lines joined, comments dropped."""
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def test_the_readme_has_commands() -> None:
    assert {"make train", "make test"} <= set(commands())


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("make ")])
def test_make_targets_exist(line: str) -> None:
    done = subprocess.run([*shlex.split(line), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def shortened(line: str, zoo: Path, folder: Path) -> list[str]:
    """The command with this interpreter, on a small zoo, with next to no work."""
    _, script, *arguments = shlex.split(line)
    arguments = [str(zoo) if a.startswith("data/") and a.endswith(".h5") else a for a in arguments]
    if script == "train.py" and not {"--help", "--info"} & set(arguments) and "resume=" not in line:
        arguments = [a for a in arguments if not a.startswith(("trainer.max_epochs", "compare"))]
        arguments += [f"data.path={zoo}", "data.build=''", "data.target=label", "compare=[]", "logger.wandb=false"]
        arguments += ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
    if script == "scripts/build_zoo.py" and not {"--help", "--describe"} & set(arguments):
        arguments = [a for a in arguments if not a.startswith(("zoo=", "zoo.limit", "out=", "zoo.images"))]
        arguments += ["zoo.limit=40", "zoo.steps=2", "zoo.val_images=180", f"out={folder / 'new.h5'}"]
    return [sys.executable, str(ROOT / script), *arguments]


@pytest.mark.parametrize(
    "line", [c for c in commands() if c.startswith("python ") and "resume=" not in c and "benchmark" not in c]
)
def test_python_commands_run(line: str, small_zoo: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        shortened(line, small_zoo, tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_scripts_that_are_named_exist() -> None:
    for script in re.findall(r"scripts/\w+\.py", TEXT):
        assert (ROOT / script).exists(), script
