"""Counts of equivariant maps on traced specs, against the tables of the Universal Neural Functionals fact sheet."""

from __future__ import annotations

from collections import Counter
from math import comb, prod

import pytest
import torch
from networks import mlp
from torch import Tensor, nn

from wsl.nn.unf.basis import BasisOptions, count_table
from wsl.nn.unf.layout import Layout
from wsl.spec import SpecError, WeightSpec, mlp_spec
from wsl.trace import trace

P = "permutation"


def bell(n: int) -> int:
    numbers = [1]
    for i in range(n):
        numbers.append(sum(comb(i, k) * numbers[k] for k in range(i + 1)))
    return numbers[n]


def count(spec: WeightSpec, names: list[str] | None = None) -> int:
    """Σ over ordered pairs of tensors of Π over labels of Bell(occurrences in both)."""
    permuted = {label.name for label in spec.labels_with("permutation")}
    chosen = [t for t in spec.tensors if names is None or t.name in names]
    axes = [[a for a in t.axes if a in permuted] for t in chosen]
    return sum(prod(bell(c) for c in Counter([*a, *b]).values()) for a in axes for b in axes)


def counted_by_layer(spec: WeightSpec) -> int:
    return int(count_table(Layout(spec, freeze_single=False), BasisOptions(drop_redundant=False)).sum())


class Elman(nn.Module):
    """h ← tanh(W x + U h + b), one bias, unrolled."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.back, self.leave = nn.Linear(3, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 5)
        for step in range(x.shape[1]):
            h = torch.tanh(self.enter(x[:, step]) + self.back(h))
        return self.leave(h)


class ResidualBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = nn.Linear(3, 6), nn.Linear(6, 7), nn.Linear(7, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.b(torch.relu(self.a(x))))


class SplitGRU(nn.Module):
    """A GRU cell with one tensor per gate and four biases (Flax)."""

    def __init__(self, d_in: int, hidden: int) -> None:
        super().__init__()
        self.enter = nn.ModuleDict({gate: nn.Linear(d_in, hidden) for gate in "rzn"})
        self.back = nn.ModuleDict({g: nn.Linear(hidden, hidden, bias=g == "n") for g in "rzn"})

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        r = torch.sigmoid(self.enter["r"](x) + self.back["r"](h))
        z = torch.sigmoid(self.enter["z"](x) + self.back["z"](h))
        n = torch.tanh(self.enter["n"](x) + r * self.back["n"](h))
        return (1 - z) * n + z * h


class SplitSeq2Seq(nn.Module):
    """One-hot words in, logits of the same vocabulary out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = SplitGRU(7, 5), SplitGRU(7, 5), nn.Linear(5, 7)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        h = source.new_zeros(len(source), 5)
        for step in range(source.shape[1]):
            h = self.encoder(source[:, step], h)
        out = []
        for step in range(target.shape[1]):
            h = self.decoder(target[:, step], h)
            out.append(self.head(h))
        return torch.stack(out, 1)


class FusedSeq2Seq(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.GRU(7, 5, batch_first=True), nn.GRU(7, 5, batch_first=True)
        self.head = nn.Linear(5, 7)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.head(self.decoder(target, self.encoder(source)[1])[0])


class TorchRNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


@pytest.mark.parametrize(
    ("network", "inputs", "terms"),
    [
        (mlp(3, 5, 2), torch.randn(4, 3), 32),
        (mlp(3, 5, 6, 2), torch.randn(4, 3), 62),
        (mlp(3, 5, 6, 7, 2), torch.randn(4, 3), 100),
        (Elman(), torch.randn(4, 3, 3), 81),
        (ResidualBlock(), torch.randn(4, 3), 120),
        (TorchRNN(), torch.randn(4, 6, 3), 107),
    ],
    ids=["mlp2", "mlp3", "mlp4", "elman", "residual", "torch-rnn"],
)
def test_terms_of_relaxed_specs(network: nn.Module, inputs: Tensor, terms: int) -> None:
    spec = trace(network, inputs)
    relaxed = spec.relax_io()
    assert count(relaxed) == counted_by_layer(relaxed) == terms
    assert count(spec) < terms  # the default never permutes inputs or outputs
    assert spec.verified and not relaxed.verified


@pytest.mark.parametrize(
    ("network", "terms"), [(SplitSeq2Seq(), 2058), (FusedSeq2Seq(), 2578)], ids=["split-gates", "nn.GRU"]
)
def test_terms_of_sequence_to_sequence(network: nn.Module, terms: int) -> None:
    spec = trace(network, (torch.randn(2, 3, 7), torch.randn(2, 3, 7)))
    hidden = [label for label in spec.labels if label.kind == "hidden"]
    assert [label.size for label in hidden] == [5]  # the state that is handed over ties encoder and decoder
    vocabulary = [label.name for label in spec.labels if label.kind in ("input", "output")]
    relaxed = spec.relax_io(vocabulary)
    assert count(relaxed) == counted_by_layer(relaxed) == terms


def test_terms_of_attention_with_heads() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(12, 12, bias=False) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (m(x).unflatten(-1, (3, 4)).transpose(1, 2) for m in (self.query, self.key, self.value))
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            return x + self.out(y.transpose(1, 2).flatten(2))

    spec = trace(Attention(), torch.randn(2, 5, 12))
    assert count(spec.relax_io()) == 96


def test_only_inputs_and_outputs_of_equal_size_can_be_tied() -> None:
    spec = mlp_spec([3, 5, 2])
    with pytest.raises(SpecError, match="only input and output labels can be tied, not 'hidden1'"):
        spec.relax_io(["input", "hidden1"])
    with pytest.raises(SpecError, match="'output' and 'input' differ in size"):
        spec.relax_io(["input", "output"])
    tied = mlp_spec([3, 5, 3]).relax_io(["input", "output"])
    assert {label.name: label.symmetries[0] for label in tied.labels} == {"input": P, "hidden1": P}
    assert tied.group["output"].label == "input"
