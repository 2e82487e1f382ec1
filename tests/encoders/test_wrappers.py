"""Encoders around encoders: canonical weights, monomial fronts; published size; every symmetry, also under stress."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from random_networks import difference

from wsl.batch import WeightBatch
from wsl.encoders.base import Encoder, UnsupportedSpecError
from wsl.encoders.canonical import Canonical
from wsl.encoders.gatv2 import GATv2Encoder
from wsl.encoders.mlp import FlatMLP
from wsl.encoders.monomial_front import MonomialFront
from wsl.encoders.nfn import NFNHNP, NFNNP
from wsl.encoders.nft import NFT
from wsl.encoders.ng_gnn import NGGNN
from wsl.encoders.unf import UNF
from wsl.spec import WeightSpec, mlp_spec
from wsl.symmetry import act, draw, inverse

SPECS = {
    "relu": mlp_spec([2, 7, 6, 3], "relu"),
    "tanh": mlp_spec([2, 7, 6, 3], "tanh"),
    "siren": mlp_spec([2, 7, 6, 3], "sine", {"omega": 30.0}, output_offset=0.5),
}
SMALL: dict[str, object] = {"channels": (5, 4), "head": (16,)}
INNER: dict[str, Callable[..., Encoder]] = {
    "ng_gnn": partial(NGGNN, width=8, probes=0, fourier_features=0),
    "gatv2": partial(GATv2Encoder, width=16, heads=2, probes=0),
    "unf": partial(UNF, channels=4, head=(16,)),
    "unf_field": partial(UNF, channels=4, equivariant=True),
    "nfn_hnp_field": partial(NFNHNP, channels=(4, 4), equivariant=True),
    "nfn_np": partial(NFNNP, channels=(5, 4), head=(16,)),
    "nft_field": partial(NFT, channels=8, blocks=1, heads=2, equivariant=True),
}
WRAPPERS: dict[str, Callable[[WeightSpec], Encoder]] = {
    **{name: partial(lambda inner, s: Canonical(s, 3, encoder=inner), inner) for name, inner in INNER.items()},
    "front": lambda s: MonomialFront(s, 3, encoder=INNER["nfn_np"], channels=(6, 1)),
    "front_wide": lambda s: MonomialFront(
        s, 3, encoder=partial(INNER["unf"], in_channels=5), channels=(6, 5), normal="scaled_l2", gated=True, paths=3,
        normalize=True,
    ),
}  # fmt: skip


def built(spec: WeightSpec, name: str) -> tuple[Encoder, WeightBatch]:
    batch = WeightBatch(spec, torch.randn(5, spec.numel, 1, dtype=torch.float64) * 0.3)
    encoder = WRAPPERS[name](spec).double().eval()
    encoder.fit_statistics(batch)
    return encoder, batch


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", SPECS)
def test_every_symmetry_also_under_stress(name: str, wrapper: str) -> None:
    spec = SPECS[name]
    encoder, batch = built(spec, wrapper)
    before = encoder(batch)
    assert (before - before.mean(0)).abs().max() > 1e-6, "the encoder sees the networks"
    for symmetry in sorted(encoder.symmetries):
        for scale in ((0.1, 10.0), (1e-4, 1e4)):
            element = draw(spec, len(batch), symmetries=(symmetry,), scale=scale, dtype=torch.float64)
            after = encoder(act(element, batch))
            if encoder.equivariant:
                after = act(inverse(element), batch.with_values(after), shift=False).values
            assert difference(after, before) < 1e-10, (symmetry, scale)


@pytest.mark.parametrize("inner", list(INNER))
def test_control_without_the_wrapper_scale_is_noticed(inner: str) -> None:
    spec = SPECS["relu"]
    batch = WeightBatch(spec, torch.randn(5, spec.numel, 1, dtype=torch.float64))
    element = draw(spec, 5, symmetries=("scaling",), dtype=torch.float64)
    encoder = INNER[inner](spec, 3).double().eval()
    encoder.fit_statistics(batch)
    after = encoder(act(element, batch))
    if encoder.equivariant:
        after = act(inverse(element), batch.with_values(after)).values
    assert difference(after, encoder(batch)) > 1e-3


def test_only_the_symmetries_asked_for_are_removed() -> None:
    spec = SPECS["siren"]
    encoder = Canonical(spec, 3, encoder=INNER["unf"], remove=("sign",)).double().eval()
    assert encoder.symmetries == {"permutation", "sign"}
    batch = WeightBatch(spec, torch.randn(5, spec.numel, 1, dtype=torch.float64))
    for symmetry, noticed in (("sign", False), ("phase", True)):
        element = draw(spec, 5, symmetries=(symmetry,), dtype=torch.float64)
        assert (difference(encoder(act(element, batch)), encoder(batch)) > 1e-6) == noticed


def test_zero_rows_and_networks_give_finite_outputs_and_gradients() -> None:
    spec = SPECS["relu"]
    for wrapper in ("unf", "unf_field", "front", "front_wide"):
        encoder, batch = built(spec, wrapper)
        values = batch.values.clone()
        values[0] = 0
        values[1, torch.from_numpy(spec.tensor["seq.0.weight"].index()[0])] = 0
        values.requires_grad_()
        out = encoder(batch.with_values(values))
        (grad,) = torch.autograd.grad(out.square().sum(), values)
        assert out.isfinite().all() and grad.isfinite().all()


def test_an_encoder_without_permutations_gains_only_what_the_wrapper_removes() -> None:
    inner = partial(FlatMLP, hidden=(8,))
    assert Canonical(SPECS["relu"], 3, encoder=inner).symmetries == {"scaling", "sign", "phase"}
    assert MonomialFront(SPECS["relu"], 3, encoder=inner, channels=(4, 1)).symmetries == {"scaling", "sign"}


@pytest.mark.parametrize(
    ("outputs", "width", "whole", "inner"),
    [
        pytest.param(1, 64, 22_146_603, 22_083_114, id="mnist"),
        pytest.param(3, 16, 16_248_045, 16_237_866, id="cifar10"),
    ],
)
def test_the_front_of_the_published_inr_classifiers_has_its_size(
    outputs: int, width: int, whole: int, inner: int
) -> None:
    """The published sizes of the model and of the NFN behind it, which has redundant terms that ours leaves out."""
    spec = mlp_spec([2, 32, 32, outputs], "sine", {"omega": 30.0})
    encoder = MonomialFront(spec, 10, encoder=INNER["nfn_np"], channels=(width, width, 1))
    own, behind = (sum(p.numel() for p in module.parameters()) for module in (encoder, encoder.encoder))
    assert own - behind == whole - inner


def test_fronts_refuse_inner_encoders_that_do_not_fit() -> None:
    with pytest.raises(UnsupportedSpecError, match=r"no field is left; set encoder\.encoder\.equivariant=false"):
        MonomialFront(SPECS["relu"], 3, encoder=INNER["unf_field"])
    with pytest.raises(UnsupportedSpecError, match=r"does not read 5 channels \(set encoder\.encoder\.in_channels\)"):
        MonomialFront(SPECS["relu"], 3, encoder=INNER["unf"], channels=(4, 5))
