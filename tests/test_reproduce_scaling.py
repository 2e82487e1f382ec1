"""The scaling table on a small zoo: what respects scaling stays, what does not moves, nothing is trained twice."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from scripts.reproductions import scaling
from wsl.command_line import with_overrides
from wsl.run_folder import RunFolderError

TAU = {"monomial": [[0.5, 0.5, 0.5, 0.5, 0.5]], "statnn": [[0.6, 0.5, 0.4, 0.3, 0.2], [0.8, 0.5, 0.4, 0.3, 0.2]]}


def arguments(zoo: Path, folder: Path, encoder: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    scaling.add_arguments(parser)
    small = ["trainer.max_epochs=2", "trainer.progress=none", f"data.path={zoo}", "data.build=''"]
    out = ["--folder", str(folder / "runs"), "--json", str(folder / "tau.json")]
    args = with_overrides(parser, ["--encoders", encoder, *small[:2], *out, "--seeds", "0", *small[2:]])
    assert args.overrides == small and args.encoders == [encoder] and args.seeds == [0]
    return args


@pytest.mark.parametrize(("encoder", "flat"), [("monomial", True), ("statnn", False)])
def test_only_what_respects_scaling_keeps_its_tau(encoder: str, flat: bool, cnn_zoo: Path, tmp_path: Path) -> None:
    args = arguments(cnn_zoo, tmp_path, encoder)
    scaling.run(args)
    found = json.loads((tmp_path / "tau.json").read_text())["tau"]
    (tau,) = found[encoder]
    assert len(tau) == 5 and (max(tau) - min(tau) < 1e-3) == flat
    kept = [tmp_path / "runs" / f"{encoder}_seed0" / name for name in ("result.json", "tau.json")]
    before = [file.stat().st_mtime_ns for file in kept]
    scaling.run(args)
    assert [file.stat().st_mtime_ns for file in kept] == before, "it was trained or tested again"
    assert json.loads((tmp_path / "tau.json").read_text())["tau"] == found
    args.overrides[0] = "optimizer.lr=0.5"
    with pytest.raises(RunFolderError, match=r"optimizer\.lr"):
        scaling.run(args)


def test_table_and_figure(tmp_path: Path) -> None:
    lines = scaling.markdown(TAU, {"monomial": 254_619, "statnn": 10})
    assert lines[2] == "| monomial | 254,619 |" + " 0.5000 |" * 5
    assert lines[3].startswith("| statnn | 10 | 0.7000 ± 0.1414 | 0.5000 ± 0.0000 |")
    scaling.draw(TAU, tmp_path / "tau.png")
    assert (tmp_path / "tau.png").read_bytes().startswith(b"\x89PNG")
