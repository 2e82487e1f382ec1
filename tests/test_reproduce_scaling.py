"""The scaling table on a small zoo: what respects scaling stays, what does not moves, nothing is trained twice."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scripts.reproductions import scaling


def arguments(zoo: Path, folder: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    scaling.add_arguments(parser)
    out = [
        "--json",
        str(folder / "tau.json"),
        "--markdown",
        str(folder / "tau.md"),
        "--figure",
        str(folder / "tau.png"),
    ]
    small = ["trainer.max_epochs=2", "trainer.progress=none", f"data.path={zoo}"]
    encoders = ["--encoders", "monomial", "statnn", "--seeds", "0", "1"]
    return parser.parse_args([*small, *encoders, "--folder", str(folder / "runs"), *out])


def test_only_what_respects_scaling_keeps_its_tau(cnn_zoo: Path, tmp_path: Path) -> None:
    args = arguments(cnn_zoo, tmp_path)
    scaling.run(args)
    found = json.loads((tmp_path / "tau.json").read_text())["tau"]
    for monomial, statnn in zip(found["monomial"], found["statnn"], strict=True):
        assert max(monomial) - min(monomial) < 1e-3
        assert max(statnn) - min(statnn) > 1e-2
    lines = (tmp_path / "tau.md").read_text().splitlines()
    assert len(lines) == 4 and lines[2].startswith("| monomial | ") and "±" in lines[3]
    assert (tmp_path / "tau.png").read_bytes().startswith(b"\x89PNG")

    results = sorted((tmp_path / "runs").glob("*/result.json"))
    before = [path.stat().st_mtime_ns for path in results]
    assert [p.parent.name for p in results] == ["monomial_seed0", "monomial_seed1", "statnn_seed0", "statnn_seed1"]
    scaling.run(args)
    assert [path.stat().st_mtime_ns for path in results] == before
    assert json.loads((tmp_path / "tau.json").read_text())["tau"] == found
