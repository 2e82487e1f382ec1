"""The UNF encoder: symmetric on every kind of spec, and what its options change."""

from __future__ import annotations

import pytest
import torch
from label_specs import cnn, elman, gru_seq2seq, io_of, mlp, residual, transformer

from wsl.batch import WeightBatch
from wsl.encoders.base import UnsupportedSpecError
from wsl.encoders.unf import UNF
from wsl.spec import WeightSpec
from wsl.symmetry import GroupElement, act, draw

WIDTHS = [2, 5, 4, 3]
ENDS = {"i": "input", "o": "output"}
SPECS = {
    "mlp": mlp(WIDTHS, io_of(WIDTHS)),
    "cnn": cnn(WIDTHS, [3, 3, 1], io_of(WIDTHS)),
    "rnn": elman(3, 5, 2, ENDS),
    "gru": gru_seq2seq(4, 3),
    "residual": residual(3, 5, 4, 2, ENDS),
    "transformer": transformer(2, {"v": 4, "d": 5, "k": 3, "u": 4, "m": 6}, kinds={"v": "input"}),
}


def build(spec: WeightSpec, outputs: int = 7, **options: object) -> UNF:
    return UNF(spec, outputs, **{"channels": 4, "head": (16,), "bands": 2} | options).double().eval()


def networks(spec: WeightSpec, size: int = 4) -> WeightBatch:
    return WeightBatch(spec, torch.randn(size, spec.numel, 1, dtype=torch.float64))


@pytest.mark.parametrize("equivariant", [False, True])
@pytest.mark.parametrize("ends", ["fixed", "encoded", "permuted"])
@pytest.mark.parametrize("name", SPECS)
def test_symmetric(name: str, ends: str, equivariant: bool) -> None:
    spec = SPECS[name]
    encoder, batch = build(spec, ends=ends, cells=ends, equivariant=equivariant), networks(spec)
    encoder.fit_statistics(batch)
    element = draw(spec, len(batch), dtype=torch.float64)
    before, after = encoder(batch), encoder(act(element, batch))
    assert before.shape == ((4, spec.numel, 7) if equivariant else (4, 7))
    expected = act(element, batch.with_values(before)).values if equivariant else before
    torch.testing.assert_close(after, expected, rtol=1e-10, atol=1e-10)
    assert (before - before.mean(0)).abs().max() > 1e-4, "networks must not look alike"


@pytest.mark.parametrize(("ends", "noticed"), [("fixed", True), ("encoded", True), ("permuted", False)])
def test_inputs_are_told_apart_unless_they_count_as_permuted(ends: str, noticed: bool) -> None:
    encoder, batch = build(SPECS["mlp"], ends=ends), networks(SPECS["mlp"])
    swap = GroupElement(permutation={"0": torch.tensor([[1, 0]]).expand(len(batch), -1)})
    change = (encoder(act(swap, batch)) - encoder(batch)).abs().max().item()
    assert (change > 1e-5) if noticed else (change < 1e-10)


@pytest.mark.parametrize(("cells", "noticed"), [("fixed", True), ("encoded", True), ("permuted", False)])
def test_kernel_cells_are_told_apart_unless_they_count_as_permuted(cells: str, noticed: bool) -> None:
    encoder, batch = build(SPECS["cnn"], cells=cells), networks(SPECS["cnn"])
    order = torch.tensor([2, 0, 1]).expand(len(batch), -1)
    moved = act(GroupElement(permutation={"y1": order}), batch)
    change = (encoder(moved) - encoder(batch)).abs().max().item()
    assert (change > 1e-5) if noticed else (change < 1e-10)


def test_diagonals_count_in_the_complete_pool_only() -> None:
    """Without layers' help: moving weight from the diagonal to its neighbours keeps the total mean."""
    spec = SPECS["rnn"]
    sizes = {pool: build(spec, pool=pool).head[0].in_features for pool in ("complete", "reduced")}
    assert sizes["complete"] - sizes["reduced"] == 4


@pytest.mark.parametrize(
    "options",
    [
        {"theta": "role_shared"},
        {"theta": "low_rank", "rank": 2},
        {"diagonal_writes": False},
        {"bias": "reduced", "pool": "reduced", "drop_redundant": False, "init": "flat"},
        {"residual": True, "norm": True, "standardize": False},
        {"aggregation": "sum", "dropout": 0.5},
    ],
)
def test_options_stay_symmetric_and_train(options: dict[str, object]) -> None:
    spec = SPECS["gru"]
    encoder, batch = build(spec, **options), networks(spec)
    element = draw(spec, len(batch), dtype=torch.float64)
    torch.testing.assert_close(encoder(act(element, batch)), encoder(batch), rtol=1e-9, atol=1e-9)
    encoder(batch).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_refusals() -> None:
    spec = mlp([784, 8, 10], io_of([784, 8, 10]))
    with pytest.raises(UnsupportedSpecError, match=r"'layers.1.weight' .*theta='low_rank'"):
        UNF(spec, 1, channels=32, budget_gib=1.0)
    assert build(spec, ends="encoded", budget_gib=0.01)(networks(spec, 2)).shape == (2, 7)
    with pytest.raises(UnsupportedSpecError, match="on no connection"):
        build(SPECS["gru"], neighbours_only=True)
    with pytest.raises(ValueError, match="built for"):
        build(SPECS["gru"])(networks(SPECS["rnn"]))
