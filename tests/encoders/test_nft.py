"""NFT: attention equivariant to coupled permutations only, against a plain evaluation of its formula."""

from __future__ import annotations

import pytest
import torch
from label_specs import cnn, elman, io_of, mlp

from wsl.batch import WeightBatch
from wsl.encoders.base import UnsupportedSpecError
from wsl.encoders.nft import NFT
from wsl.nn.chain import chain
from wsl.nn.nft_attention import NFTAttention
from wsl.spec import WeightSpec
from wsl.symmetry import GroupElement, act, draw

WIDTHS = [2, 6, 5, 3]
SPECS = {"mlp": mlp(WIDTHS, io_of(WIDTHS)), "cnn": cnn(WIDTHS, [3, 4, 1], io_of(WIDTHS))}


def build(spec: WeightSpec, **options: object) -> NFT:
    small = {"channels": 8, "blocks": 2, "heads": 2, "head": (16,), "fourier_features": 4, "fourier_std": 0.3}
    return NFT(spec, 3, **small | options).double().eval()


def networks(spec: WeightSpec, size: int = 4) -> WeightBatch:
    return WeightBatch(spec, torch.randn(size, spec.numel, 1, dtype=torch.float64))


@pytest.mark.parametrize("options", [{}, {"equivariant": True}, {"ends": "permuted", "fourier_features": 0}])
@pytest.mark.parametrize("name", SPECS)
def test_symmetric(name: str, options: dict[str, object]) -> None:
    spec = SPECS[name]
    encoder, batch = build(spec, **options), networks(spec)
    encoder.fit_statistics(batch)
    element = draw(spec, len(batch), dtype=torch.float64)
    before, after = encoder(batch), encoder(act(element, batch))
    expected = act(element, batch.with_values(before)).values if encoder.equivariant else before
    torch.testing.assert_close(after, expected, rtol=1e-10, atol=1e-10)
    assert (before - before.mean(0)).abs().max() > 1e-4


@pytest.mark.parametrize("name", SPECS)
def test_not_equivariant_on_any_side_alone(name: str) -> None:
    """Moving one axis of one tensor without the other axes of its label is no symmetry."""
    spec = SPECS[name]
    encoder, batch = build(spec, equivariant=True), networks(spec, 1)
    before = encoder(batch)
    for tensor in spec.tensors:
        for axis in range(len(tensor.axes)):
            index = torch.arange(spec.numel)
            positions = torch.from_numpy(tensor.index())
            index[positions.flatten()] = positions.roll(1, dims=axis).flatten()
            change = encoder(batch.with_values(batch.values[:, index])) - before[:, index]
            assert change.abs().max() > 1e-4, f"axis {axis} of {tensor.name} is free"


@pytest.mark.parametrize(("ends", "noticed"), [("encoded", True), ("permuted", False)])
def test_inputs_are_told_apart_by_their_embeddings(ends: str, noticed: bool) -> None:
    spec = SPECS["mlp"]
    encoder, batch = build(spec, ends=ends, equivariant=True), networks(spec)
    swap = GroupElement(permutation={"0": torch.tensor([[1, 0]]).expand(len(batch), -1)})
    expected = act(swap, batch.with_values(encoder(batch))).values
    change = (encoder(act(swap, batch)) - expected).abs().max().item()
    assert (change > 1e-5) if noticed else (change < 1e-10)


def test_attention_is_its_formula() -> None:
    """One weight, one head, written out: summaries, columns with the bias, rows."""
    spec = mlp([3, 4])
    attention = NFTAttention(chain(spec), (1, 1), channels=2, heads=1).double()
    w = torch.randn(1, 4, 3, 1, 2, dtype=torch.float64)
    b = torch.randn(1, 4, 1, 2, dtype=torch.float64)
    (new_w,), (new_b,) = attention([w], [b])
    (qw, kw, vw), (qb, kb, vb) = (attention.project[0](x[0].flatten(-2)).split(2, dim=-1) for x in (w, b))

    def attend(q: list, k: list, v: list) -> list[torch.Tensor]:
        keys, values = torch.stack([x.flatten() for x in k]), torch.stack([x.flatten() for x in v])
        scores = torch.stack([x.flatten() for x in q]) @ keys.T / keys.shape[1] ** 0.5
        return [row.view_as(v[0]) for row in scores.softmax(1) @ values]

    def mean(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(0, -2).mean(0)

    of_w, of_b = attend([mean(qw), mean(qb)], [mean(kw), mean(kb)], [mean(vw), mean(vb)])
    rows = attend([*qw], [*kw], [*vw])
    *columns, bias = attend([*qw.unbind(1), qb], [*kw.unbind(1), kb], [*vw.unbind(1), vb])
    # rows of the weight are vectors over the inputs, its columns and the bias vectors over the outputs
    torch.testing.assert_close(new_w[0, :, :, 0], of_w + torch.stack(rows) + torch.stack(columns, 1))
    torch.testing.assert_close(new_b[0, :, 0], of_b + bias)


def test_refusals() -> None:
    with pytest.raises(UnsupportedSpecError, match=r"plain chains .* use unf"):
        build(elman(3, 4, 2))
    with pytest.raises(ValueError, match="multiple of heads"):
        build(SPECS["mlp"], channels=6, heads=4)


def test_chain_walks_from_the_first_layer_to_the_last() -> None:
    layers = chain(SPECS["cnn"])
    assert [(layer.into, layer.out) for layer in layers] == [("0", "1"), ("1", "2"), ("2", "3")]
    assert [layer.weight.name for layer in layers] == [f"layers.{i}.weight" for i in (1, 2, 3)]
