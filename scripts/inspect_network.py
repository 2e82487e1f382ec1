"""Show the weight space of a network: ``python scripts/inspect_network.py PATH | MODULE:FACTORY``.

PATH is a checkpoint (.safetensors, .pt, …), a folder of checkpoints, a spec as JSON, or a zoo file (.h5). FACTORY is a
function of a Python module (``torchvision.models:resnet18``) or file (``nets.py:make``) that returns an nn.Module, or
the module and its example inputs; give the shapes of inputs with --input otherwise. A module is traced and its
symmetries are verified; a checkpoint alone lets them be inferred, and what had to be assumed is listed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from wsl.command_line import plain_errors
from wsl.spec import Connection, Label, SpecError, VirtualTensor, WeightSpec
from wsl.state_dict import Assumptions, from_folder, from_state_dict, read_state_dict
from wsl.zoo.temporary import reported, write_whole

Shown = tuple[str, WeightSpec, Sequence[RenderableType]]

# -- what to show -----------------------------------------------------------------------------------------------------


def load(target: str, shapes: Sequence[str], hints: str | None) -> list[Shown]:
    """Title, spec and further tables of every architecture that the target holds.

    Raises:
        SpecError: if the target is none of the known kinds, or cannot be read or traced.
    """
    path = Path(target)
    if not path.exists():
        if ":" in target:
            return [_traced(target, shapes)]
        raise SpecError(f"{target}: no such file, and no MODULE:FACTORY")
    if path.is_dir():
        return _in_folder(path, hints)
    if path.suffix == ".json":
        return [(target, _spec_in(path), [])]
    if path.suffix in (".h5", ".hdf5"):
        from wsl.zoo.reader import Zoo

        zoo = Zoo(path)
        counts = torch.bincount(torch.as_tensor(zoo.spec_ids), minlength=len(zoo.specs)).tolist()
        return [(f"{target}: {n} of {len(zoo)} rows", spec, []) for spec, n in zip(zoo.specs, counts, strict=True)]
    spec, told_ = from_state_dict(read_state_dict(path), hints)
    return [(target, spec, [assumed(told_)])]


def _in_folder(folder: Path, hints: str | None) -> list[Shown]:
    """The architectures of its checkpoints; the last one is followed by the files that cannot be used."""
    unusable: dict[Path, str] = {}
    batch, paths, told = from_folder(folder, hints, unusable)
    counts = batch.spec_ids.bincount(minlength=len(batch.specs)).tolist()
    total = len(paths) + len(unusable)
    more: list[list[RenderableType]] = [[assumed(told[spec])] for spec in batch.specs]
    rows = [(reason.replace(f"{folder}/", ""),) for reason in unusable.values()]
    more[-1] += _optional(f"left out: {len(rows)} of {total} checkpoints", ("why",), rows)
    titles = [f"{folder}: {n} of {total} checkpoints" for n in counts]
    return list(zip(titles, batch.specs, more, strict=True))


def _spec_in(path: Path) -> WeightSpec:
    try:
        return WeightSpec.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: {error}") from error


def _traced(target: str, shapes: Sequence[str]) -> Shown:
    from wsl.trace import trace_report

    made = _factory(target)()
    module, inputs = made if isinstance(made, tuple) else (made, None)
    if not isinstance(module, nn.Module):
        raise SpecError(
            f"{target} returned a {type(module).__name__}; it should return an nn.Module or (module, inputs)"
        )
    if shapes:
        inputs = tuple(_input(shape) for shape in shapes)
    if inputs is None:
        raise SpecError(
            f"{target} returned no example inputs; give their shapes: --input 2,3,32,32 (tokens: 2,16:1000)"
        )
    report = trace_report(module, inputs)
    more: list[RenderableType] = [
        *_optional("frozen axes", ("tensor", "axis", "why"), [
            (f.tensor, str(f.axis), "; ".join(f.reasons)) for f in report.frozen]),
        *_optional("free directions: axes that can be permuted alone", ("tensor", "axis", "label", "why"), [
            (f.tensor, str(f.axis), f.label, f.reason) for f in report.free]),
        *_optional("not part of the weights", ("entry", "why"), [
            *((name, "no floating-point tensor") for name in report.left_out),
            *((name, f"the same tensor as {kept}") for name, kept in report.aliases.items())]),
    ]  # fmt: skip
    if not report.free:
        more.append("no free directions: permuting any axis alone changes the outputs")
    return f"{target} ({type(module).__name__})", report.spec, more


def _factory(target: str) -> Any:
    where, _, name = target.rpartition(":")
    try:
        if where.endswith(".py"):
            found = importlib.util.spec_from_file_location(Path(where).stem, where)
            if found is None or found.loader is None:
                raise ImportError(f"{where} is no Python file")
            module = importlib.util.module_from_spec(found)
            sys.modules[found.name] = module
            found.loader.exec_module(module)
        else:
            sys.path.insert(0, str(Path.cwd()))
            module = importlib.import_module(where)
    except (ImportError, OSError) as error:
        raise SpecError(f"{target}: cannot import {where!r}: {error}") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise SpecError(f"{target}: {where!r} has no function {name!r}")
    return factory


def _input(shape: str) -> Tensor:
    """``2,3,32,32`` is a random image batch; ``2,16:1000`` are tokens below 1000."""
    sizes, _, vocabulary = shape.partition(":")
    try:
        dims = [int(size) for size in sizes.split(",")]
        return torch.randint(int(vocabulary), dims) if vocabulary else torch.randn(dims)
    except (ValueError, RuntimeError) as error:
        raise SpecError(f"--input {shape!r} is no shape such as 2,3,32,32 or, for tokens, 2,16:1000") from error


# -- how to show it ---------------------------------------------------------------------------------------------------


def show(title: str, spec: WeightSpec, more: Sequence[RenderableType] = ()) -> Group:
    """All tables of one architecture."""
    buffers = sum(t.numel for t in spec.tensors if t.role == "buffer")
    checked = "verified numerically" if spec.verified else "not verified against the network"
    head = (
        f"[bold]{escape(title)}[/]\n{spec.numel:,} parameters"
        + (f", of them {buffers:,} in buffers" if buffers else "")
        + f"; {len(spec.tensors)} tensors, {len(spec.groups)} neuron groups; symmetries {checked}\n"
        + f"digest {spec.digest[:16]}"
    )
    return Group(head, "", symmetry_group(spec), tensors(spec), labels(spec), connections(spec), *more)


def symmetry_group(spec: WeightSpec) -> Table:
    """Size of the group: permutations Π n!, scalings ℝ₊ to the number of neurons, signs 2^n, half turns ℤ^n."""
    found = _table("symmetry group", ("symmetry", "labels", "size"))
    permuted = [label.size for label in spec.labels_with("permutation")]
    found.add_row("permutation", str(len(permuted)), f"{_product(permuted)} = 10^{log10_permutations(spec):.1f}")
    for name, text in (("scaling", "{} dimensions (d > 0)"), ("sign", "2^{}"), ("phase", "ℤ^{} half turns")):
        held = spec.labels_with(name)
        found.add_row(name, str(len(held)), text.format(sum(x.size for x in held)) if held else "none")
    return found


def log10_permutations(spec: WeightSpec) -> float:
    """log₁₀ of the number of permutations, Σ log₁₀ n! over the labels that permute."""
    return sum(math.lgamma(label.size + 1) for label in spec.labels_with("permutation")) / math.log(10)


def _product(sizes: Sequence[int]) -> str:
    """``32!·32!·10!``, equal sizes as powers: ``(32!)^2·10!``."""
    counts = {size: sizes.count(size) for size in sizes}
    return "·".join(f"({n}!)^{k}" if k > 1 else f"{n}!" for n, k in counts.items()) or "1"


def tensors(spec: WeightSpec) -> Table:
    """One line per virtual tensor: axes with their scaling exponents."""
    found = _table("tensors", ("tensor", "role", "shape", "axes (exponent under scaling and sign)"))
    for tensor in spec.tensors:
        found.add_row(escape(tensor.name), tensor.role, "×".join(map(str, tensor.shape)), escape(_axes(spec, tensor)))
    return found


def _axes(spec: WeightSpec, tensor: VirtualTensor) -> str:
    parts = []
    for name, power in zip(tensor.axes, tensor.scaling, strict=True):
        scaled = power and {"scaling", "sign"} & set(spec.label[name].symmetries)
        parts.append(f"{name} ({power:+d})" if scaled else name)
    return ", ".join(parts)


def labels(spec: WeightSpec) -> Table:
    """One line per label: what may be done to its neurons, and the groups that share it."""
    found = _table("labels", ("label", "size", "kind", "symmetries", "neuron groups (activation)"))
    for label in spec.labels:
        found.add_row(escape(label.name), str(label.size), label.kind, _symmetries(label), escape(_groups(spec, label)))
    return found


def _symmetries(label: Label) -> str:
    return ", ".join(label.symmetries) or ("[dim]none[/]" if label.kind == "hidden" else "")


def _groups(spec: WeightSpec, label: Label) -> str:
    shown = []
    for group in (g for g in spec.groups if g.label == label.name):
        parameters = ", ".join(f"{k}={v:g}" for k, v in group.parameters.items())
        activation = "" if group.activation == "identity" and not parameters else f" ({group.activation}"
        shown.append(
            f"{group.name}{activation}" + (f" {parameters}" if parameters else "") + (")" if activation else "")
        )
    return ", ".join(shown)


def connections(spec: WeightSpec) -> Table:
    """One line per connection, with its attributes."""
    found = _table("connections", ("from → to", "kind", "tensors", "attributes"))
    for c in spec.connections:
        found.add_row(escape(f"{c.source} → {c.target}"), c.kind, escape(", ".join(c.tensors)), escape(_attributes(c)))
    return found


def _attributes(connection: Connection) -> str:
    def short(value: Any) -> str:
        return "×".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    return ", ".join(f"{name} {short(value)}" for name, value in connection.attributes.items())


def assumed(told: Assumptions) -> Table:
    """What the checkpoint does not say."""
    found = _table("assumed", ("the checkpoint does not say this",))
    for note in told.notes:
        found.add_row(escape(note))
    return found


def _optional(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Table]:
    """A table, or nothing if it had no rows."""
    found = _table(title, columns)
    for row in rows:
        found.add_row(*map(escape, row))
    return [found] if rows else []


def _table(title: str, columns: Sequence[str]) -> Table:
    found = Table(title=title, title_justify="left", title_style="bold")
    for name in columns:
        found.add_column(name, overflow="fold", justify="right" if name in ("size", "shape") else "left")
    return found


def draw(found: Sequence[Shown], path: Path) -> None:
    """The neural graph of one architecture as a PNG.

    Raises:
        SpecError: if there are several, or no folder to write to.
        GraphError: if the spec has no graph.
        ZooError: if the file cannot be written.
    """
    from wsl.graphs.draw import draw_graph
    from wsl.graphs.network import network_graph

    if len(found) != 1:
        raise SpecError(f"--draw draws one graph, {len(found)} architectures were found")
    if path.suffix != ".png" or not path.parent.is_dir():
        raise SpecError(f"--draw {path}: give a file name that ends in .png, in a folder that exists")
    title, spec, _ = found[0]
    graph = network_graph(spec)
    with reported(path):
        draw_graph(graph, title, path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="a checkpoint, folder, spec.json, zoo.h5, or MODULE:FACTORY")
    parser.add_argument("--input", action="append", default=[], metavar="SHAPE", help="of an example input; repeatable")
    parser.add_argument("--hints", help="YAML file that names order, activations or axes of a checkpoint")
    parser.add_argument("--json", type=Path, help="write the spec here (one architecture only)")
    parser.add_argument("--draw", type=Path, metavar="PNG", help="draw the neural graph (one architecture only)")
    args = parser.parse_args(arguments)
    with plain_errors():
        found = load(args.target, args.input, args.hints)
        if args.json is not None:
            if len(found) != 1:
                raise SpecError(f"--json writes one spec, {args.target} has {len(found)}")
            write_whole(args.json, (found[0][1].to_json() + "\n").encode())
        if args.draw is not None:
            draw(found, args.draw)
    console = Console()
    console = console if console.is_terminal else Console(width=max(console.width, 120))
    for title, spec, more in found:
        console.print(show(title, spec, more))
    return 0


if __name__ == "__main__":
    sys.exit(main())
