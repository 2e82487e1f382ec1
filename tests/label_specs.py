"""Weight spaces written as axis labels alone, shared by tests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

from wsl.spec import Connection, Label, NeuronGroup, StoredTensor, VirtualTensor, WeightSpec


def labelled(
    tensors: Mapping[str, str | Sequence[str]], sizes: Mapping[str, int], kinds: Mapping[str, str] | None = None
) -> WeightSpec:
    """A spec from axis labels alone: tensor name → labels ("o i" or a sequence), label → size.

    ``kinds`` names the labels that are not hidden; hidden ones are permuted.
    """
    kinds = kinds or {}
    stored, virtual, offset = [], [], 0
    for name, axes in tensors.items():
        axes = tuple(axes.split() if isinstance(axes, str) else axes)
        shape = tuple(sizes[a] for a in axes)
        strides = tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))
        role = "bias" if len(axes) == 1 else "weight"
        stored.append(StoredTensor(name, shape, offset))
        virtual.append(VirtualTensor(name, role, offset, shape, strides, axes, (0,) * len(axes)))
        offset += math.prod(shape)
    used = dict.fromkeys(a for tensor in virtual for a in tensor.axes)
    labels = [Label(a, sizes[a], kinds.get(a, "hidden"), () if a in kinds else ("permutation",)) for a in used]
    return WeightSpec(tuple(stored), tuple(virtual), tuple(labels))


def mlp(widths: Sequence[int], kinds: Mapping[str, str] | None = None) -> WeightSpec:
    """Weights [n_i, n_(i−1)] and biases; labels "0" … "L"."""
    tensors = {}
    for i in range(1, len(widths)):
        tensors |= {f"layers.{i}.weight": (str(i), str(i - 1)), f"layers.{i}.bias": (str(i),)}
    return labelled(tensors, {str(i): n for i, n in enumerate(widths)}, kinds)


def io_of(widths: Sequence[int]) -> dict[str, str]:
    """Kinds of an MLP's (or CNN's) first and last label."""
    return {"0": "input", str(len(widths) - 1): "output"}


def cnn(widths: Sequence[int], kernels: Sequence[int], kinds: Mapping[str, str] | None = None) -> WeightSpec:
    """Convolutions with square kernels of the given widths (1: a linear layer), kernel axes fixed."""
    tensors: dict[str, Sequence[str]] = {}
    sizes = {str(i): n for i, n in enumerate(widths)}
    fixed = dict(kinds or {})
    for i, kernel in enumerate(kernels, start=1):
        axes = (str(i), str(i - 1))
        if kernel > 1:
            axes += (f"y{i}", f"x{i}")
            sizes |= {f"y{i}": kernel, f"x{i}": kernel}
            fixed |= {f"y{i}": "fixed", f"x{i}": "fixed"}
        tensors |= {f"layers.{i}.weight": axes, f"layers.{i}.bias": (str(i),)}
    return labelled(tensors, sizes, fixed)


def with_symmetries(spec: WeightSpec, held: Mapping[str, tuple[str, ...]]) -> WeightSpec:
    """A spec written as labels alone, with scaling exponents and symmetries of hidden labels."""
    tensors = []
    for tensor in spec.tensors:
        moved = [a for a in tensor.axes if spec.label[a].kind != "fixed"]
        power = {a: 1 if n == 0 else -1 for n, a in enumerate(moved)}
        tensors.append(dataclasses.replace(tensor, scaling=tuple(power.get(a, 0) for a in tensor.axes)))
    labels = [dataclasses.replace(la, symmetries=(*la.symmetries, *held.get(la.name, ()))) for la in spec.labels]
    return spec.replace(tensors=tuple(tensors), labels=tuple(labels))


def small_cnn(symmetry: str) -> WeightSpec:
    """Three 3 × 3 convolutions of 16 channels, pooled, and ten classes: the Small CNN Zoo."""
    widths = [1, 16, 16, 16, 10]
    kinds = io_of(widths)
    spec = cnn(widths, [3, 3, 3, 1], kinds)
    return with_symmetries(spec, {str(n): (symmetry,) for n in (1, 2, 3)})


def elman(i: int, h: int, o: int, kinds: Mapping[str, str] | None = None) -> WeightSpec:
    """One recurrent layer with an output layer."""
    tensors = {
        "input.weight": "h i",
        "recurrent.weight": "h h",
        "bias": "h",
        "output.weight": "o h",
        "output.bias": "o",
    }
    return labelled(tensors, {"i": i, "h": h, "o": o}, kinds)


def gru_seq2seq(h: int, v: int) -> WeightSpec:
    """Encoder and decoder GRU cells, gates as separate tensors, hidden and vocabulary labels shared: 22 tensors."""
    tensors: dict[str, str] = {}
    for cell in ("encoder", "decoder"):
        for gate in ("r", "z", "n"):
            tensors |= {f"{cell}.i{gate}.weight": "h v", f"{cell}.i{gate}.bias": "h", f"{cell}.h{gate}.weight": "h h"}
        tensors[f"{cell}.hn.bias"] = "h"
    return labelled(tensors | {"output.weight": "v h", "output.bias": "v"}, {"h": h, "v": v})


def residual(i: int, d: int, m: int, o: int, kinds: Mapping[str, str] | None = None) -> WeightSpec:
    """Stem, one residual block, head; everything on the residual stream has the label d."""
    tensors = {"stem.weight": "d i", "stem.bias": "d", "a.weight": "m d", "a.bias": "m"}
    tensors |= {"b.weight": "d m", "b.bias": "d", "head.weight": "o d", "head.bias": "o"}
    return labelled(tensors, {"i": i, "d": d, "m": m, "o": o}, kinds)


def transformer(
    blocks: int,
    sizes: Mapping[str, int],
    tie_qk: bool = True,
    norm_label: str = "d",
    kinds: Mapping[str, str] | None = None,
    skip: Collection[str] = (),
) -> WeightSpec:
    """Language model of 1 + 16·blocks + 4 tensors: embedding, pre-norm blocks, flat heads, final norm, unembedding.

    Sizes of v (vocabulary), d, k (queries and keys), u (values), m (hidden) are given once for all blocks.
    """
    tensors: dict[str, str] = {"embed.weight": "v d"}
    size_of = {"v": sizes["v"], "d": sizes["d"], norm_label: sizes["d"]}
    for i in range(blocks):
        q, k, u, m = f"q{i}", f"q{i}" if tie_qk else f"k{i}", f"u{i}", f"m{i}"
        size_of |= {q: sizes["k"], k: sizes["k"], u: sizes["u"], m: sizes["m"]}
        block = {"ln1.weight": norm_label, "ln1.bias": norm_label, "q.weight": f"{q} d", "q.bias": q}
        block |= {"k.weight": f"{k} d", "k.bias": k, "v.weight": f"{u} d", "v.bias": u, "o.weight": f"d {u}"}
        block |= {"o.bias": "d", "ln2.weight": norm_label, "ln2.bias": norm_label, "up.weight": f"{m} d"}
        block |= {"up.bias": m, "down.weight": f"d {m}", "down.bias": "d"}
        tensors |= {f"blocks.{i}.{name}": axes for name, axes in block.items() if name not in skip}
    tensors |= {"norm.weight": "d", "norm.bias": "d", "head.weight": "v d", "head.bias": "v"}
    return _with_paths(labelled(tensors, size_of, kinds), blocks)


def _with_paths(spec: WeightSpec, blocks: int) -> WeightSpec:
    """A transformer's groups and connections, as far as they say which tensors meet at a group."""
    paths = [("tokens", "x0", "embed")]
    for i in range(blocks):
        at = f"blocks.{i}."
        paths += [(f"x{i}", f"{at}n1", f"{at}ln1"), *((f"{at}n1", f"{at}{part}", f"{at}{part}") for part in "qkv")]
        paths += [(f"{at}q", f"{at}k", ""), (f"{at}k", f"{at}v", ""), (f"{at}v", f"{at}mid", f"{at}o")]
        paths += [(f"x{i}", f"{at}mid", ""), (f"{at}mid", f"{at}n2", f"{at}ln2"), (f"{at}n2", f"{at}h", f"{at}up")]
        paths += [(f"{at}h", f"x{i + 1}", f"{at}down"), (f"{at}mid", f"x{i + 1}", "")]
    paths += [(f"x{blocks}", "normed", "norm"), ("normed", "logits", "head")]
    connections = []
    for source, target, module in paths:
        held = {part: f"{module}.{part}" for part in ("weight", "bias") if f"{module}.{part}" in spec.tensor}
        connections.append(Connection(source, target, "linear" if held else "skip", held))
    label = spec.labels[0].name
    groups = [NeuronGroup(name, label) for name in dict.fromkeys(n for path in paths for n in path[:2])]
    return spec.replace(groups=tuple(groups), connections=tuple(connections))


def resnet20() -> WeightSpec:
    """ResNet-20 for 32 × 32 colour images: 16, 32, 64 channels, 1 × 1 convolutions as shortcuts between stages."""
    tensors: dict[str, str] = {}
    sizes = {"rgb": 3, "y": 3, "x": 3, "classes": 10, "r0": 16, "r1": 32, "r2": 64}

    def convolution(name: str, out: str, into: str, cells: str = "y x") -> None:
        tensors[f"{name}.weight"] = f"{out} {into} {cells}"
        tensors.update({f"{name}.norm.weight": out, f"{name}.norm.bias": out})

    convolution("stem", "r0", "rgb")
    for stage in range(3):
        for block in range(3):
            name, inner, into = f"stages.{stage}.{block}", f"h{stage}{block}", f"r{stage - (block == 0 < stage)}"
            sizes[inner] = sizes[f"r{stage}"]
            convolution(f"{name}.a", inner, into)
            convolution(f"{name}.b", f"r{stage}", inner)
            if into != f"r{stage}":
                convolution(f"{name}.shortcut", f"r{stage}", into, cells="")
    tensors |= {"head.weight": "classes r2", "head.bias": "classes"}
    return labelled(tensors, sizes, {"rgb": "input", "classes": "output", "y": "fixed", "x": "fixed"})
