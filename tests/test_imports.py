"""Imports point one way (the layers of the house), and some libraries stay where they belong."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: layer → what it may import besides its own layer and the layers before it; a module belongs to its longest prefix
LAYERS = [
    (
        "wsl.errors", "wsl.ranges", "wsl.activations", "wsl.spec", "wsl.batch", "wsl.symmetry", "wsl.mixed_symmetry",
        "wsl.sparsity", "wsl.native", "wsl.heap",
    ),
    ("wsl.config", "wsl.plain_json", "wsl.plain_yaml", "wsl.run_folder", "wsl.watchdog", "wsl.other_model"),
    ("wsl.execute", "wsl.verify", "wsl.canonical", "wsl.state_dict", "wsl.trace"),
    ("wsl.zoo", "wsl.graphs", "wsl.nn", "wsl.gradient_flow"),
    ("wsl.encoders", "wsl.data"),
    ("wsl.tasks",),
    (
        "wsl.callbacks", "wsl.checkpoint", "wsl.seal", "wsl.metrics_file", "wsl.export", "wsl.results", "wsl.plots",
        "wsl.zoo_figure", "wsl.attention_maps", "wsl.trainer", "wsl.ranks", "wsl.preemption", "wsl.tracking",
    ),
    ("wsl.run_config", "wsl.build", "wsl.command_line"),
    ("wsl.report", "wsl.sweeps", "wsl.out_of_memory"),
]  # fmt: skip
#: library → the modules that may import it
HOMES = {
    "h5py": ("wsl.zoo", "scripts.benchmarks.streaming"),  # the latter measures against it
    "pytorch_lightning": (
        "wsl.data", "wsl.tasks", "wsl.callbacks", "wsl.checkpoint", "wsl.metrics_file", "wsl.trainer", "wsl.ranks",
        "wsl.build", "wsl.report", "wsl.tracking",
    ),
    "hydra": ("wsl.run_config", "wsl.build", "wsl.command_line", "train", "scripts"),
    "wandb": ("wsl.trainer", "wsl.tracking"),
    "torchdata": ("wsl.data.loader",),
}  # fmt: skip
SIBLINGS = [("wsl.encoders", "wsl.data"), ("wsl.zoo", "wsl.nn")]


def modules() -> dict[str, Path]:
    files = [*ROOT.glob("wsl/**/*.py"), *ROOT.glob("scripts/**/*.py"), ROOT / "train.py"]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def imported(path: Path, module: str) -> set[str]:
    """Every module that the file names in an import, also inside functions; relative ones resolved."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def under(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def layer(module: str) -> int | None:
    return next((i for i, prefixes in enumerate(LAYERS) if any(under(module, p) for p in prefixes)), None)


@pytest.mark.parametrize("module", sorted(m for m in modules() if under(m, "wsl") and m != "wsl"))
def test_arrows_point_one_way(module: str) -> None:
    mine = layer(module)
    assert mine is not None, f"{module} belongs to no layer: add it to LAYERS"
    for name in imported(modules()[module], module):
        other = layer(name)
        assert other is None or other <= mine, f"{module} (layer {mine}) imports {name} (layer {other})"


@pytest.mark.parametrize(("one", "other"), SIBLINGS)
def test_siblings_do_not_meet(one: str, other: str) -> None:
    for module, path in modules().items():
        for here, there in ((one, other), (other, one)):
            if under(module, here):
                assert not [n for n in imported(path, module) if under(n, there)], f"{module} imports {there}"


@pytest.mark.parametrize("library", HOMES)
def test_libraries_stay_at_home(library: str) -> None:
    for module, path in modules().items():
        if any(under(name, library) for name in imported(path, module)):
            assert any(under(module, home) for home in HOMES[library]), f"{module} imports {library}"


@pytest.mark.parametrize("line", ["from wsl.tasks import base", "from ..tasks import base", "import wsl.tasks.base"])
def test_the_check_sees_a_back_edge(tmp_path: Path, line: str) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(f"def f():\n    {line}\n")
    assert "wsl.tasks.base" in imported(bad, "wsl.nn.bad")
    assert layer("wsl.tasks.base") > layer("wsl.nn.mlp")
