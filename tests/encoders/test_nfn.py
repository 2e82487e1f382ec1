"""The NFN encoders: symmetric on chains, encodings that break false symmetries, refusals."""

from __future__ import annotations

import pytest
import torch
from label_specs import cnn, elman, io_of, mlp, residual

from wsl.batch import WeightBatch
from wsl.encoders.base import UnsupportedSpecError
from wsl.encoders.nfn import NFNHNP, NFNNP
from wsl.spec import WeightSpec
from wsl.symmetry import GroupElement, act, draw

WIDTHS = [2, 6, 5, 3]
SPECS = {"mlp": mlp(WIDTHS, io_of(WIDTHS)), "cnn": cnn(WIDTHS, [3, 4, 1], io_of(WIDTHS))}
OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "waves": {"fourier_features": 8, "fourier_std": 0.3},
    "encoded": {"io_bands": 2},
    "embedded": {"io_embed": True},
    "statistics": {"statistics": True},
    "raw": {"normalize": "none", "init": "flat"},
    "equivariant": {"equivariant": True},
}


def build(kind: type, spec: WeightSpec, **options: object) -> torch.nn.Module:
    return kind(spec, 3, **{"channels": (5, 4), "head": (16,)} | options).double().eval()


def networks(spec: WeightSpec, size: int = 4) -> WeightBatch:
    return WeightBatch(spec, torch.randn(size, spec.numel, 1, dtype=torch.float64))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", [NFNNP, NFNHNP])
@pytest.mark.parametrize("name", SPECS)
def test_symmetric(name: str, kind: type, option: str) -> None:
    spec = SPECS[name]
    encoder, batch = build(kind, spec, **OPTIONS[option]), networks(spec)
    encoder.fit_statistics(batch)
    element = draw(spec, len(batch), dtype=torch.float64)
    before, after = encoder(batch), encoder(act(element, batch))
    expected = act(element, batch.with_values(before)).values if encoder.equivariant else before
    torch.testing.assert_close(after, expected, rtol=1e-10, atol=1e-10)
    assert (before - before.mean(0)).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("kind", "options", "noticed"),
    [
        (NFNHNP, {}, True),
        (NFNNP, {"equivariant": True}, False),
        (NFNNP, {"equivariant": True, "io_bands": 2}, True),
        (NFNNP, {"equivariant": True, "io_embed": True}, True),
    ],
)
def test_inputs_are_permuted_by_np_without_encodings_only(kind: type, options: dict, noticed: bool) -> None:
    spec = SPECS["mlp"]
    encoder, batch = build(kind, spec, **options), networks(spec)
    swap = GroupElement(permutation={"0": torch.tensor([[1, 0]]).expand(len(batch), -1)})
    before, after = encoder(batch), encoder(act(swap, batch))
    expected = act(swap, batch.with_values(before)).values if encoder.equivariant else before
    change = (after - expected).abs().max().item()
    assert (change > 1e-5) if noticed else (change < 1e-10)


def test_statistics_of_entries_break_the_symmetry_and_say_so() -> None:
    spec = SPECS["mlp"]
    encoder, batch = build(NFNHNP, spec, normalize="entry"), networks(spec, 8)
    encoder.fit_statistics(batch)
    normalized = encoder.normalize(batch.values)
    torch.testing.assert_close(normalized.mean(0), torch.zeros(spec.numel, 1, dtype=torch.float64), rtol=0, atol=1e-12)
    element = draw(spec, len(batch), dtype=torch.float64)
    assert (encoder(act(element, batch)) - encoder(batch)).abs().max() > 1e-4
    assert encoder.symmetries == frozenset() and build(NFNHNP, spec).symmetries == {"permutation"}


@pytest.mark.parametrize("spec", [elman(3, 4, 2), residual(3, 4, 5, 2)], ids=["recurrent", "residual"])
@pytest.mark.parametrize("kind", [NFNNP, NFNHNP])
def test_refuses_what_is_no_chain(kind: type, spec: WeightSpec) -> None:
    with pytest.raises(UnsupportedSpecError, match=r"plain chains .* use unf"):
        build(kind, spec)
