"""Every encoder against every symmetry that it claims: in float64, relative to the size of its output.

One row of ``CASES`` is one encoder on one spec; a new encoder is one more row. Random group elements from
:mod:`wsl.symmetry` act on the networks; an invariant encoder must not notice. The controls fail if the test or the
encoder is blind: elements outside the symmetry group must be noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from wsl.batch import WeightBatch
from wsl.encoders.base import Encoder
from wsl.encoders.canonical import Canonical
from wsl.encoders.deep_set import DeepSet
from wsl.encoders.gatv2 import GATv2Encoder
from wsl.encoders.monomial import Monomial
from wsl.encoders.monomial_front import MonomialFront
from wsl.encoders.nfn import NFNHNP, NFNNP
from wsl.encoders.nft import NFT
from wsl.encoders.ng_gnn import NGGNN
from wsl.encoders.ng_transformer import NGTransformer
from wsl.encoders.probe import ProbeMLP
from wsl.encoders.scale_gmn import ScaleGMN
from wsl.encoders.statnn import StatNN
from wsl.encoders.unf import UNF
from wsl.run_config import ENCODERS
from wsl.spec import WeightSpec, mlp_spec
from wsl.symmetry import GroupElement, act, draw

TOLERANCE = 1e-10
#: what a control must exceed, relative to the size of the output
NOTICEABLE = 1e-5

INR = mlp_spec([2, 9, 7, 3], "sine", {"omega": 30.0}, output_offset=0.5)
RELU = mlp_spec([3, 8, 6, 5, 4], "relu")


@dataclass(frozen=True)
class Case:
    """An encoder on a spec. ``scale``: standard deviation of the random weights."""

    name: str
    build: Callable[[WeightSpec], Encoder]
    spec: WeightSpec
    symmetries: tuple[str, ...] = ("permutation",)
    scale: float = 0.3
    #: reads each tensor as a bag of entries: it cannot notice that one tensor alone is permuted, by design
    bags: bool = False


CASES = [
    Case("ng_gnn", lambda s: NGGNN(s, 10, width=16, probes=8), INR, scale=0.1),
    Case("ng_gnn_forward_edges", lambda s: NGGNN(s, 10, width=16, probes=0, reverse_edges=False), INR, scale=0.1),
    Case("ng_t", lambda s: NGTransformer(s, 5, node_width=8, edge_width=8, width=8, heads=2, layers=2), RELU),
    Case(
        "ng_t_sparse", lambda s: NGTransformer(s, 5, node_width=8, edge_width=8, width=8, form="sparse"), INR, scale=0.1
    ),
    Case(
        "ng_t_field",
        lambda s: NGTransformer(s, 3, node_width=8, edge_width=6, width=8, heads=2, equivariant=True, field_scale=1.0),
        RELU,
    ),
    Case("ng_gnn_residual", lambda s: NGGNN(s, 10, width=16, probes=4, residual=True), RELU),
    Case("ng_gnn_plain_inputs", lambda s: NGGNN(s, 3, width=8, probes=0, fourier_features=0), RELU),
    Case("ng_gnn_edges", lambda s: NGGNN(s, 10, width=16, probes=4, form="edges", readout="attention"), RELU),
    Case("ng_gnn_field", lambda s: NGGNN(s, 3, width=16, probes=0, equivariant=True, field_scale=1.0), RELU),
    Case("gatv2", lambda s: GATv2Encoder(s, 10, width=16, probes=8), INR, scale=0.1),
    Case("gatv2_edges", lambda s: GATv2Encoder(s, 10, width=16, probes=4, form="edges", readout="attention"), RELU),
    Case("gatv2_plain", lambda s: GATv2Encoder(s, 3, width=8, heads=2, probes=0, norm="none", residual=False), RELU),
]
CASES += [
    Case("unf", lambda s: UNF(s, 10, channels=8, head=(32,)), INR, scale=0.1),
    Case("unf_waves", lambda s: UNF(s, 10, channels=8, head=(32,), fourier_features=5), INR, scale=0.1),
    Case("unf_relu_encoded", lambda s: UNF(s, 10, channels=8, head=(32,), ends="encoded", residual=True), RELU),
    Case("unf_equivariant", lambda s: UNF(s, 3, channels=8, equivariant=True, field_scale=0.5), RELU),
    Case("nfn_np", lambda s: NFNNP(s, 10, channels=(8, 8), head=(32,)), INR, scale=0.1),
    Case("nfn_np_encoded", lambda s: NFNNP(s, 10, channels=(8, 8), head=(32,), io_bands=3, io_embed=True), RELU),
    Case("nfn_hnp", lambda s: NFNHNP(s, 10, channels=(8, 8), head=(32,), statistics=True), RELU),
    Case("nft", lambda s: NFT(s, 10, channels=8, blocks=2, heads=2, fourier_std=0.3), INR, scale=0.1),
    Case(
        "nft_equivariant", lambda s: NFT(s, 3, channels=8, blocks=2, heads=2, equivariant=True, field_scale=0.5), RELU
    ),
]
RICH = {"gated": True, "normal": "joint", "pooling": "rich", "paths": 4}
CASES += [
    Case("monomial", lambda s: Monomial(s, 10), INR, ("permutation", "sign"), scale=0.1),
    Case("monomial_relu", lambda s: Monomial(s, 10), RELU, ("permutation", "scaling")),
    Case("monomial_rich", lambda s: Monomial(s, 10, **RICH), RELU, ("permutation", "scaling")),
    Case(
        "monomial_field",
        lambda s: Monomial(s, 3, equivariant=True, field_scale=0.5),
        INR,
        ("permutation", "sign"),
        scale=0.1,
    ),
]
EVERY = ("permutation", "sign", "phase")  # what a network of sines has
PLAIN_GNN = partial(NGGNN, width=8, probes=0, fourier_features=0)
SMALL_NFN = partial(NFNNP, channels=(8, 8), head=(32,))
CASES += [
    Case("canonical_sine", lambda s: Canonical(s, 10, encoder=PLAIN_GNN), INR, EVERY, scale=0.1),
    Case("canonical_relu", lambda s: Canonical(s, 10, encoder=PLAIN_GNN), RELU, ("permutation", "scaling")),
    Case("monomial_front", lambda s: MonomialFront(s, 10, encoder=SMALL_NFN), INR, ("permutation", "sign"), scale=0.1),
]
SMALL_GMN = partial(ScaleGMN, width=16, layers=4)
CASES += [
    Case("scale_gmn", lambda s: SMALL_GMN(s, 10), INR, EVERY, scale=0.1),
    Case("scale_gmn_b", lambda s: SMALL_GMN(s, 10, bidirectional=True), RELU, ("permutation", "scaling")),
    Case("scale_gmn_b_sine", lambda s: SMALL_GMN(s, 10, bidirectional=True, readout="full"), INR, EVERY, scale=0.1),
    Case(
        "scale_gmn_field",
        lambda s: SMALL_GMN(s, 3, bidirectional=True, equivariant=True, field_scale=0.5),
        RELU,
        ("permutation", "scaling"),
    ),
    Case("scale_gmn_field_sine", lambda s: SMALL_GMN(s, 3, equivariant=True, field_scale=0.5), INR, EVERY, scale=0.1),
    Case("scale_gmn_edges", lambda s: SMALL_GMN(s, 10, form="edges"), RELU, ("permutation", "scaling")),
]
CASES += [
    Case("statnn", lambda s: StatNN(s, 10, hidden=(16,)), RELU, bags=True),
    Case("probe_mlp", lambda s: ProbeMLP(s, 10, probes=8, hidden=(16,)), INR, EVERY, scale=0.1),
    Case("probe_mlp_relu", lambda s: ProbeMLP(s, 10, probes=8, hidden=(16,)), RELU, ("permutation", "scaling")),
    Case("deep_set", lambda s: DeepSet(s, 10), RELU, bags=True),
]
SYMMETRY_CASES = [pytest.param(c, s, id=f"{c.name}-{s}") for c in CASES for s in c.symmetries]
EACH_CASE = [pytest.param(c, id=c.name) for c in CASES]
SEEING = [pytest.param(c, id=c.name) for c in CASES if not c.bags]


def built(case: Case, size: int = 6) -> tuple[Encoder, WeightBatch]:
    """The encoder in float64 and evaluation mode with real statistics, and random networks."""
    torch.manual_seed(1)
    batch = WeightBatch(case.spec, torch.randn(size, case.spec.numel, 1, dtype=torch.float64) * case.scale)
    encoder = case.build(case.spec).double().eval()
    encoder.fit_statistics(batch)
    return encoder, batch


def change(after: Tensor, before: Tensor) -> float:
    """Largest deviation, relative to how much the values differ between networks."""
    after, before = after.detach(), before.detach()
    return float((after - before).abs().max() / (before - before.mean(0)).abs().max())


@pytest.mark.parametrize("case, symmetry", SYMMETRY_CASES)
def test_symmetry_elements_pass_unnoticed(case: Case, symmetry: str) -> None:
    encoder, batch = built(case)
    element = draw(case.spec, len(batch), symmetries=(symmetry,), dtype=torch.float64)
    moved = act(element, batch)
    assert change(moved.values, batch.values) > 0.1, "the element moves nothing: the test would prove nothing"
    expected = encoder(batch)
    if encoder.equivariant:
        expected = act(element, batch.with_values(expected), shift=False).values
    assert change(encoder(moved), expected) < TOLERANCE


def test_every_encoder_of_weights_that_claims_a_symmetry_has_a_row() -> None:
    claiming = {e for e in ENCODERS.values() if WeightSpec in e.reads and e.symmetries}
    assert claiming <= {type(case.build(case.spec)) for case in CASES}


@pytest.mark.parametrize("case", EACH_CASE)
def test_claims_no_more_than_is_tested(case: Case) -> None:
    held = {s for s in case.build(case.spec).symmetries if case.spec.labels_with(s)}
    assert held == set(case.symmetries)


@pytest.mark.parametrize("case", SEEING)
def test_negative_control_permuting_one_tensor_alone_is_noticed(case: Case) -> None:
    """Permuting the out-neurons of one hidden weight, but nothing else, changes the function."""
    encoder, batch = built(case)
    label = case.spec.labels_with("permutation")[0]
    weight = next(t for t in case.spec.tensors if t.role == "weight" and t.axes[0] == label.name)
    order = torch.randperm(label.size).roll(1)
    values = batch.values.clone()
    index = torch.from_numpy(weight.index())
    values[:, index.flatten()] = batch.values[:, index[order].flatten()]
    assert change(encoder(batch.with_values(values)), encoder(batch)) > NOTICEABLE


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES if c.bags])
def test_negative_control_entries_moved_between_tensors_are_noticed(case: Case) -> None:
    encoder, batch = built(case)
    values = batch.values.roll(case.spec.tensors[0].numel, dims=1)
    assert change(encoder(batch.with_values(values)), encoder(batch)) > NOTICEABLE


@pytest.mark.parametrize("kind", ["input", "output"])
@pytest.mark.parametrize("case", SEEING)
def test_sensitivity_control_permuting_inputs_or_outputs_is_noticed(case: Case, kind: str) -> None:
    encoder, batch = built(case)
    (label,) = (label for label in case.spec.labels if label.kind == kind)
    shifted = torch.arange(label.size).roll(1).expand(len(batch), -1)
    moved = act(GroupElement(permutation={label.name: shifted}), batch)
    assert change(encoder(moved), encoder(batch)) > NOTICEABLE


@pytest.mark.parametrize("case", EACH_CASE)
def test_a_network_alone_gives_what_it_gives_in_any_batch(case: Case) -> None:
    encoder, batch = built(case, size=11)
    together = encoder(batch)
    alone = torch.cat([encoder(batch.with_values(batch.values[n : n + 1])) for n in range(len(batch))])
    assert change(alone, together) < TOLERANCE
    shuffled = torch.randperm(len(batch))
    assert change(encoder(batch.with_values(batch.values[shuffled])), together[shuffled]) < TOLERANCE
