"""Numbers of terms and parameters against worked examples and the published parameter table."""

from __future__ import annotations

import numpy as np
import pytest
from label_specs import cnn, elman, gru_seq2seq, labelled, mlp, residual, transformer

from wsl.nn.deep_set import DeepSetLinear
from wsl.nn.unf.basis import BasisOptions, count_table, exchanges
from wsl.nn.unf.layout import Layout
from wsl.nn.unf.linear import UNFLinear
from wsl.nn.unf.partitions import count_partitions, ports, reductions, stirling, valid_partitions
from wsl.spec import WeightSpec

KEEP = BasisOptions(drop_redundant=False)
OFFICIAL = BasisOptions(drop_redundant=False, bias="reduced")
MODEL = {"v": 5, "d": 8, "k": 8, "u": 8, "m": 16}


def table(spec: WeightSpec, options: BasisOptions = KEEP) -> np.ndarray:
    return count_table(Layout(spec, freeze_single=options.drop_redundant), options)


def test_bell_numbers() -> None:
    bell = [sum(stirling(n, k) for k in range(n + 1)) for n in range(9)]
    assert bell == [1, 1, 2, 5, 15, 52, 203, 877, 4140]
    assert [len(valid_partitions(("a",) * n)) for n in range(6)] == bell[:6]
    assert len(valid_partitions(("a", "a", "b", "b", "b"))) == 2 * 5


@pytest.mark.parametrize("labels", [("a",), ("a", "a"), ("a", "b"), ("a", "a", "b"), ("a", "a", "a")])
@pytest.mark.parametrize("other", [(), ("a",), ("a", "a"), ("b", "c"), ("a", "a", "c")])
def test_ports_times_reductions_are_the_partitions_of_both_sides(
    labels: tuple[str, ...], other: tuple[str, ...]
) -> None:
    def keys(labels: tuple[str, ...], sides: object) -> list[tuple[str, ...]]:
        chosen = [(p.blocks, getattr(p, "connected", None) or getattr(p, "kept", ())) for p in sides]
        return [tuple(labels[blocks[k][0]] for k in picked) for blocks, picked in chosen]

    matches = sum(a == b for a in keys(labels, ports(labels)) for b in keys(other, reductions(other)))
    assert matches == len(valid_partitions(labels + other)) == count_partitions(labels + other)


def test_mlp_tables() -> None:
    expected = [[4, 2, 2, 1], [2, 2, 2, 1], [2, 2, 4, 2], [1, 1, 2, 2]]
    assert table(mlp([3, 4, 5])).tolist() == expected
    three = table(mlp([3, 4, 5, 6]))
    assert three.tolist() == [
        [4, 2, 2, 1, 1, 1],
        [2, 2, 2, 1, 1, 1],
        [2, 2, 4, 2, 2, 1],
        [1, 1, 2, 2, 2, 1],
        [1, 1, 2, 2, 4, 2],
        [1, 1, 1, 1, 2, 2],
    ]
    assert [table(mlp(range(2, 3 + n))).sum() for n in (1, 2, 3, 4)] == [10, 32, 62, 100]


def test_rnn_tables() -> None:
    assert table(elman(3, 4, 5)).tolist() == [
        [4, 5, 2, 2, 1],
        [5, 15, 5, 5, 2],
        [2, 5, 2, 2, 1],
        [2, 5, 2, 4, 2],
        [1, 2, 1, 2, 2],
    ]
    two = {"ff1": "h1 i", "rec2": "h1 h1", "ff2": "h2 h1", "rec3": "h2 h2"}
    counts = table(labelled(two, {"i": 3, "h1": 4, "h2": 5}))
    assert counts.sum(1).tolist() == [13, 29, 16, 26]
    assert counts.sum() == 84 and counts[1, 3] == 4


def test_residual_table() -> None:
    assert table(residual(3, 4, 5, 6)).tolist() == [
        [4, 2, 2, 1, 2, 2, 2, 1],
        [2, 2, 2, 1, 2, 2, 2, 1],
        [2, 2, 4, 2, 4, 2, 2, 1],
        [1, 1, 2, 2, 2, 1, 1, 1],
        [2, 2, 4, 2, 4, 2, 2, 1],
        [2, 2, 2, 1, 2, 2, 2, 1],
        [2, 2, 2, 1, 2, 2, 4, 2],
        [1, 1, 1, 1, 1, 1, 2, 2],
    ]


def test_transformer_tables() -> None:
    vectors = ("ln1w", "ln1b", "ln2w", "ln2b", "b2")
    block = {"ln1w": "d", "ln1b": "d", "q": "k d", "k": "k d", "v": "u d", "o": "d u", "ln2w": "d", "ln2b": "d"}
    block |= {"w1": "m d", "b1": "m", "w2": "d m", "b2": "d"}
    rows = dict(zip(block, table(labelled(block, {"d": 5, "k": 6, "u": 7, "m": 8})).sum(1).tolist(), strict=True))
    assert [rows[name] for name in vectors] == [23] * 5
    assert [rows[name] for name in ("q", "k", "v", "o", "w1", "b1", "w2")] == [27, 27, 27, 27, 28, 15, 28]
    assert sum(rows.values()) == 294
    heads = {"q": "H k d", "k": "H k d", "v": "H u d", "o": "d H u"}
    counts = table(labelled(heads, {"H": 4, "k": 5, "u": 6, "d": 7}))
    assert counts.sum() == 96 and counts[0].tolist() == [8, 8, 4, 4]


@pytest.mark.parametrize(("blocks", "tensors", "terms"), [(1, 21, 756), (2, 37, 2258), (4, 69, 7662), (6, 101, 16266)])
def test_scale_table(blocks: int, tensors: int, terms: int) -> None:
    spec = transformer(blocks, MODEL)
    assert len(spec.tensors) == tensors and table(spec).sum() == terms


def test_scale_table_of_twelve_blocks_and_variants() -> None:
    spec = transformer(12, MODEL)
    assert len(spec.tensors) == 197 and table(spec).sum() == 61278
    assert table(transformer(2, MODEL, tie_qk=False)).sum() == 2238
    assert table(gru_seq2seq(4, 5)).sum() == 2058
    assert table(cnn([1, 16, 16, 16, 10], [3, 3, 3, 1])).sum() == 100


def parameters(spec: WeightSpec, options: BasisOptions, c_in: int = 32, c_out: int = 1) -> int:
    layer = UNFLinear(Layout(spec, freeze_single=options.drop_redundant), c_in, c_out, options)
    return sum(p.numel() for p in layer.parameters())


def test_published_parameter_counts() -> None:
    """Learned optimizers of the paper: a Deep Set trunk of three layers, a last layer 32 → 1, and three scalars."""
    spec = mlp([64, 32, 10])
    layers = [DeepSetLinear(spec, i, o, reduced=True) for i, o in ((19, 32), (32, 32), (32, 32))]
    trunk = sum(p.numel() for layer in layers for p in layer.parameters()) + 3
    assert trunk + parameters(spec, OFFICIAL) == 3783
    conv = {"c1": "1 0 a a", "b1": "1", "c2": "2 1 y x", "b2": "2", "w": "3 2", "b3": "3"}
    sizes = {"0": 3, "1": 16, "2": 32, "3": 10, "a": 3, "y": 3, "x": 3}
    assert trunk + parameters(labelled(conv, sizes), OFFICIAL) == 7369
    recurrent = {"embed": "v e", "in.w": "h e", "in.b": "h", "rec.w": "h h", "rec.b": "h"}
    recurrent |= {"out.w": "v h", "out.b": "v", "state": "one h"}
    assert trunk + parameters(labelled(recurrent, {"v": 9, "e": 8, "h": 7, "one": 1}), OFFICIAL) == 8043
    spec = transformer(2, MODEL, tie_qk=False, norm_label="n")
    assert trunk + parameters(spec, OFFICIAL) == 64168


def test_published_parameter_count_of_nfn_on_a_cnn() -> None:
    folded = cnn([3, 16, 32, 10], [3, 3, 1])
    count = parameters(folded, BasisOptions(drop_redundant=False, bias="none"))
    assert count == 1214 * 32 and count + 2752 + 3 == 41603


@pytest.mark.parametrize("options", [KEEP, BasisOptions(), BasisOptions(diagonal_writes=False)])
def test_plan_has_the_counted_terms(options: BasisOptions) -> None:
    for spec in (elman(1, 2, 3), elman(3, 5, 1), residual(2, 3, 1, 2), transformer(2, MODEL)):
        layout = Layout(spec, freeze_single=options.drop_redundant)
        plan = exchanges(layout, options)
        slots = [
            sum(layout.bundles[s.bundle].slots for s in e.sources)
            * sum(layout.bundles[s.bundle].slots for s in e.sinks)
            for e in plan
        ]
        held = sum(n if e.allowed is None else int(e.allowed.sum()) for n, e in zip(slots, plan, strict=True))
        assert held == count_table(layout, options).sum()


@pytest.mark.parametrize(("n", "rank"), [(5, 15), (4, 15), (3, 14), (2, 8), (1, 1)])
def test_terms_on_short_axes(n: int, rank: int) -> None:
    spec = labelled({"w": "a a"}, {"a": n})
    assert table(spec).item() == 15
    assert table(spec, BasisOptions()).item() == rank


def test_terms_on_a_short_axis_of_two_tensors() -> None:
    def count(n: int) -> int:
        return table(labelled({"w": "a a", "u": "a b"}, {"a": n, "b": 3}), BasisOptions())[1, 0]

    assert (count(3), count(2)) == (5, 4)
