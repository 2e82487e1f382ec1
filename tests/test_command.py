"""The command ``train.py`` as a process: help, sweeps, resuming."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from ranks_of_runs import ROOT, same_run

from wsl.results import Result


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments], cwd=cwd, capture_output=True, text=True, timeout=250,
        check=False,
    )  # fmt: skip


def test_help_lists_groups_and_examples(tmp_path: Path) -> None:
    done = command("--help", cwd=tmp_path)
    assert done.returncode == 0
    for words in ("encoder:", "ng_gnn", "statnn", "python train.py --multirun", "trainer:", "max_epochs"):
        assert words in done.stdout


def test_multirun_makes_one_folder_per_job_and_errors_are_plain(small_zoo: Path, tmp_path: Path) -> None:
    fixed = [f"data.path={small_zoo}", "data.build=''", "compare=[]", "trainer=debug", "logger=csv"]
    done = command("--multirun", "encoder=statnn,mlp", *fixed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = sorted((tmp_path / "runs").glob("sweep_*/*/result.json"))
    assert [json.loads(f.read_text())["encoder"] for f in found] == ["statnn", "mlp"]

    done = command("encoder=statnn", *fixed, "trainer.max_epochs=0", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: trainer.max_epochs=0: should be greater than 0"


def test_resume_from_the_command_line(small_zoo: Path, tmp_path: Path) -> None:
    fixed = [f"data.path={small_zoo}", "data.build=''", "compare=[]", "encoder=statnn", "logger=csv"]
    done = command(*fixed, "scheduler=constant", "trainer.max_epochs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    done = command(f"resume={folder}", "trainer.max_epochs=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Result.read(folder).epochs == 3
    done = command(f"resume={folder}", "optimizer.lr=0.3", cwd=tmp_path)
    assert done.returncode == 1 and "optimizer.lr" in done.stderr and "0.3" in done.stderr


def test_options_of_another_encoder_are_those_of_the_resumed_run(small_zoo: Path, tmp_path: Path) -> None:
    """Hydra composes the default encoder, which has no such option, before the run's config is read."""
    fixed = [f"data.path={small_zoo}", "data.build=''", "compare=[]", "encoder=mlp", "logger=csv", "trainer=debug"]
    folder = tmp_path / "run"
    done = command(*fixed, "encoder.hidden=[3]", f"folder={folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = command(f"resume={folder}", "encoder.hidden=[3]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = command(f"resume={folder}", "encoder.hiden=[3]", cwd=tmp_path)
    assert done.returncode == 1 and "unknown key encoder.hiden=[3]; did you mean 'hidden'?" in done.stderr, done.stderr
    (folder / "provenance.json").write_text("[{")
    (folder / "result.json").unlink()
    done = command(f"resume={folder}", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"error: {folder / 'provenance.json'} cannot be read" in done.stderr


def test_killed_after_a_checkpoint_a_run_ends_as_if_it_had_not_been(small_zoo: Path, tmp_path: Path) -> None:
    fixed = [
        f"data.path={small_zoo}",
        "data.build=''",
        "data.batch_size=8",
        "compare=[]",
        "encoder=statnn",
        "logger=csv",
    ]
    fixed += ["encoder.dropout=0.3", "trainer.max_epochs=40"]
    whole = command(*fixed, f"run_root={tmp_path / 'whole'}", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    arguments = [sys.executable, str(ROOT / "train.py"), *fixed, f"run_root={tmp_path / 'part'}"]
    process = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("part/*/checkpoints/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    (folder,) = (tmp_path / "part").iterdir()
    assert not (folder / "result.json").exists(), "killed too late to show anything"
    resumed = command(f"resume={folder}", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    (other,) = (tmp_path / "whole").iterdir()
    same_run(other, folder, kills=1)
