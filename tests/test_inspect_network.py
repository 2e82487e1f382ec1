"""The inspection script: every kind of target, the size of the group, plain errors."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from specs import attention_spec, gru_spec
from torch import nn

from wsl.spec import WeightSpec, mlp_spec
from wsl.zoo.writer import ZooWriter

SCRIPT = Path(__file__).parents[1] / "scripts" / "inspect_network.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    found = importlib.util.spec_from_file_location("inspect_network", SCRIPT)
    module = importlib.util.module_from_spec(found)
    sys.modules["inspect_network"] = module
    found.loader.exec_module(module)
    return module


def test_the_size_of_the_group_is_counted(script: ModuleType) -> None:
    count = script.log10_permutations(mlp_spec([2, 5, 4, 1]))
    assert count == pytest.approx(math.log10(math.factorial(5) * math.factorial(4)))
    assert script.log10_permutations(attention_spec(6, 2, 3)) == pytest.approx(math.log10(2 * 6 * 6))
    columns = script.symmetry_group(mlp_spec([2, 32, 32, 10, 1], "sine", {"omega": 30.0})).columns
    cells = [list(column.cells) for column in columns]
    assert cells[0] == ["permutation", "scaling", "sign", "phase"]
    assert cells[2] == ["(32!)^2·10! = 10^77.4", "none", "2^74", "ℤ^74 half turns"]
    relu = [list(column.cells) for column in script.symmetry_group(mlp_spec([2, 3, 4, 1])).columns]
    assert relu[2][1] == "7 dimensions (d > 0)"


def output(script: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert script.main(list(map(str, arguments))) == 0
    return capsys.readouterr().out


def test_a_module_is_traced(script: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text(
        "import torch\nfrom torch import nn\n"
        "def with_inputs():\n    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)\n"
        "def bare():\n    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())\n"
        "def wrong():\n    return 3\n"
    )
    shown = output(script, capsys, f"{file}:with_inputs", "--json", tmp_path / "spec.json")
    texts = (
        "26 parameters",
        "verified numerically",
        "4! = 10^1.4",
        "2^4",
        "an output of the model",
        "no free directions",
    )
    for text in texts:
        assert text in shown
    spec = WeightSpec.from_json((tmp_path / "spec.json").read_text())
    assert spec.verified and spec.numel == 26
    shown = output(script, capsys, f"{file}:bare", "--input", "2,1,8,8")
    assert "of them 8 in buffers" in shown and "kernel cells" in shown and "num_batches_tracked" in shown
    for arguments, message in (
        ((f"{file}:bare",), "give their shapes: --input"),
        ((f"{file}:wrong",), "returned a int"),
        ((f"{file}:missing",), "has no function 'missing'"),
        (("no_such_module_here:make",), "cannot import 'no_such_module_here'"),
        ((f"{file}:bare", "--input", "2,x"), "--input '2,x' is no shape"),
        (("nowhere.pt",), "nowhere.pt: no such file"),
    ):
        with pytest.raises(SystemExit, match=message):
            script.main(list(arguments))


def test_checkpoints_say_what_was_assumed(
    script: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    torch.save(network.state_dict(), tmp_path / "net.pt")
    shown = output(script, capsys, tmp_path / "net.pt")
    assert "not verified against the network" in shown and "permutations only" in shown
    (tmp_path / "hints.yaml").write_text("activation: relu\n")
    shown = output(script, capsys, tmp_path / "net.pt", "--hints", tmp_path / "hints.yaml")
    assert "4 dimensions (d > 0)" in shown and "0 (+1)" in shown.replace("\n", "")
    other = nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 2))
    safetensors.torch.save_file(other.state_dict(), tmp_path / "other.safetensors")
    shown = output(script, capsys, tmp_path)
    assert shown.count("1 of 2 checkpoints") == 2 and "4! = 10^1.4" in shown and "9! = 10^5.6" in shown
    with pytest.raises(SystemExit, match="--json writes one spec"):
        script.main([str(tmp_path), "--json", str(tmp_path / "x.json")])


def test_a_zoo_shows_each_architecture(script: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    specs = (mlp_spec([2, 3, 1]), mlp_spec([2, 6, 1]))
    with ZooWriter(tmp_path / "zoo.h5", specs, 3, {"made": "by hand"}, spec_ids=[0, 1, 0]) as zoo:
        lengths = [specs[i].numel for i in (0, 1, 0)]
        zoo.write(0, np.zeros(sum(lengths), dtype=np.float32), lengths)
        zoo.set_splits({"train": [0, 1, 2]})
    shown = output(script, capsys, tmp_path / "zoo.h5")
    for text in ("zoo.h5: 2 of 3 rows", "zoo.h5: 1 of 3 rows", "3! = 10^0.8", "6! = 10^2.9"):
        assert text in shown
    (tmp_path / "torn.h5").write_bytes(b"nothing")
    with pytest.raises(SystemExit, match=r"torn.h5"):
        script.main([str(tmp_path / "torn.h5")])


def test_specs_are_shown_as_they_are(script: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "gru.json").write_text(gru_spec().to_json())
    shown = output(script, capsys, tmp_path / "gru.json")
    assert "gru.weight_hh_l0.new" in shown and "5! = 10^2.1" in shown and "2^5" in shown
    (tmp_path / "gru.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"gru.json: spec format version None"):
        script.main([str(tmp_path / "gru.json")])


def test_graphs_are_drawn(script: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Recurrent edges, attention's constant edges and plain ones: a picture with marks of more than one colour."""
    for name, spec in (("gru", gru_spec()), ("attention", attention_spec())):
        (tmp_path / f"{name}.json").write_text(spec.to_json())
        picture = tmp_path / f"{name}.png"
        output(script, capsys, tmp_path / f"{name}.json", "--draw", picture)
        pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
        assert len(pixels) > 10_000 and len(np.unique(pixels, axis=0)) > 50
    with pytest.raises(SystemExit, match=r"ends in \.png"):
        script.main([str(tmp_path / "gru.json"), "--draw", str(tmp_path / "gru.txt")])


def test_what_is_written_where_it_cannot_be(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(mlp_spec([2, 3, 1]).to_json())
    (tmp_path / "folder.png").mkdir()
    for option, path in (("--json", tmp_path / "none" / "x.json"), ("--draw", tmp_path / "folder.png")):
        with pytest.raises(SystemExit, match=rf"{path}: cannot be written \(.*\); "):
            script.main([str(tmp_path / "net.json"), option, str(path)])


def test_a_folder_of_mixed_and_of_bad_files(
    script: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Both kinds of files of one architecture are one, and what cannot be read is told after the others."""
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    torch.save(network.state_dict(), tmp_path / "a.pt")
    safetensors.torch.save_file(network.state_dict(), tmp_path / "b.safetensors")
    (tmp_path / "empty.bin").write_bytes(b"")
    shown = output(script, capsys, tmp_path, "--json", tmp_path / "spec.json")
    assert shown.count("of 3 checkpoints") == 2 and "2 of 3 checkpoints" in shown and "left out: 1 of 3" in shown
    assert "empty.bin cannot be read: EOFError" in shown
    for name in ("a.pt", "b.safetensors"):
        (tmp_path / name).unlink()
    with pytest.raises(SystemExit, match=r"(?s)not one of 1 checkpoints can be used:\n  .*empty\.bin cannot be read"):
        script.main([str(tmp_path)])
