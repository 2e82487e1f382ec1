"""The UNF layer as a plain loop over terms: the reference that the pool bank must agree with.

Every term is one valid partition of the axes of an output and an input tensor, evaluated by itself with ``einsum``
(which reads diagonals) and identity matrices (which write them).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from string import ascii_lowercase

import torch
from torch import Tensor

from wsl.batch import WeightBatch
from wsl.nn.unf.layout import Member
from wsl.nn.unf.linear import UNFLinear
from wsl.nn.unf.partitions import Blocks


@dataclass(frozen=True)
class Term:
    """One partition of (output axes, input axes), its matrix ``[F_in·c_in, F_out·c_out]``."""

    output: str
    input: str
    blocks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    theta: Tensor


def terms(layer: UNFLinear) -> Iterator[Term]:
    layout = layer.layout
    for number, exchange in enumerate(layer.plan):
        matrix = layer.coefficients.matrix(number)
        row = 0
        for source in exchange.sources:
            for into in layout.bundles[source.bundle].members:
                column = 0
                for sink in exchange.sinks:
                    for out in layout.bundles[sink.bundle].members:
                        if exchange.allowed is None or exchange.allowed[row, column]:
                            theta = matrix[row * layer.c_in : (row + into.cells) * layer.c_in]
                            theta = theta[:, column * layer.c_out : (column + out.cells) * layer.c_out]
                            o, i = own_axes(sink.port.blocks, out), own_axes(source.reduction.blocks, into)
                            matched = dict(zip(sink.port.connected, source.reduction.kept, strict=True))
                            blocks = [(o[a], i[b]) for a, b in matched.items()]
                            blocks += [(o[a], ()) for a in range(len(o)) if a not in matched]
                            blocks += [((), i[b]) for b in range(len(i)) if b not in matched.values()]
                            yield Term(out.tensor.name, into.tensor.name, tuple(sorted(blocks)), theta)
                        column += out.cells
                row += into.cells


def own_axes(blocks: Blocks, member: Member) -> list[tuple[int, ...]]:
    return [tuple(sorted(member.order[axis] for axis in block)) for block in blocks]


def reference(layer: UNFLinear, batch: WeightBatch) -> dict[str, Tensor]:
    """Output of the layer without its biases, tensor name → ``[B, *permuted axes, F·c_out]`` in bundle order."""
    members = {m.tensor.name: m for bundle in layer.layout.bundles for m in bundle.members}
    inputs = batch.tensors()
    out: dict[str, Tensor] = {}
    for term in terms(layer):
        value = _evaluate(term, inputs[term.input], members[term.output], members[term.input], layer)
        out[term.output] = out[term.output] + value if term.output in out else value
    return out


def _evaluate(term: Term, x: Tensor, out: Member, into: Member, layer: UNFLinear) -> Tensor:
    n_in = sum(len(block) for _, block in term.blocks)
    n_out = sum(len(block) for block, _ in term.blocks)
    x = x.permute(0, *(1 + a for a in into.order), x.dim() - 1).flatten(1 + n_in)
    free = iter(ascii_lowercase)
    symbol_in, symbol_out, averaged, operands = {}, {}, 1, []
    for o, i in term.blocks:
        symbol = next(free)
        size = out.tensor.shape[o[0]] if o else into.tensor.shape[i[0]]
        symbol_in |= dict.fromkeys(i, symbol)
        averaged *= 1 if o else size
        symbol_out |= dict.fromkeys(o[:1], symbol)
        if o and not i:
            operands.append((symbol, torch.ones(size, dtype=x.dtype)))
        for axis in o[1:]:
            symbol_out[axis] = next(free)
            operands.append((symbol + symbol_out[axis], torch.eye(size, dtype=x.dtype)))
    left = "Z" + "".join(symbol_in[a] for a in into.order[:n_in]) + "X"
    right = "Z" + "".join(symbol_out[a] for a in out.order[:n_out]) + "Y"
    equation = ",".join([left, "XY", *(s for s, _ in operands)]) + "->" + right
    scale = 1 / averaged if layer.options.aggregation == "mean" else 1.0
    return torch.einsum(equation, x, term.theta, *(t for _, t in operands)) * scale
