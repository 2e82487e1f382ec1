"""The commands of docs/cluster.md work; those of Slurm are run by tests/slurm."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ranks_of_runs import ROOT, finished, options

from wsl.results import Result

TEXT = (ROOT / "docs" / "cluster.md").read_text()
PYTHON = (sys.executable,)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def commands() -> list[str]:
    return [line for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL) for line in block.splitlines()]


def here(line: str, zoo: Path, folder: Path) -> list[str]:
    """What follows the script's name, on a small zoo, with little work and folders of its own."""
    words = shlex.split(line)
    arguments = words[words.index(next(w for w in words if w.endswith((".py", ".sbatch")))) + 1 :]
    arguments = [a.replace("runs/", f"{folder}/runs/") for a in arguments]
    given = {a.split("=")[0] for a in arguments}
    fixed = options(zoo, "trainer.max_epochs=1", f"run_root={folder}/runs")
    fixed = [a for a in fixed if a.split("=")[0] not in given]
    return sorted([*fixed, *arguments], key=lambda a: not a.startswith("--"))  # options before overrides


def test_no_command_is_left_out() -> None:
    kinds = [line.split()[0] for line in commands()]
    assert kinds.count("python") == 6 and kinds.count("torchrun") == 1 and kinds.count("sbatch") == 1
    assert len(kinds) == 8 and sum("launcher=slurm" in line for line in commands()) == 1


@pytest.mark.slow
def test_ranks_and_named_folders(small_zoo: Path, tmp_path: Path) -> None:
    ddp, torchrun, named = commands()[:3]
    finished(*here(ddp, small_zoo, tmp_path))
    launcher = (*TORCHRUN, *shlex.split(torchrun)[1:3], str(ROOT / "train.py"))
    finished(*here(torchrun, small_zoo, tmp_path), program=launcher)
    finished(*here(named, small_zoo, tmp_path))
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 3 and Result.read(tmp_path / "runs" / "mine")


@pytest.mark.slow
def test_sweep_and_table(small_zoo: Path, tmp_path: Path) -> None:
    sweep, _, collect, _ = commands()[4:]
    finished(*here(sweep, small_zoo, tmp_path))
    folder = shlex.split(collect)[-1].replace("runs/", f"{tmp_path}/runs/")
    said = finished(folder, program=(*PYTHON, str(ROOT / "scripts" / "collect.py")))
    assert "statnn" in said and "mlp" in said and "best by validation" in said


@pytest.mark.slow
def test_search(small_zoo: Path, tmp_path: Path) -> None:
    line = commands()[7].replace("runs/", f"{tmp_path}/runs/").replace("conf/", f"{ROOT}/conf/")
    given = [word for word in options(small_zoo, "trainer.max_epochs=1") if not word.startswith(("encoder", "compare"))]
    said = finished(*shlex.split(line)[2:], *given, program=(*PYTHON, str(ROOT / "scripts" / "search.py")))
    assert "best of 3: " in said and len(list((tmp_path / "runs" / "search_first").glob("*/result.json"))) == 3


@pytest.mark.parametrize("script", ["train.sbatch", "agents.sbatch"])
def test_batch_scripts_parse(script: str) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    done = subprocess.run([bash, "-n", str(ROOT / "scripts" / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
